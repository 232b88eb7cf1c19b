"""One prompt, asked of every model of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from stagelens.cli.asking import Replies
from stagelens.effects.answers import answer
from stagelens.effects.asking import ask
from stagelens.measuring.generation import Generation
from tests.support.text_runs import PROMPTS, STAGES, record_prompts

HOW = Generation(max_tokens=4)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_prompts(tmp_path_factory.mktemp("asking") / "run", ("replay",))


def test_every_model_says_what_it_answers_to_the_set(recorded: Path) -> None:
    run = stagelens.open_run(recorded)
    tables = answer(run, "test", HOW).models
    so_far: dict[str, list[str]] = {}
    found = list(
        ask(
            run,
            PROMPTS[1],
            HOW,
            "replay",
            told=lambda m, text: so_far.setdefault(m, []).append(text),
        )
    )
    assert [each.model for each in found] == ["final", *(f"without:{name}" for name in STAGES)]
    for each in found:
        assert each.answer is not None
        table = tables[each.model].set_index("example_id")
        assert each.answer.text == table.loc["1", "answer"]
        # Told token by token, the last time with all of it.
        assert len(so_far[each.model]) == each.answer.tokens
        assert so_far[each.model][-1] == each.answer.text
    assert found[0].trust is None
    assert [each.trust.trust for each in found[1:] if each.trust] == ["exact"] * 3


def test_one_model_at_a_time_is_asked(recorded: Path) -> None:
    replies = ask(stagelens.open_run(recorded), "a dog", HOW, "task-vector", stages=[STAGES[0]])
    assert next(replies).model == "final"  # before anything is known of the others
    assert [each.model for each in replies] == [f"without:{STAGES[0]}"]


def test_answers_leave_half_of_what_a_model_takes_to_the_prompt(recorded: Path) -> None:
    run = stagelens.open_run(recorded)
    (final,) = ask(run, "a dog", Generation(max_tokens=10_000), "task-vector", stages=[])
    assert final.answer is not None and final.answer.tokens <= run.task.longest // 2


def test_the_command_prints_and_keeps_replies(recorded: Path, tmp_path: Path) -> None:
    asked, kept = tmp_path / "prompt.txt", tmp_path / "replies.json"
    asked.write_text("two and two")
    given = ["ask", str(recorded), "--max-tokens", "4", "--stage", STAGES[1]]
    done = CliRunner().invoke(app, [*given, "two and two"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if ": " in line]
    assert lines[0].startswith("final: ") and lines[1].startswith("without habits (exact): ")
    done = CliRunner().invoke(
        app, [*given, "--prompt-file", str(asked), "--replies", str(kept), "--json"]
    )
    models = json.loads(kept.read_text())["models"]
    assert models == json.loads(done.output)
    assert [each["done"] for each in models] == [True, True]
    assert lines[0] == f"final: {models[0]['answer']}"
    done = CliRunner().invoke(app, given)
    assert "give one prompt" in str(done.exception)


def test_what_is_being_said_is_written_before_it_is_over(tmp_path: Path) -> None:
    said = Replies(tmp_path / "replies.json")
    said.so_far("final", "It")
    assert json.loads(said.path.read_text())["models"] == [  # type: ignore[union-attr]
        {"model": "final", "answer": "It", "done": False}
    ]
    said.so_far("final", "It is")  # too soon after it
    assert "It is" not in said.path.read_text()  # type: ignore[union-attr]
    said.add({"model": "final", "answer": "It is 4."})
    assert "It is 4." in said.path.read_text()  # type: ignore[union-attr]
