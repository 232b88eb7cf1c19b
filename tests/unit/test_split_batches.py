"""One batch over several processes: the parts' gradients add up to the batch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import Refused, Task
from stagelens.replaying import shared_batches
from stagelens.replaying.shared_batches import SplitGradient
from stagelens.replaying.step import StepRules, loss_of
from stagelens.tasks import CausalLM, TextClassification
from tests.support import small_runs
from tests.support.small_texts import CLASSES, bert, bert_tokenizer, gpt, gpt_tokenizer

QUIET = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def images() -> tuple[Task, nn.Module, Any]:
    task = small_runs.make_task("cnn")
    return task, task.build_model(), (torch.randn(7, 1, 4, 4).double(), torch.arange(7) % 3)


def comments() -> tuple[Task, nn.Module, Any]:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    task = TextClassification.from_model(model, tokenizer)
    texts = ["good", "a bad day", "", "good day", "bad"]
    return task, model, task.batch(texts, [n % len(CLASSES) for n in range(5)])


def chats(total: int | None = None) -> tuple[Task, nn.Module, Any]:
    """Examples with 1 to 4 tokens that count, one of them with none."""
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer, **QUIET).double()
    task = CausalLM.from_model(model, tokenizer)
    batch = task.batch(texts=["one and two", "one", "two and three and four", "one two", "three"])
    batch["labels"][1] = -100
    if total is not None:
        batch["num_items_in_batch"] = torch.tensor(total)
    return task, model, batch


def gradient(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("make", "rounding"),
    # transformers computes the loss of a language model in float32, whatever the model's own is.
    [(images, 1e-12), (comments, 1e-12), (chats, 1e-6), (partial(chats, 9), 1e-6)],
)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_parts_of_a_batch_have_its_gradient_and_its_loss(
    make: Callable[[], tuple[Task, nn.Module, Any]],
    rounding: float,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, model, batch = make()
    model.train()
    loss = partial(loss_of, task.loss, model, rules=StepRules())
    whole = loss(batch)
    (whole / 2).backward()
    expected = gradient(model)
    model.zero_grad()
    monkeypatch.setattr(shared_batches.processes, "count", lambda: count)
    told = 0.0
    for number in range(count):
        monkeypatch.setattr(shared_batches.processes, "number", lambda own=number: own)
        told += SplitGradient(task, model, "first").backward(batch, loss, 2.0)
    assert told == pytest.approx(float(whole.detach()), rel=rounding)
    for name, found in gradient(model).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=10 * rounding)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("batch norm", r"BatchNorm\w+ '\d' couples the examples"),
        ("encoder", "Dropout 'dropout' draws random numbers"),
        ("averaging", "buffer '0.mean' changes with every pass"),
    ],
)
def test_examples_that_are_not_on_their_own_are_refused_by_name(network: str, why: str) -> None:
    task = small_runs.make_task(network)
    model = task.build_model().train()
    batch = torch.randn(6, 1, 4, 4).double(), torch.arange(6) % 3
    with pytest.raises(
        Refused, match=rf"(?s)stage 'first' cannot be split.*{why}.*--split-batches"
    ):
        SplitGradient(task, model, "first").backward(batch, partial(task.loss, model), 1.0)


def test_batch_norm_and_dropout_in_evaluation_mode_are_no_hindrance() -> None:
    for network in ("batch norm", "encoder"):
        shared_batches.check_splittable(small_runs.make_task(network).build_model().eval(), "first")


class Summed(small_runs.ImageClassification):
    """A loss that is no mean of anything."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss(model, batch) * len(batch[0])


class Told(Summed):
    """Says so."""

    def loss_terms(self, batch: Any) -> float:
        return 0.0


@pytest.mark.parametrize("kind", [Summed, Told])
def test_a_loss_is_a_mean_over_examples_unless_the_task_says_what_else(
    kind: type[Summed], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_runs.make_task("cnn")
    task = kind(plain.classes, plain.image_shape, model=plain.model, make_model=plain.make_model)
    model = task.build_model()
    batch = torch.randn(6, 1, 4, 4).double(), torch.arange(6) % 3
    monkeypatch.setattr(shared_batches.processes, "count", lambda: 2)
    split = SplitGradient(task, model, "first")
    if kind is Summed:
        with pytest.raises(Refused, match=r"its parts give .* loss_terms"):
            split.backward(batch, partial(task.loss, model), 1.0)
    else:
        split.backward(batch, partial(task.loss, model), 1.0)
