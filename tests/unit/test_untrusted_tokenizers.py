"""Tokenizers from strangers: one that panics, or never comes to an end, is an error of one line."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stagelens.cli import main
from stagelens.contracts import Example, SetError, TaskError
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import CausalLM, TextClassification, tokenizer
from stagelens.tasks.tokenizer import KeptTokenizer
from stagelens.ui.pieces import components
from tests.support.small_texts import classification, language

PANICS = "(a+)+$"
"""More ways to match than the library of regular expressions tries before it gives up."""
SLOW = "a*a*b"
"""Fails at every place of a text, after a number of tries that is the square of its length."""
BAD = "a" * 30 + "!"
SECRET = "aaaa"


def spoiled(assets: Any, pattern: str, part: str = "pre_tokenizer") -> dict[str, bytes]:
    content = json.loads(assets["tokenizer.json"])
    regex: dict[str, Any] = {"pattern": {"Regex": pattern}}
    content[part] = (
        {"type": "Split", **regex, "behavior": "Isolated", "invert": False}
        if part == "pre_tokenizer"
        else {"type": "Replace", **regex, "content": ""}
    )
    return {**assets, "tokenizer.json": json.dumps(content).encode()}


@pytest.fixture(scope="module")
def classifier() -> TextClassification:
    task, _ = classification()
    return TextClassification(**task.config, assets=spoiled(task.assets, PANICS))


@pytest.fixture(scope="module")
def writer() -> CausalLM:
    task, _ = language()
    return CausalLM(**task.config, assets=spoiled(task.assets, PANICS))


def test_a_panic_names_the_text_of_a_batch_by_its_number(
    classifier: TextClassification, writer: CausalLM
) -> None:
    for batch in (
        lambda: classifier.batch(["fine", BAD]),
        lambda: writer.batch(["fine", BAD]),
        lambda: writer.batch(prompts=["", ""], completions=["fine", BAD]),
    ):
        with pytest.raises(
            TaskError, match=r"^row 1 of the batch cannot be made into tok"
        ) as raised:
            batch()
        assert SECRET not in str(raised.value) and "\n" not in str(raised.value)


def test_a_panic_names_the_example_of_a_set_by_its_id(
    classifier: TextClassification, writer: CausalLM, tmp_path: Path
) -> None:
    examples = [Example("one", {"text": "fine"}), Example("two", {"text": BAD})]
    for task in (classifier, writer):
        with pytest.raises(TaskError, match=r"^example 'two' cannot be made into tokens") as raised:
            task.collate(examples)
        assert SECRET not in str(raised.value)
    with pytest.raises(SetError, match="text of example 'y' cannot be made into tokens: the tok"):
        write_set(tmp_path, classifier, "test", texts=["fine", BAD], ids=["x", "y"])
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_cannot_be_decoded_are_an_error_of_the_task() -> None:
    task, _ = classification()
    # Ten ways to match each of seven letters.
    bad = KeptTokenizer(spoiled(task.assets, f"({'|'.join('.' * 10)}){{7}}(?!)", "decoder"))
    with pytest.raises(TaskError, match="tokens cannot be made into text: the tokenizer fails"):
        bad.decode(bad.encode("until morning").ids)


class _Stuck:
    """A backend that answers only once it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.asked = 0

    def encode_batch(self, *_: Any, **__: Any) -> list[Any]:
        self.asked += 1
        self.let_go.wait(60)
        return []


def test_what_takes_too_long_is_given_up_and_not_tried_again_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "PATIENCE", 1)
    task, _ = classification()
    kept, other = KeptTokenizer(spoiled(task.assets, "x")), KeptTokenizer(task.assets)
    stuck = _Stuck()
    kept._backend = stuck  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the tokenizer takes more than 1 seconds; leave the text"):
        kept.encode("birds")
    with pytest.raises(ValueError, match="still busy with a text that takes it too long"):
        kept.encode("sing")
    assert stuck.asked == 1 and other.encode("birds sing").ids
    stuck.let_go.set()


def test_other_threads_go_on_while_a_text_takes_long() -> None:
    task, _ = classification()
    slow = KeptTokenizer(spoiled(task.assets, SLOW))
    ticks, over = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.wait(0.01):
            ticks += 1

    ticking = threading.Thread(target=tick)
    ticking.start()
    began = time.perf_counter()
    slow.encode("a" * 800 + "!b")
    took = time.perf_counter() - began
    over.set()
    ticking.join()
    assert ticks > 0.2 * took / 0.01


@pytest.mark.extensive
def test_a_text_that_really_takes_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "PATIENCE", 1)
    task, _ = classification()
    with pytest.raises(ValueError, match="takes more than 1 seconds"):
        KeptTokenizer(spoiled(task.assets, SLOW)).encode("a" * 3000 + "!b")


def test_a_forked_process_has_helpers_of_its_own() -> None:
    task, _ = classification()
    task.batch(["birds sing"])
    child = os.fork()
    if child == 0:
        os._exit(0 if task.tokenizer.encode("birds sing").ids else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _panic(*_: Any, **__: Any) -> None:
    task, _ = classification()
    spoilt = KeptTokenizer(spoiled(task.assets, PANICS))
    spoilt._backend.encode(BAD)


def test_any_panic_is_one_line_of_the_command_and_of_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stagelens.cli.app", _panic)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("stagelens: a library fails (Onig: ")
    told: list[str] = []
    monkeypatch.setattr(components, "error_state", told.append)
    with components.errors_told():
        _panic()
    assert told[0].startswith("a library fails (Onig: ")
