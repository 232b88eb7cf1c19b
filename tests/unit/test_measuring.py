"""Examples are measured in the order that suits their task, and come back in their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stagelens.contracts import Example
from stagelens.measuring.models import measure
from stagelens.tasks import CausalLM, MaskedLM, Seq2Seq, TextClassification
from stagelens.tasks.cutting import ALSO_PADDED, MOST_PADDING, pieces, spans_of_similar_length
from tests.support.long_texts import choices, language_model, lengths, texts


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def in_batches(examples: list[Example], size: int = 64) -> list[list[Example]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


@pytest.mark.parametrize("make", [texts, lambda count: choices(count // 4, prefix=60)])
def test_values_are_those_of_examples_one_by_one(make: Any) -> None:
    task, model = language_model(16, 1)
    examples = make(96)
    (found,) = measure(task, model, [weights(model)], in_batches(examples), len(examples))
    for number in (0, 1, 40, 63, 64, 95):
        batch = task.collate([examples[number]])
        with torch.inference_mode():
            outputs = task.outputs(model, batch)
        for name, own in task.behaviours(outputs, batch).items():
            assert found.values[name][number] == pytest.approx(float(own), rel=1e-5, nan_ok=True)
        assert found.answers[number] == task.predictions(outputs).answers[0]


def test_at_most_a_twentieth_of_what_passes_is_padding() -> None:
    task, model = language_model(16, 1)
    passed = padded = 0

    def note(module: Any, given: Any, options: dict[str, Any]) -> None:
        nonlocal passed, padded
        passed += options["input_ids"].numel()
        padded += int((options["attention_mask"] == 0).sum())

    model.register_forward_pre_hook(note, with_kwargs=True)
    examples = texts(256, median=30)
    measure(task, model, [weights(model)], in_batches(examples), len(examples))
    assert 0 < padded <= 0.05 * passed


@pytest.mark.parametrize("tokens", [1, 300, 8192])
def test_batches_hold_every_row_once_within_their_limits(tokens: int) -> None:
    sizes = lengths(np.random.default_rng(0), 500, 30, 0.9).tolist()
    found = list(spans_of_similar_length(sizes, lambda longest: max(tokens // longest, 1)))
    assert sorted(row for span in found for row in span) == list(range(500))
    passed = 0
    for span in found:
        longest = max(sizes[row] for row in span)
        assert len(span) == 1 or len(span) * longest <= tokens
        passed += len(span) * longest
    assert passed - sum(sizes) <= max(MOST_PADDING * passed, ALSO_PADDED)


def test_few_rows_are_one_batch() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    ((rows, piece),) = pieces({"input_ids": mask, "attention_mask": mask})
    assert rows.tolist() == [0, 1] and piece["input_ids"].shape == (2, 3)


def test_the_longest_come_first_and_prompts_that_begin_alike_stay_together() -> None:
    def order(task: type, *inputs: dict[str, Any]) -> list[int]:
        examples = [Example(str(n), value) for n, value in enumerate(inputs)]
        return list(task.evaluation_order(object.__new__(task), examples))

    given = ({"text": "ab"}, {"text": "abcdef"}, {"text": ["a", "bc"]}, {"text": "abc"})
    assert order(TextClassification, *given) == [1, 2, 3, 0]
    assert order(MaskedLM, *given) == [1, 2, 3, 0]
    pairs = [{"prompt": p * 40, "completion": c * 9} for p, c in ("ab", "ba", "ac", "bc")]
    assert order(CausalLM, *pairs) == [0, 2, 1, 3]
    assert order(Seq2Seq, *pairs) == [0, 1, 2, 3]
    apart = [{"prompt": p, "completion": c} for p, c in ("ab", "ba", "ac")]
    assert order(CausalLM, *apart[::-1], {"text": "long" * 9}) == [3, 0, 1, 2]
