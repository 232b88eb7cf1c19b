"""What first order neglects, against finite differences of the replay in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stagelens.contracts import Refused
from stagelens.derivatives import windows
from stagelens.derivatives.curvature import Evaluated
from stagelens.derivatives.forward_mode import Reading, final_tangents
from stagelens.derivatives.second_order import add, defect, displaced, probes, stage_probes
from stagelens.derivatives.step import AdamState, SGDState
from stagelens.derivatives.step_map import Layout, State, StateVectors, StepMap
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, active_names
from stagelens.derivatives.windows import Window, WindowEnd, follow
from stagelens.replaying.left_out import RowsOfStage
from stagelens.runs.run import Run
from tests.support.central_differences import final_values
from tests.support.small_runs import Optimizer, Phase, record

PLACES = {0: {1}, 2: {0, 4}, 3: {5}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sgd(rate: float, momentum: float = 0.9) -> Optimizer:
    return lambda groups: torch.optim.SGD(groups, rate, momentum=momentum, weight_decay=0.1)


def adamw(rate: float) -> Optimizer:
    return lambda groups: torch.optim.AdamW(groups, rate, betas=(0.8, 0.95), eps=1e-3)


# Which steps are looked at


def test_probes_stand_for_all_steps_by_their_learning_rates() -> None:
    rates = [0.1 * (step + 1) for step in range(40)] + [0.0] * 5
    found = probes(rates, 8)
    assert len(found) == 8
    assert sum(weight * rates[step] for step, weight in found.items()) == pytest.approx(sum(rates))
    # The second half moves most, so most are looked at there.
    assert sum(step >= 20 for step in found) >= 6
    assert probes([0.1, 0.2], 8) == {0: 1.0, 1: 1.0}
    assert probes([0.0] * 9, 8) == {}


def test_a_group_that_is_held_still_hides_no_step_of_the_others() -> None:
    facts = SimpleNamespace(groups=[{"lr": 0.0}, {"lr": 0.1}])
    stage: Any = SimpleNamespace(read_steps=lambda: SimpleNamespace(facts=lambda _number: facts))
    assert sum(stage_probes(stage, 5, 25, 4).values()) == pytest.approx(20)


# A loss whose derivatives are known: g(x) = A x + c x^2


class Known:
    """A stage of one parameter of three numbers, all of whose losses are the same polynomial."""

    def __init__(self, rule: str, cubic: float, **options: Any) -> None:
        self.matrix = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.7, 0.2], [0.0, 0.2, 1.5]]).double()
        self.cubic = cubic
        self.options = options
        group = SimpleNamespace(parameters=["x"], hyperparameters=options)
        self.stage: Any = SimpleNamespace(
            optimizer=SimpleNamespace(name=rule, groups=[group]),
            facts=SimpleNamespace(clip_norm=None),
        )
        self.loss: Any = SimpleNamespace(
            model=nn.Identity(), names=["x"], gradient=lambda values, _: self.gradient(values)
        )
        self.record: Any = SimpleNamespace(groups=[options], missing=[], step=0)
        x = torch.tensor([0.5, -0.4, 0.3]).double()
        kept: Any = SGDState(x, torch.zeros_like(x))
        if rule != "SGD":
            kept = AdamState(x, 0.1 * x, 0.3 * x**2 + 0.1, torch.tensor(7.0).double())
        self.start = State({"x": kept}, {}, {}, {"x": options.get("betas", (0.0, 0.0))})
        self.layout = Layout(self.stage, self.loss, self.start)

    def gradient(self, values: Mapping[str, Tensor]) -> Evaluated:
        x = values["x"]
        return Evaluated({"x": self.matrix @ x + self.cubic * x**2}, [], {}, [])

    def step(self, state: State) -> StepMap:
        return StepMap(self.stage, self.loss, state, self.record, self.gradient(state.values))

    def tangent(self, state: State, vectors: StateVectors) -> Evaluated:
        dx = vectors.values["x"]
        product = dx @ self.matrix + 2 * self.cubic * state.values["x"] * dx
        return Evaluated({}, [], {"x": product}, [])

    def errors(self, size: float, steps: int = 6) -> tuple[float, float, float]:
        """Length of the true difference after some steps, and how far d and d + e miss it."""
        state, own = self.start, cast(LinearStage, self)
        d, e = self.layout.zeros(1), self.layout.zeros(1)
        d.values["x"] = size * torch.tensor([[1.0, 0.5, -0.7]]).double()
        other = displaced(state, d, 0)
        for _ in range(steps):
            step = self.step(state)
            pushed = step.push(d, self.tangent(state, d))
            found = defect(own, self.record, step, d, pushed, 0)
            e = add(step.push(e, self.tangent(state, e)), 0, found, -1.0)
            d, state, other = pushed, step.after, self.step(other).after
        true = state.values["x"] - other.values["x"]
        first = float((true - d.values["x"][0]).norm())
        second = float((true - d.values["x"][0] - e.values["x"][0]).norm())
        return float(true.norm()), first, second


PLAIN = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False}
MOMENTS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}


def test_a_quadratic_loss_under_sgd_neglects_nothing() -> None:
    size, first, second = Known("SGD", 0.0, **PLAIN).errors(0.3)
    assert first < 1e-15 and second < 1e-15 < size


@pytest.mark.parametrize(
    ("rule", "options"), [("SGD", PLAIN), ("AdamW", MOMENTS), ("Adam", MOMENTS)]
)
def test_the_neglected_term_is_right_to_second_order(rule: str, options: dict[str, Any]) -> None:
    """What d misses shrinks by 4 where the displacement is halved, what d + e misses by 8."""
    known = Known(rule, 0.8, **options)
    large, small = known.errors(2e-3), known.errors(1e-3)
    assert large[1] / small[1] == pytest.approx(4, rel=0.05)
    assert large[2] / small[2] == pytest.approx(8, rel=0.1)
    # To leading order, the neglected term is the error.
    assert small[2] < 0.02 * small[1]


def test_second_moments_stay_positive_beneath_any_displacement() -> None:
    known = Known("AdamW", 0.8, **MOMENTS)
    d = known.layout.zeros(1)
    d.moments["x"]["u"] += 5.0
    kept = displaced(known.start, d, 0).optimised["x"]
    assert isinstance(kept, AdamState) and bool((kept.u > 0).all())
    # What was not displaced is no defect: it is told from the displacement that was made.
    step = known.step(known.start)
    d.moments["x"]["u"][:] = 1e-4
    pushed = step.push(d, known.tangent(known.start, d))
    small = defect(cast(LinearStage, known), known.record, step, d, pushed, 0)
    assert float(small.values["x"].abs().max()) < 1e-6


# Examples left out


def recorded(folder: Path, network: str, optimizer: Optimizer, **settings: Any) -> Run:
    phases = [Phase(name, optimizer, 5, **settings) for name in ("one", "two", "three")]
    return record(folder / "run", network, phases)


def ends(run: Run, windows: list[Window]) -> list[WindowEnd]:
    found: list[WindowEnd] = []
    follow(run, run.stage("two"), PLACES, windows, found.append)
    return found


def truth(run: Run, until: int | None) -> dict[str, Tensor]:
    """What the examples changed within the first steps of the stage, by torch's own optimiser."""
    stage = run.stage("two")
    kept = {step: where for step, where in PLACES.items() if until is None or step < until}
    made = RowsOfStage(run.task, stage, "kept").replay(kept).state.model
    return {name: tensor - made[name] for name, tensor in stage.end().model.items()}


