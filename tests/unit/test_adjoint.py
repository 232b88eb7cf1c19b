"""The reverse sweep: it equals forward mode, and its parts sum to the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stagelens.analyses.contributions.first_order import CARRIED, behaviour_gradient, contributions
from stagelens.contracts import Example, NotSeparable, Refused
from stagelens.derivatives.forward_mode import final_tangents
from stagelens.derivatives.loss_parts import Split
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.runs.run import Run
from stagelens.tasks.image_classification import ImageClassification
from stagelens.tasks.transformer_task import IGNORED
from tests.support.grids import pairs
from tests.support.small_runs import CLASSES, SHAPE, Optimizer, Phase, record
from tests.support.small_texts import CLASSES as LABELS
from tests.support.small_texts import TEXTS, classification, language

DOUBLE = DerivativeOptions("float64")


def momentum(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 0.1, momentum=0.9, dampening=0.2, weight_decay=0.1)


def nesterov(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)


def adam(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, 0.02, eps=1e-4, weight_decay=0.1)


def adamw(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.1)


def plain(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 0.1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def phases(optimizer: Optimizer, **settings: object) -> list[Phase]:
    """A new optimiser, then a carried one, then a new one."""
    return [
        Phase("one", optimizer, 5, **settings),  # type: ignore[arg-type]
        Phase("two", None, 4, **settings),  # type: ignore[arg-type]
        Phase("three", optimizer, 3, **settings),  # type: ignore[arg-type]
    ]


def some_examples(count: int = 3) -> list[Example]:
    images = np.random.default_rng(0).normal(size=(count, *SHAPE[1:]))
    return [
        Example(str(i), {"image": image}, label=CLASSES[i % 3]) for i, image in enumerate(images)
    ]


def linearised(run: Run, behaviour: str = "margin") -> dict[str, float]:
    """``grad y . dtheta`` per stage, dtheta by forward mode."""
    last = LinearStage(run, run.last, active_names(run, run.stages), DOUBLE)
    _, slopes = behaviour_gradient(run, last, behaviour, some_examples())
    tangents = final_tangents(run, run.stages, "scale", DOUBLE)
    return {
        stage: float(sum((slopes[n] * t).sum() for n, t in tangent.values.items() if n in slopes))
        for stage, tangent in tangents.items()
    }


@pytest.mark.parametrize(
    ("optimizer", "network"),
    pairs(
        [momentum, nesterov, adam, adamw], ["dead units", "cnn", "batch norm", "encoder", "branch"]
    ),
)
@pytest.mark.parametrize("clip_norm", [None, 0.1], ids=["unclipped", "clipped"])
def test_steps_sum_to_the_linearised_scale_effect_of_their_stage(
    tmp_path: Path, optimizer: Optimizer, network: str, clip_norm: float | None
) -> None:
    run = record(tmp_path / "run", network, phases(optimizer, clip_norm=clip_norm))
    steps = contributions(run, "margin", some_examples(), options=DOUBLE).steps
    sums = steps.groupby("stage")["contribution"].sum()
    truth = linearised(run)
    scale = max(map(abs, truth.values()))
    for stage, effect in truth.items():
        assert abs(sums[stage] - effect) < 1e-9 * scale, stage


def test_steps_come_in_training_order_with_their_numbers(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "cnn", phases(adamw))
    steps = contributions(run, "loss", some_examples(1), options=DOUBLE).steps
    assert list(steps.columns) == ["stage", "step", "contribution"]
    assert list(zip(steps["stage"], steps["step"], strict=True)) == [
        (stage.name, number) for stage in run.stages for number in range(stage.steps)
    ]


@pytest.mark.parametrize(
    ("optimizer", "network"),
    pairs([plain, momentum, nesterov, adam, adamw], ["dead units", "encoder", "branch"]),
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_examples_and_the_carried_row_sum_to_the_step(
    tmp_path: Path, optimizer: Optimizer, network: str, accumulation: int
) -> None:
    plan = phases(optimizer, clip_norm=0.2, accumulation=accumulation)
    run = record(tmp_path / "run", network, plan)
    found = contributions(run, "margin", some_examples(), options=DOUBLE, with_examples=True)
    assert found.examples is not None
    sums = found.examples.groupby(["stage", "step"])["contribution"].sum()
    steps = found.steps.set_index(["stage", "step"])["contribution"]
    pd.testing.assert_series_equal(
        sums.sort_index(), steps.sort_index(), rtol=1e-9, atol=1e-12 * steps.abs().max()
    )
    assert (found.examples["part"] == "example").sum() == 12 * 6
    carried = found.examples[found.examples["part"] == CARRIED]["contribution"]
    if optimizer is plain:
        assert carried.abs().max() < 1e-12 * steps.abs().max()
    else:
        assert carried.abs().max() > 1e-3 * steps.abs().max()


def test_an_example_is_credited_with_its_own_gradient(tmp_path: Path) -> None:
    """In a single step of plain SGD, example i contributes -eta/B grad y . grad loss_i."""
    run = record(tmp_path / "run", "cnn", [Phase("one", plain, steps=1)])
    found = contributions(run, "margin", some_examples(), options=DOUBLE, with_examples=True)
    last = LinearStage(run, run.last, active_names(run, run.stages), DOUBLE)
    _, slopes = behaviour_gradient(run, last, "margin", some_examples())
    images, labels = run.last.read_steps()[0].batches[0].batch  # type: ignore[index]
    model = last.loss.model
    last.loss.place(last.start.values)
    expected = []
    for image, label in zip(images, labels, strict=True):
        loss = run.task.loss(model, (image[None], label[None])) / len(images)
        loss.backward()
        own = {n: p.grad for n, p in model.named_parameters()}
        expected.append(-0.1 * float(sum((own[n] * slopes[n]).sum() for n in own)))  # type: ignore[operator]
        model.zero_grad()
    assert found.examples is not None
    shares = found.examples[found.examples["part"] == "example"]["contribution"]
    np.testing.assert_allclose(shares.to_numpy(), expected, rtol=1e-9)


def test_models_with_batch_norm_in_training_mode_give_steps_only(tmp_path: Path) -> None:
    def freeze(model: torch.nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()

    plan = [Phase("free", adamw, 4), Phase("frozen", adamw, 4, prepare=freeze)]
    run = record(tmp_path / "run", "batch norm", plan)
    found = contributions(run, "margin", some_examples(), options=DOUBLE, with_examples=True)
    assert list(found.steps_only) == ["free"]
    assert found.examples is not None
    assert set(found.examples["stage"]) == {"frozen"}
    truth = linearised(run)
    sums = found.steps.groupby("stage")["contribution"].sum()
    for stage, effect in truth.items():
        assert abs(sums[stage] - effect) < 1e-9 * abs(effect), stage


@pytest.mark.parametrize("spacing", [1, 2, 4, 100])
def test_checkpoint_spacing_does_not_change_anything(tmp_path: Path, spacing: int) -> None:
    run = record(tmp_path / "run", "encoder", phases(adamw, clip_norm=0.2))
    usual = contributions(run, "margin", some_examples(), with_examples=True)
    other = contributions(run, "margin", some_examples(), with_examples=True, spacing=spacing)
    pd.testing.assert_frame_equal(usual.steps, other.steps, check_exact=True)
    pd.testing.assert_frame_equal(usual.examples, other.examples, check_exact=True)


def test_splitting_a_batch_into_micro_batches_does_not_change_anything(tmp_path: Path) -> None:
    tables = []
    for accumulation in (1, 2, 3):
        run = record(tmp_path / str(accumulation), "cnn", phases(adam, accumulation=accumulation))
        found = contributions(run, "margin", some_examples(), with_examples=True)
        tables.append(found.examples)
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other, rtol=1e-9, atol=1e-12)


def test_a_group_is_the_mean_of_its_examples(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "cnn", phases(adamw))
    group = contributions(run, "margin", some_examples(3), options=DOUBLE)
    single = [contributions(run, "margin", [one], options=DOUBLE) for one in some_examples(3)]
    mean = sum(one.steps["contribution"] for one in single) / 3
    np.testing.assert_allclose(group.steps["contribution"], mean, rtol=1e-9, atol=1e-12)
    assert group.value == pytest.approx(sum(one.value for one in single) / 3)


def test_a_head_that_appears_later_takes_no_credit_back(tmp_path: Path) -> None:
    plan = [Phase("a", adamw, 4, network="head a"), Phase("b", adamw, 4, network="head b")]
    run = record(tmp_path / "run", "head a", plan)
    steps = contributions(run, "margin", some_examples(), options=DOUBLE).steps
    sums = steps.groupby("stage")["contribution"].sum()
    for stage, effect in linearised(run).items():
        assert abs(sums[stage] - effect) < 1e-9 * abs(effect)


def test_what_has_no_value_is_refused(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "cnn", phases(plain))
    with pytest.raises(Refused, match="no behaviour 'colour'; use one of"):
        contributions(run, "colour", some_examples())
    unlabelled = [Example("x", some_examples()[0].input)]
    with pytest.raises(Refused, match="examples with labels"):
        contributions(run, "margin", unlabelled)


class LossInside(nn.Module):
    """Computes its own loss, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1)).square().mean()


