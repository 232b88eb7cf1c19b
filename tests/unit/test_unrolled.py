"""Unrolled derivatives against central differences of the whole replay, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import Refused, no_progress
from stagelens.derivatives.curvature_kinds import Curvature
from stagelens.derivatives.forward_mode import Reading, final_tangents
from stagelens.derivatives.trajectory import DerivativeOptions
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.protocol import Estimator
from stagelens.estimators.registry import make_estimator
from stagelens.estimators.subtraction import subtract_tangent
from stagelens.estimators.unrolled import UnrolledJump, UnrolledScale
from stagelens.runs.run import Run
from tests.support.central_differences import central_difference
from tests.support.grids import pairs
from tests.support.loops import differing
from tests.support.small_runs import Optimizer, Phase, record


def sgd(**settings: Any) -> Optimizer:
    return lambda groups: torch.optim.SGD(groups, **{"lr": 0.1, **settings})


def adam(**settings: Any) -> Optimizer:
    return lambda groups: torch.optim.Adam(groups, **{"lr": 0.02, "eps": 1e-4, **settings})


def adamw(**settings: Any) -> Optimizer:
    return lambda groups: torch.optim.AdamW(groups, **{"lr": 0.02, "eps": 1e-4, **settings})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


OPTIMIZERS = {
    "sgd": sgd(),
    "momentum": sgd(momentum=0.9, weight_decay=0.1),
    "dampening": sgd(momentum=0.8, dampening=0.3, weight_decay=0.1),
    "nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": adam(weight_decay=0.1),
    "adamw": adamw(betas=(0.8, 0.95), weight_decay=0.1),
}
NETWORKS = ["dead units", "cnn", "batch norm", "encoder", "branch"]


def cosine(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.03 * (1 - step / 8)


def moving_betas(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["betas"] = (0.8 + 0.02 * step, 0.95 + 0.005 * step)


def relative_error(estimate: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    gap = size = 0.0
    for name, tensor in truth.items():
        own = estimate.get(name, torch.zeros_like(tensor))
        gap += float((own - tensor).square().sum())
        size += float(tensor.square().sum())
    return (gap / size) ** 0.5


def check(run: Run, accuracy: float = 1e-6) -> None:
    readings: list[Reading] = ["jump", "scale"]
    for reading in readings:
        tangents = final_tangents(run, run.stages, reading)
        for stage in run.stages:
            truth = central_difference(run, stage, reading)
            error = relative_error(tangents[stage.name].values, truth)
            assert error < accuracy, (reading, stage.name, error)


@pytest.mark.parametrize(("optimizer", "network"), pairs(OPTIMIZERS, NETWORKS))
def test_derivatives_equal_central_differences_of_the_replay(
    tmp_path: Path, optimizer: str, network: str
) -> None:
    """A new optimiser, then a carried one with another schedule, then a new one."""
    make = OPTIMIZERS[optimizer]
    phases = [Phase("one", make), Phase("two", None, 4, schedule=cosine), Phase("three", make)]
    check(record(tmp_path / "run", network, phases))


def freeze_first(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


def freeze_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    one, *rest = model.parameters()
    return [{"params": rest}, {"params": [one], "lr": 0.005, "weight_decay": 0.3}]


STRUCTURES = {
    "clipping": ("cnn", {"clip_norm": 0.3}, {}),
    "accumulation": ("encoder", {"accumulation": 3}, {}),
    "accumulated statistics": ("batch norm", {"accumulation": 2}, {}),
    "groups": ("dead units", {"groups": two_groups}, {}),
    "frozen later": ("cnn", {}, {"prepare": freeze_first}),
    "frozen statistics": ("batch norm", {}, {"prepare": freeze_statistics}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "optimizer"), pairs(STRUCTURES, ["momentum", "adam", "adamw"])
)
def test_derivatives_hold_whatever_a_stage_does(
    tmp_path: Path, structure: str, optimizer: str
) -> None:
    network, always, later = STRUCTURES[structure]
    make = OPTIMIZERS[optimizer]
    phases = [
        Phase("one", make, **always),  # type: ignore[arg-type]
        Phase("two", None, 4, **always),  # type: ignore[arg-type]
        Phase("three", make, 4, **{**always, **later}),  # type: ignore[arg-type]
    ]
    check(record(tmp_path / "run", network, phases))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_head_appears_in_the_second_stage(tmp_path: Path, optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    phases = [Phase("a", make, network="head a"), Phase("b", make, network="head b")]
    run = record(tmp_path / "run", "head a", phases)
    check(run)
    without = next(iter(UnrolledJump().counterfactuals(run, run.stages[:1], no_progress)))
    assert without.weights is not None
    assert without.weights.keys() == run.last.end().model.keys()


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_betas_move_and_their_bias_masses_follow(tmp_path: Path, optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    phases = [
        Phase("one", make, schedule=moving_betas),
        Phase("two", None, schedule=moving_betas),
        Phase("three", None, schedule=cosine),
    ]
    check(record(tmp_path / "run", "cnn", phases))


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["jump", "scale"])
@pytest.mark.parametrize("network", ["encoder", "batch norm"])
def test_a_stage_does_not_depend_on_which_others_are_asked_for_or_when(
    tmp_path: Path, reading: Reading, network: str
) -> None:
    make = OPTIMIZERS["adamw"]
    phases = [Phase("one", make), Phase("two", None), Phase("three", make, clip_norm=0.5)]
    run = record(tmp_path / "run", network, phases, dtype="float32")
    together = final_tangents(run, run.stages, reading)
    backwards = final_tangents(run, run.stages[::-1], reading)
    for stage in run.stages:
        alone = final_tangents(run, [stage], reading)[stage.name].values
        for other in (alone, backwards[stage.name].values):
            known = {n: t for n, t in together[stage.name].values.items() if n in other}
            assert differing(known, other) == []


def test_splitting_batches_does_not_change_the_derivative(tmp_path: Path) -> None:
    make = OPTIMIZERS["adamw"]
    found = []
    for accumulation in (1, 2, 3):
        phases = [Phase(n, make, accumulation=accumulation) for n in ("one", "two")]
        run = record(tmp_path / str(accumulation), "cnn", phases)
        found.append(final_tangents(run, run.stages, "scale")["one"].values)
    for other in found[1:]:
        assert relative_error(other, found[0]) < 1e-10


@pytest.mark.parametrize("estimator", [UnrolledJump(), UnrolledScale()], ids=lambda e: e.name)
@pytest.mark.parametrize("network", ["cnn", "batch norm"])
def test_without_the_last_stage_the_model_is_its_start(
    tmp_path: Path, estimator: Estimator, network: str
) -> None:
    phases = [Phase("one", OPTIMIZERS["adam"]), Phase("two", None)]
    run = record(tmp_path / "run", network, phases)
    (without,) = estimator.counterfactuals(run, [run.last], no_progress)
    assert without.weights is not None
    assert differing(without.weights, run.last.start().model) == []
    assert without.trust.trust == "exact"


def test_the_jump_of_the_last_stage_is_its_change(tmp_path: Path) -> None:
    phases = [Phase("one", OPTIMIZERS["adam"]), Phase("two", None)]
    run = record(tmp_path / "run", "batch norm", phases)
    tangent = final_tangents(run, [run.last], "jump")["two"].values
    start, end = run.last.start().model, run.last.end().model
    change = {n: end[n] - start[n] for n in end if end[n].is_floating_point()}
    assert differing(tangent, change) == []


def test_float64_derivatives_of_a_float32_run_are_close_to_its_own(tmp_path: Path) -> None:
    make = OPTIMIZERS["adamw"]
    phases = [Phase("one", make), Phase("two", make)]
    run = record(tmp_path / "run", "encoder", phases, dtype="float32")
    single = final_tangents(run, run.stages, "scale")["one"].values
    double = final_tangents(run, run.stages, "scale", DerivativeOptions("float64"))["one"].values
    assert next(iter(single.values())).dtype == torch.float32
    assert next(iter(double.values())).dtype == torch.float64
    assert 1e-12 < relative_error(single, double) < 1e-3


def test_gauss_newton_is_exact_on_a_linear_model_and_only_there(tmp_path: Path) -> None:
    make = OPTIMIZERS["momentum"]
    errors = {}
    for network in ("linear", "cnn"):
        phases = [Phase("one", make), Phase("two", make)]
        run = record(tmp_path / network, network, phases)
        exact = final_tangents(run, run.stages, "scale")["one"].values
        options = DerivativeOptions(curvature="gauss-newton")
        other = final_tangents(run, run.stages, "scale", options)["one"].values
        errors[network] = relative_error(other, exact)
    assert errors["linear"] < 1e-12
    assert 1e-4 < errors["cnn"] < 1


@pytest.mark.parametrize(("curvature", "told"), [("exact", False), ("gauss-newton", True)])
def test_with_other_curvature_the_neglected_term_is_said_to_hold_its_error_too(
    tmp_path: Path, curvature: Curvature, told: bool
) -> None:
    phases = [Phase(name, OPTIMIZERS["momentum"]) for name in ("one", "two")]
    run = record(tmp_path / "run", "linear", phases)
    (found,) = UnrolledScale(curvature=curvature).counterfactuals(run, run.stages[:1], no_progress)
    assert ("also holds what that leaves out to first order" in found.trust.reason) == told


def test_plain_sgd_is_what_the_mismatch_computes(tmp_path: Path) -> None:
    """On a run of plain SGD it is the derivative; on AdamW it is not."""
    errors = {}
    for optimizer in ("sgd", "adamw"):
        make = OPTIMIZERS[optimizer]
        run = record(tmp_path / optimizer, "cnn", [Phase("one", make), Phase("two", make)])
        right = final_tangents(run, run.stages, "scale")["one"].values
        options = DerivativeOptions(plain_sgd=True)
        errors[optimizer] = relative_error(
            final_tangents(run, run.stages, "scale", options)["one"].values, right
        )
    assert errors["sgd"] < 1e-12
    assert errors["adamw"] > 0.3


def test_a_derivative_that_explodes_is_refused_with_its_size(tmp_path: Path) -> None:
    phases = [
        Phase("one", sgd(lr=0.5, momentum=0.9)),
        Phase("two", sgd(lr=1.5, momentum=0.9), steps=40),
        Phase("three", sgd(lr=1e-3)),
    ]
    run = record(tmp_path / "run", "cnn", phases)
    found = {
        one.stage: one for one in UnrolledJump().counterfactuals(run, run.stages[:2], no_progress)
    }
    assert found["one"].weights is None
    assert found["one"].trust.trust == "refused"
    assert "times as long as the stage's own change" in found["one"].trust.reason
    assert found["two"].weights is not None


def test_derivatives_through_sgd_near_the_edge_of_stability_are_refused(tmp_path: Path) -> None:
    def refused(rate: float) -> list[bool]:
        phases = [Phase("one", sgd()), Phase("two", sgd(lr=rate, momentum=0.9), steps=60)]
        run = record(tmp_path / f"{rate}", "cnn", phases)
        found = list(counterfactuals(run, UnrolledScale(), run.stages))
        reasons = [one.trust.reason for one in found if one.weights is None]
        assert all("Stage two trained near the edge of stability" in reason for reason in reasons)
        return [one.weights is None for one in found]

    assert refused(0.2) == [True, False]
    assert refused(1e-4) == [False, False]


def test_variances_stay_positive() -> None:
    final = {"1.running_var": torch.tensor([1.0, 1.0, 2.0]), "n": torch.tensor(7)}
    tangent = {"1.running_var": torch.tensor([1e-6, 50.0, -3.0])}
    without = subtract_tangent(final, tangent)
    torch.testing.assert_close(without["1.running_var"], torch.tensor([1 - 1e-6, 1 / 51, 5.0]))
    assert without["n"] == 7


def test_costs_are_counted_in_replays_of_the_later_stages(tmp_path: Path) -> None:
    make = OPTIMIZERS["sgd"]
    run = record(tmp_path / "run", "cnn", [Phase("one", make, 4), Phase("two", make, 8)])
    made = {
        UnrolledJump(neglected=False): 3.0,
        UnrolledScale(neglected=False): 4.5,
        # Another product at every later step, and a gradient at each of so few.
        UnrolledJump(): 6.0,
        UnrolledScale(): 7.5,
    }
    for estimator, cost in made.items():
        one = next(iter(estimator.counterfactuals(run, run.stages[:1], no_progress)))
        assert one.trust.cost == pytest.approx(cost)
        assert one.trust.seconds > 0
        assert one.trust.trust == "estimated"


@pytest.mark.parametrize(
    ("network", "dtype", "words"),
    [
        ("fused", "float32", 'attn_implementation="eager"'),
        ("averaging", "float32", "buffer 0.mean changes during stage"),
        ("cnn", "bfloat16", "trained in bfloat16"),
    ],
)
def test_what_has_no_derivative_is_refused_with_a_remedy(
    tmp_path: Path, network: str, dtype: str, words: str
) -> None:
    make = OPTIMIZERS["sgd"]
    run = record(tmp_path / "run", network, [Phase("one", make), Phase("two", make)], dtype=dtype)
    with pytest.raises(Refused, match="use coarse-replay or replay") as refusal:
        final_tangents(run, run.stages, "jump")
    assert words in str(refusal.value)


def test_both_readings_can_be_asked_for_by_name(tmp_path: Path) -> None:
    make = OPTIMIZERS["adamw"]
    run = record(tmp_path / "run", "cnn", [Phase("one", make), Phase("two", make)])
    for name in ("unrolled-jump", "unrolled-scale"):
        one, two = counterfactuals(run, make_estimator(name), run.stages)
        assert (one.trust.trust, two.trust.trust) == ("estimated", "exact")
        assert one.trust.estimator == name