def gap(one: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> float:
    """Length of ``one`` less all the others."""
    left = {n: t - sum(o.get(n, torch.zeros_like(t)) for o in others) for n, t in one.items()}
    return float(sum(t.double().square().sum() for t in left.values())) ** 0.5


@pytest.mark.parametrize(
    ("network", "optimizer", "settings"),
    [
        ("cnn", adamw(0.005), {}),
        ("encoder", sgd(0.05), {}),
        ("cnn", sgd(0.05), {"accumulation": 2, "clip_norm": 0.3}),
        ("encoder", adamw(0.005), {"accumulation": 2, "clip_norm": 0.3}),
    ],
    ids=["adamw", "sgd", "clipped sgd", "clipped adamw"],
)
def test_examples_left_out_of_a_stage_to_second_order(
    tmp_path: Path, network: str, optimizer: Optimizer, settings: dict[str, Any]
) -> None:
    run = recorded(tmp_path, network, optimizer, batch=48, **settings)
    (end,) = ends(run, [Window(0, run.stage("two").steps)])
    true = truth(run, None)
    first = gap(true, end.first_order)
    assert first < 0.4 * gap(true)
    assert gap(true, end.first_order, end.neglected) < 0.25 * first


def test_a_step_by_itself_holds_the_write_in_exactly(tmp_path: Path) -> None:
    """Of one step the term is no estimate, Adam's (1 - b2) (g' - g)^2 included."""
    run = recorded(tmp_path, "cnn", adamw(0.05))
    stage = run.stage("two")
    own = LinearStage(run, stage, active_names(run, [stage]), DerivativeOptions())
    step_record = stage.read_steps()[0]
    evaluated = own.loss.push(own.start.values, step_record, own.layout.zeros(1).values)
    part = own.loss.part(own.start.values, step_record, {1, 3})
    evaluated.d_gradient = {name: tensor[None] for name, tensor in part.items()}
    step = StepMap(stage, own.loss, own.start, step_record, evaluated)
    zeros = own.layout.zeros(1)
    pushed = step.push(zeros, evaluated)
    found = defect(own, step_record, step, zeros, pushed, 0, {1, 3})
    gradient = {name: g - part[name] for name, g in evaluated.gradient.items()}
    other = StepMap(stage, own.loss, own.start, step_record, Evaluated(gradient, [], {}, []))
    for name, kept in step.after.optimised.items():
        moved = other.after.optimised[name]
        assert isinstance(kept, AdamState) and isinstance(moved, AdamState)
        # (1 - b2) (g' - g)^2, where g' - g is minus the examples' part
        write_in = (1 - 0.95) * part[name] ** 2
        torch.testing.assert_close(found.moments[name]["u"][0], write_in, rtol=1e-9, atol=1e-18)
        whole = pushed.values[name][0] - found.values[name][0]
        torch.testing.assert_close(whole, kept.theta - moved.theta, rtol=1e-9, atol=1e-15)
        assert float(found.values[name].abs().max()) > 0


def test_windows_end_where_they_are_told_to_and_share_a_pass(tmp_path: Path) -> None:
    run = recorded(tmp_path, "cnn", sgd(0.02))
    asked = [Window(0, 2), Window(2, 5), Window(0, None)]
    found = {(end.window.begin, end.window.end): end for end in ends(run, asked)}
    assert set(found) == {(0, 2), (2, 5), (0, None)}
    assert [found[key].own.stage.name for key in found] == ["two", "two", "three"]
    for end in found.values():
        alone = ends(run, [end.window])[0]
        assert gap(alone.first_order, end.first_order) < 1e-12 * gap(alone.first_order)
        assert gap(alone.neglected, end.neglected) < 1e-9 * gap(alone.neglected)
    assert found[0, None].gradients > found[2, 5].gradients > 4 * 3


def test_fewer_defects_estimate_the_same_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [Phase("one", sgd(0.02), 2), Phase("two", sgd(0.02), 24)]
    run = record(tmp_path / "run", "encoder", phases)
    window = [Window(0, 24)]
    made = []
    for count in (24, 6):
        monkeypatch.setattr(windows, "PROBES", count)
        made += ends(run, window)
    every, few = made
    assert gap(every.first_order, few.first_order) == 0
    assert few.gradients < every.gradients
    assert gap(every.neglected, few.neglected) < 0.8 * gap(every.neglected)


def test_batch_norm_couples_examples(tmp_path: Path) -> None:
    run = recorded(tmp_path, "batch norm", sgd(0.02))
    with pytest.raises(Refused, match="couples the examples of a batch"):
        ends(run, [Window(0, 5)])


# Stages


def missed(run: Run, stage: str, reading: Reading) -> tuple[float, float]:
    """How far first order, and second order, miss the replay without a stage; relative."""
    found = final_tangents(run, run.stages[:-1], reading, defects=50)[stage]
    final = run.last.end().model
    without = final_values(run, run.stage(stage), "jump", -1.0)
    true = {n: final[n].to(t) - t for n, t in without.items() if final[n].is_floating_point()}
    assert found.neglected is not None
    size = gap(true)
    return gap(true, found.values) / size, gap(true, found.values, found.neglected) / size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "reading", "make"),
    [
        ("cnn", "jump", adamw),
        ("encoder", "jump", sgd),
        ("batch norm", "scale", sgd),
        ("encoder", "scale", adamw),
        ("cnn", "scale", sgd),
        ("batch norm", "jump", adamw),
    ],
)
def test_what_a_stage_neglects_is_right_to_second_order(
    tmp_path: Path, network: str, reading: Reading, make: Any
) -> None:
    run = recorded(tmp_path, network, make(0.01 if make is sgd else 0.002))
    for stage in ("one", "two"):
        first, second = missed(run, stage, reading)
        assert second < 0.35 * first, (stage, first, second)


def test_variances_that_are_held_back_are_not_neglected(tmp_path: Path) -> None:
    """Of a frozen BatchNorm, one stage made most of the variances: they stay as they are."""

    def wider(model: nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6)

    def frozen(model: nn.Module) -> None:
        model.eval()

    phases = [
        Phase("one", sgd(0.01), 12, prepare=wider),
        Phase("two", sgd(0.01), 30, prepare=frozen),
    ]
    run = record(tmp_path / "run", "batch norm", phases)
    found = final_tangents(run, run.stages[:1], "jump", defects=10)["one"]
    assert found.neglected is not None
    names = [name for name in found.values if name.endswith("running_var")]
    end = run.last.end().model
    assert any(bool((found.values[name] > 0.6 * end[name]).any()) for name in names)
    for name in names:
        assert float(found.neglected[name].abs().max()) < 1e-9 * float(end[name].max())