class OwnLoss(ImageClassification):
    """A task that takes the model's loss."""

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return model(batch[0])


def test_a_loss_inside_the_model_has_no_examples_shares_and_no_gauss_newton() -> None:
    task = OwnLoss(CLASSES, SHAPE, make_model=lambda _config: LossInside())
    batch = (torch.randn(4, *SHAPE).double(), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(Refused, match="ask for steps and exact curvature"):
        Split.of(task.loss, task.build_model(), batch, 1)


@pytest.mark.parametrize("kind", ["classifier", "language model", "completions"])
def test_a_models_own_cross_entropy_is_told_apart_by_examples(kind: str) -> None:
    """Example i of n_i scored tokens (a classifier's: 1) has the gradient n_i/n grad loss_i."""
    task, model = classification() if kind == "classifier" else language()
    if kind == "completions":
        batch = task.batch(prompts=["two and", "the", ""], completions=[" two", " cat sat", "sing"])
    else:
        batch = task.batch(TEXTS[:3], *([list(LABELS)] if kind == "classifier" else []))
    model = model.double().eval()
    x = list(model.parameters())
    v = [torch.randn_like(p) for p in x]
    split = Split.of(task.loss, model, batch, 1)
    shares = split.per_example(x, v, torch.arange(3))
    own, counts = [], []
    for row in range(3):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        gradient = torch.autograd.grad(task.loss(model, one), x, allow_unused=True)
        pairs = [(g, w) for g, w in zip(gradient, v, strict=True) if g is not None]
        own.append(sum(float((g * w).sum()) for g, w in pairs))
        scored = one["labels"] if kind == "classifier" else one["labels"][:, 1:]
        counts.append(int((scored != IGNORED).sum()))
    expected = np.asarray(own) * counts / np.sum(counts)
    # transformers computes a language model's loss in float32, whatever the model's precision.
    close = {"rtol": 1e-9, "atol": 1e-12} if kind == "classifier" else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(shares.numpy(), expected, **close)
    whole = torch.autograd.grad(split.loss, x, allow_unused=True)
    plain = torch.autograd.grad(task.loss(model, batch), x, allow_unused=True)
    for mine, other in zip(whole, plain, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, **close)


class Decayed(ImageClassification):
    """Weighs its parameters in the loss, beside the outputs."""

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return super().loss(model, batch) + sum(p.square().sum() for p in decayed.parameters())


decayed = nn.Linear(16, 3).double()


def test_a_loss_that_looks_past_the_outputs_is_not_told_apart() -> None:
    task = Decayed(CLASSES, SHAPE, make_model=lambda _c: nn.Sequential(nn.Flatten(), decayed))
    batch = (torch.randn(4, *SHAPE).double(), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(NotSeparable, match="ask for steps"):
        Split.of(task.loss, task.build_model(), batch, 1)


class NamedInputs(nn.Module):
    """Computes its loss itself, naming what it passes to ``cross_entropy``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(images.flatten(1))
        return nn.functional.cross_entropy(target=labels, input=logits)


class TakesNamedInputs(ImageClassification):
    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = model(*batch)
        return loss


def test_a_loss_inside_the_model_is_split_however_its_input_is_passed() -> None:
    task = TakesNamedInputs(CLASSES, SHAPE, make_model=lambda _c: NamedInputs())
    model = task.build_model()
    batch = (torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0]))
    split = Split.of(task.loss, model, batch, 1)
    assert [tuple(output.shape) for output in split.outputs] == [(4, 3)]
    plain = torch.autograd.grad(task.loss(model, batch), list(model.parameters()))
    for own, other in zip(
        torch.autograd.grad(split.loss, list(model.parameters())), plain, strict=True
    ):
        torch.testing.assert_close(own, other)
