"""Products of every kind of curvature are those of the explicit matrix, forward and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from stagelens.analyses.contributions.first_order import behaviour_gradient, contributions
from stagelens.contracts import Refused
from stagelens.derivatives.curvature import StageLoss
from stagelens.derivatives.curvature_kinds import CURVATURES, Curvature
from stagelens.derivatives.forward_mode import final_tangents
from stagelens.derivatives.loss_parts import Split
from stagelens.derivatives.products import EmpiricalFisher, Pass
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.runs.run import Run
from stagelens.runs.step_records import MicroBatch, StepRecord
from stagelens.tasks.transformer_task import IGNORED
from tests.support.small_runs import Phase, record
from tests.support.small_texts import TEXTS, language
from tests.unit.test_adjoint import DOUBLE, adamw, momentum, phases, some_examples

cross_entropy = nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _one_step(path: Path, network: str, accumulation: int = 2) -> Run:
    return record(path, network, [Phase("one", momentum, steps=1, accumulation=accumulation)])


def _loss(run: Run, kind: Curvature) -> tuple[StageLoss, dict[str, Tensor], StepRecord]:
    """A stage's loss, where it starts, and its first step."""
    own = LinearStage(
        run, run.last, active_names(run, run.stages), DerivativeOptions("float64", kind)
    )
    values = {name: tensor.clone() for name, tensor in own.start.values.items()}
    return own.loss, values, run.last.read_steps()[0]


def _stacked(loss: StageLoss, vectors: dict[str, Tensor]) -> Tensor:
    return torch.cat([vectors[name].flatten(1) for name in loss.names], 1)


def _identity(loss: StageLoss, values: dict[str, Tensor]) -> dict[str, Tensor]:
    sizes = [values[name].numel() for name in loss.names]
    blocks = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
    pairs = zip(loss.names, blocks, strict=True)
    return {name: block.reshape(-1, *values[name].shape) for name, block in pairs}


def _matrices(run: Run, kind: Curvature) -> tuple[Tensor, Tensor]:
    """The curvature of the first step, a row per unit vector: forward, and back."""
    loss, values, step = _loss(run, kind)
    units = _identity(loss, values)
    forward = _stacked(loss, loss.push(values, step, units).d_gradient)
    nothing = loss.push(values, step, {}).statistics
    zeros = [(torch.zeros(len(forward), *s.mean.shape, dtype=torch.float64),) * 2 for s in nothing]
    pulled = loss.pull(values, step, units, zeros)
    return forward, _stacked(loss, pulled) if pulled else torch.zeros_like(forward)


