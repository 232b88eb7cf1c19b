"""Tokens wasted on padding, and the speed of measuring a language model beside a plain loop."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stagelens.contracts import Example
from stagelens.measuring.models import BATCH_SIZE, measure
from stagelens.tasks import CausalLM, likelihoods
from stagelens.tasks.cutting import PIECE_TOKENS
from stagelens.tasks.transformer_task import IGNORED
from tests.support.long_texts import choices, language_model, texts

ROWS = 32
"""Rows of a batch of the plain loop."""
PAIRS = 3
MOST_PADDING = 0.05


class Passed:
    """Tokens that passed through a model."""

    def __init__(self) -> None:
        self.all = self.padding = 0

    def note(self, module: nn.Module, given: Any, options: dict[str, Any]) -> None:
        ids = options["input_ids"]
        self.all += ids.numel()
        self.padding += int((options["attention_mask"][:, -ids.shape[1] :] == 0).sum())


@contextmanager
def counted(model: nn.Module) -> Iterator[Passed]:
    passed = Passed()
    hook = model.register_forward_pre_hook(passed.note, with_kwargs=True)
    try:
        yield passed
    finally:
        hook.remove()


def plainly(task: CausalLM, model: nn.Module, examples: Sequence[Example]) -> np.ndarray:
    """(N,) log-likelihoods by a loop over the examples as they come."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(examples), ROWS):
            batch = task.collate(examples[start : start + ROWS])
            labels = batch.pop("labels")[:, 1:]
            chances = model(**batch, use_cache=False).logits[:, :-1].log_softmax(2)
            own = chances.gather(2, labels.clamp(min=0)[:, :, None]).squeeze(2)
            found.append(torch.where(labels != IGNORED, own, 0.0).sum(1))
    return torch.cat(found).double().numpy()


def in_set_order(task: CausalLM, model: nn.Module, examples: Sequence[Example]) -> None:
    """Passes as they were before: batches of 256 as they come, cut by length inside."""
    with torch.inference_mode():
        for start in range(0, len(examples), BATCH_SIZE):
            batch = task.collate(examples[start : start + BATCH_SIZE])
            lengths = batch["attention_mask"].sum(1)
            order = lengths.argsort(descending=True, stable=True)
            while len(order):
                longest = int(lengths[order[0]])
                rows, order = order.tensor_split([PIECE_TOKENS // longest])
                given = {
                    name: batch[name][rows, :longest] for name in ("input_ids", "attention_mask")
                }
                model(**given, use_cache=False)


def ours(task: CausalLM, model: nn.Module, examples: Sequence[Example]) -> np.ndarray:
    """(N,) log-likelihoods as effects measure them."""
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
    batches = [list(examples[n : n + BATCH_SIZE]) for n in range(0, len(examples), BATCH_SIZE)]
    (one,) = measure(task, model, [weights], batches, len(examples))
    return one.values["log-likelihood"]


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.benchmark
@pytest.mark.parametrize("median", [15, 60, 200])
def test_little_is_padded_at_any_length(median: int) -> None:
    task, model = language_model(16, 1)
    examples = texts(1_024, median)
    shares = {}
    for name, way in {"plain loop": plainly, "before": in_set_order, "now": ours}.items():
        with counted(model) as passed:
            way(task, model, examples)
        shares[name] = passed.padding / passed.all
    print(
        f"\npadding, {len(examples):,} texts of median {median} tokens: "
        + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    )
    assert shares["now"] <= MOST_PADDING


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "make", "least"),
    [
        ("log-normal lengths", lambda: texts(512), 1.0),
        ("4 answers behind 512 shared tokens", lambda: choices(32), 3.0),
    ],
    ids=["lengths", "prefix"],
)
def test_measuring_is_as_fast_as_a_plain_loop(
    name: str, make: Callable[[], list[Example]], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = language_model()
    examples = make()
    ratios, plain = [], []
    for pair in range(PAIRS + 1):
        # In turn, so that what else the machine does falls on both alike.
        ways = (ours, plainly) if pair % 2 else (plainly, ours)
        took = {way: seconds(partial(way, task, model, examples)) for way in ways}
        if pair > 0:  # the first is to warm up
            ratios.append(took[plainly] / took[ours])
            plain.append(took[plainly])
    with counted(model) as passed:
        shared = ours(task, model, examples)
    whole = sum(len(" ".join(example.input.values()).split()) for example in examples)
    monkeypatch.setattr(likelihoods, "reader", lambda *_: None)
    np.testing.assert_allclose(shared, ours(task, model, examples), rtol=1e-5)
    np.testing.assert_allclose(shared, plainly(task, model, examples), rtol=1e-5)
    print(
        f"\n{name}: {statistics.median(ratios):.2f} times as fast as a plain loop "
        f"({min(ratios):.2f} to {max(ratios):.2f}; {PAIRS} pairs, {statistics.median(plain):.1f} "
        f"s plain; {passed.all:,} tokens passed of {whole:,}, "
        f"{100 * passed.padding / passed.all:.1f} % padding; {torch.get_num_threads()} thread, "
        f"load {os.getloadavg()[0]:.1f})"
    )
    assert statistics.median(ratios) >= least
