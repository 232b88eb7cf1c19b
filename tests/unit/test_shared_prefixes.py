"""Beginnings that rows share are read once, and what is measured stays what it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stagelens.contracts import Example
from stagelens.tasks import CausalLM, likelihoods
from stagelens.tasks.shared_prefixes import Node, tree
from stagelens.tasks.transformer_task import IGNORED, filled
from tests.support.small_texts import gpt, gpt_tokenizer
from tests.support.tiny_models import tiny

FEW_SHOT, QUESTIONS, ANSWERS = 20, 5, 3
SHARING = ("bloom", "gemma2", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "opt", "phi3")
"""Kinds of models, of every kind of positions; phi3 has a window that all fits into."""
PLAIN = ("mamba", "mpt", "rwkv")
"""Without keys and values of every token, or with distances that padding would stretch."""


def rows(seed: int = 0) -> dict[str, torch.Tensor]:
    """Questions of several lengths behind one beginning, answers to each, and a row by itself."""
    random = np.random.default_rng(seed)

    def some(count: int) -> list[int]:
        return random.integers(5, 320, count).tolist()

    shown = some(FEW_SHOT)
    stems = [shown + some(10 + 2 * number) for number in range(QUESTIONS)]
    pairs = [(stem, some(2 + n)) for stem in stems for n in range(ANSWERS)] + [(some(4), some(5))]
    ids = filled([[*stem, *answer] for stem, answer in pairs], 0)
    mask = filled([[1] * len([*stem, *answer]) for stem, answer in pairs], 0)
    labels = ids.masked_fill(mask == 0, IGNORED)
    for number, (stem, _) in enumerate(pairs):
        labels[number, : len(stem)] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Tokens:
    """How many tokens pass through a model, padding aside."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.count = 0
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: torch.nn.Module, given: Any, options: dict[str, Any]) -> None:
        self.count += int(options["attention_mask"][:, -options["input_ids"].shape[1] :].sum())


def both_ways(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any, list[bool]]:
    """What is measured with and without shared beginnings, and whether any were shared."""
    reader, shared = likelihoods.reader, []

    def noted(*given: Any) -> Any:
        found = reader(*given)
        shared.append(found is not None)
        return found

    with torch.inference_mode():
        monkeypatch.setattr(likelihoods, "reader", lambda *given: None)
        plain = likelihoods.likelihoods(model, batch, 330, {})
        monkeypatch.setattr(likelihoods, "reader", noted)
        own = likelihoods.likelihoods(model, batch, 330, {})
    return own, plain, shared


def assert_alike(own: Any, plain: Any) -> None:
    torch.testing.assert_close(own[0], plain[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(own[1], plain[1])
    torch.testing.assert_close(own[2], plain[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*SHARING, *PLAIN])
def test_what_is_read_once_is_what_is_read_for_every_row(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, plain, shared = both_ways(tiny(kind, "causal"), rows(), monkeypatch)
    assert shared == [kind in SHARING]
    assert_alike(own, plain)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gpt_neo", {"window_size": 16}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        ),
    ],
)
def test_windows_and_positions_that_lengths_move_are_read_the_plain_way(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, plain, shared = both_ways(tiny(kind, "causal", **options), rows(), monkeypatch)
    assert shared == [False]
    assert_alike(own, plain)


def test_a_shared_beginning_passes_once() -> None:
    model, batch = tiny("llama", "causal"), rows()
    given = (batch["labels"] != IGNORED).int().argmax(1) - 1
    root, saved = tree(batch["input_ids"].numpy(), given.tolist())
    # One few-shot prefix, and below it a question for its answers.
    (prefix,) = root.children
    assert [len(root.leaves), prefix.stop, len(prefix.children)] == [1, FEW_SHOT, QUESTIONS]
    assert [len(question.leaves) for question in prefix.children] == [ANSWERS] * QUESTIONS
    with torch.inference_mode():
        likelihoods.likelihoods(model, batch, 330, {})  # the model is tried once
        tokens = Tokens(model)
        likelihoods.likelihoods(model, batch, 330, {})
    whole = int(batch["attention_mask"].sum())
    assert tokens.count == whole - saved < whole / 3


@pytest.mark.parametrize("bytes_held", [1, 20_000])
def test_rows_are_few_where_their_cache_is_large(
    bytes_held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagelens.tasks.shared_prefixes._CACHE_BYTES", bytes_held)
    own, plain, shared = both_ways(tiny("llama", "causal"), rows(), monkeypatch)
    assert shared == [True]
    assert_alike(own, plain)


def test_gradients_are_read_the_plain_way() -> None:
    model, batch = tiny("llama", "causal"), rows()
    given = batch["attention_mask"].sum(1).tolist(), [20] * len(batch["labels"])
    with torch.inference_mode():
        assert likelihoods.reader(model, batch["input_ids"], *given) is not None
    assert likelihoods.reader(model, batch["input_ids"], *given) is None


def test_pairs_of_completions_share_their_prompt() -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    task = CausalLM.from_model(model, tokenizer)
    long = "the rain in the night was long and cold and kept"
    given = [
        Example("a", {"prompt": long, "completion": " awake", "rejected": " the whole house"}),
        Example("b", {"prompt": "a dog", "completion": " barked"}),
        Example("c", {"prompt": long, "completion": " birds", "rejected": " on"}),
    ]

    def measured(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = task.collate(examples)
        return task.behaviours(task.outputs(model, batch), batch)

    with torch.inference_mode():
        measured(given)
        tokens = Tokens(model)
        together = measured(given)
        passed = tokens.count
        alone = [measured([each]) for each in given]
    assert passed < 3 * len(tokenizer(long)["input_ids"])
    for name, values in together.items():
        expected = torch.cat([each[name] for each in alone])
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_every_row_is_a_leaf_and_shares_what_it_may() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        ids = random.integers(0, 2, (int(random.integers(1, 30)), 24))
        may = random.integers(0, 24, len(ids)).tolist()
        root, saved = tree(ids, may)
        found, read = [], 0
        todo = [(root, 0)]
        while todo:
            node, depth = todo.pop()
            assert node.start == depth <= node.stop
            read += node.stop - node.start
            for row in node.leaves:
                assert may[row] >= node.stop
                assert (ids[row, : node.stop] == ids[node.row, : node.stop]).all()
            read += sum(24 - node.stop for _ in node.leaves)
            found += node.leaves
            todo += [(child, node.stop) for child in node.children]
        assert sorted(found) == list(range(len(ids)))
        assert read == ids.size - saved


def test_a_few_tokens_are_not_worth_a_pass() -> None:
    root, saved = tree(np.array([[1, 2, 3, 4], [1, 2, 3, 5]]), [3, 3])
    assert root == Node(leaves=[1, 0]) and saved == 0