def _explicit(run: Run, kind: Curvature) -> Tensor:
    """The same by ``torch.func``, from the definitions of :mod:`~.derivatives.products`."""
    loss, values, step = _loss(run, kind)
    model = run.task.build_model().train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Which torch.func cannot write to; in training mode they are not read.
            module.running_mean = module.running_var = module.num_batches_tracked = None
    fixed = {n: t for n, t in values.items() if n not in loss.names}
    shapes = [values[name].shape for name in loss.names]

    def outputs(flat: Tensor, images: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        own = {n: p.reshape(s) for n, p, s in zip(loss.names, parts, shapes, strict=True)}
        every = {n: t for n, t in {**fixed, **own}.items() if "running" not in n}
        return functional_call(model, every, (images,))

    at = torch.cat([values[name].flatten() for name in loss.names])
    total = torch.zeros(len(at), len(at), dtype=torch.float64)
    assert step.batches is not None
    for micro in step.batches:
        images, labels = micro.batch
        share = 1 / len(step.batches)
        if kind == "exact":
            own = hessian(lambda f, i=images, y=labels: cross_entropy(outputs(f, i), y))(at)
        elif kind == "gauss-newton":
            j = jacrev(lambda f, i=images: outputs(f, i).flatten())(at)
            z = outputs(at, images).flatten()
            curved = hessian(lambda o, y=labels: cross_entropy(o.reshape(len(y), -1), y))(z)
            own = j.T @ curved @ j
        else:
            slopes = jacrev(
                lambda f, i=images, y=labels: cross_entropy(outputs(f, i), y, reduction="none")
            )(at)
            own = slopes.T @ slopes / len(labels)
        total += share * own
    return total


@pytest.mark.parametrize("network", ["cnn", "dead units"])
@pytest.mark.parametrize("kind", ["exact", "gauss-newton", "empirical-fisher"])
def test_products_are_those_of_the_explicit_matrix(
    tmp_path: Path, network: str, kind: Curvature
) -> None:
    run = _one_step(tmp_path / "run", network)
    forward, back = _matrices(run, kind)
    truth = _explicit(run, kind)
    scale = float(truth.abs().max())
    torch.testing.assert_close(forward, truth, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(back, forward, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(forward, forward.T, rtol=0, atol=1e-12 * scale)
    lowest = float(torch.linalg.eigvalsh(truth)[0])
    if kind == "exact":
        assert lowest < -1e-3 * scale  # which is why its path can blow up
    else:
        assert lowest > -1e-12 * scale


def test_no_curvature_is_zero(tmp_path: Path) -> None:
    forward, back = _matrices(_one_step(tmp_path / "run", "cnn"), "none")
    assert not forward.any()
    assert not back.any()


def test_gauss_newton_goes_through_batch_norm_and_the_fisher_is_refused(tmp_path: Path) -> None:
    run = _one_step(tmp_path / "run", "batch norm")
    loss, values, _ = _loss(run, "gauss-newton")
    kept = [name for name in loss.names if "running" not in name]
    size = sum(values[name].numel() for name in kept)
    order = torch.tensor(
        [place for name in loss.names for place in [name in kept] * values[name].numel()]
    )
    forward, back = (matrix[order][:, order] for matrix in _matrices(run, "gauss-newton"))
    truth = _explicit(run, "gauss-newton")[order][:, order]
    assert len(truth) == size
    scale = float(truth.abs().max())
    torch.testing.assert_close(forward, truth, rtol=0, atol=1e-11 * scale)
    torch.testing.assert_close(back, truth, rtol=0, atol=1e-11 * scale)
    with pytest.raises(Refused, match=r"BatchNorm in training mode \(1\) couples"):
        _loss(run, "empirical-fisher")


CONVEX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "squared error": lambda z, y: (z - nn.functional.one_hot(y, 3)).square().mean(),
    "huber": lambda z, y: nn.functional.huber_loss(z, nn.functional.one_hot(y, 3).double()),
    "fourth power": lambda z, y: (z - y[:, None]).pow(4).sum(1).mean(),
}


@pytest.mark.parametrize("name", CONVEX)
def test_gauss_newton_is_the_hessian_of_a_linear_model_with_any_convex_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    images, labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return CONVEX[name](module(batch[0]), batch[1])

    x = list(model.parameters())
    v = [torch.randn_like(p) for p in x]
    split = Split.of(loss, model, (images, labels), 2)
    found = split.gauss_newton(x, v)
    slopes = torch.autograd.grad(loss(model, (images, labels)) / 2, x, create_graph=True)
    truth = torch.autograd.grad(slopes, x, v, allow_unused=True, materialize_grads=True)
    for own, other in zip(found, truth, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)


def test_the_fisher_of_texts_is_over_texts_and_divides_by_their_tokens(tmp_path: Path) -> None:
    """``sum_i (grad l_i)(grad l_i)^T / n``: l_i of a text is its sum, n the number of tokens."""
    task, model = language()
    model = model.double().eval()
    batch = task.batch(TEXTS[:3])
    x = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    v = [torch.randn_like(p) for p in x]
    split = Split.of(task.loss, model, batch, 1)
    micro = MicroBatch(batch=batch)
    run = _one_step(tmp_path / "run", "cnn", accumulation=1)
    fisher = EmpiricalFisher(task, run.last, _RowsAreTexts())  # type: ignore[arg-type]
    found = fisher.times(Pass(micro, x, split.loss, [], split), v)
    expected = [torch.zeros_like(p) for p in x]
    counts = (batch["labels"][:, 1:] != IGNORED).sum(1)
    for row in range(3):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        own = torch.autograd.grad(
            task.loss(model, one) * counts[row], x, allow_unused=True, materialize_grads=True
        )
        dot = sum(float((g * w).sum()) for g, w in zip(own, v, strict=True))
        for total, g in zip(expected, own, strict=True):
            total += dot * g / counts.sum()
    scale = max(float(t.abs().max()) for t in expected)
    for own, other in zip(found, expected, strict=True):
        # transformers computes a language model's loss in float32, whatever its precision.
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5 * scale)


class _RowsAreTexts:
    def owners(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.arange(len(batch["input_ids"]))


@pytest.mark.parametrize("kind", CURVATURES)
@pytest.mark.parametrize("network", ["encoder", "batch norm"])
def test_the_sweep_is_the_transpose_of_forward_mode_with_each(
    tmp_path: Path, network: str, kind: Curvature
) -> None:
    """Clipping, decay, carried moments and running statistics are exact beside all of them."""
    run = record(tmp_path / "run", network, phases(adamw, clip_norm=0.1, accumulation=2))
    options = DerivativeOptions("float64", kind)
    if kind == "empirical-fisher" and network == "batch norm":
        with pytest.raises(Refused, match="the empirical Fisher is not defined"):
            contributions(run, "margin", some_examples(), options=options)
        return
    found = contributions(run, "margin", some_examples(), options=options, with_examples=True)
    sums = found.steps.groupby("stage")["contribution"].sum()
    last = LinearStage(run, run.last, active_names(run, run.stages), options)
    _, slopes = behaviour_gradient(run, last, "margin", some_examples())
    tangents = final_tangents(run, run.stages, "scale", options)
    for stage, tangent in tangents.items():
        effect = sum(float((slopes[n] * t).sum()) for n, t in tangent.values.items())
        assert abs(sums[stage] - effect) < 1e-9 * sums.abs().max(), stage
    if network == "encoder":
        assert found.examples is not None
        whole = found.examples.groupby(["stage", "step"])["contribution"].sum().sort_index()
        steps = found.steps.set_index(["stage", "step"])["contribution"].sort_index()
        np.testing.assert_allclose(whole, steps, rtol=1e-9, atol=1e-12 * steps.abs().max())
    usual = contributions(run, "margin", some_examples(), options=DOUBLE).steps
    different = np.abs(found.steps["contribution"] - usual["contribution"]).max()
    assert (different == 0) == (kind == "exact")
