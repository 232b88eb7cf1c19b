"""Coarse replay: whole steps are replay, and nothing unstable is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagelens.contracts import Refused
from stagelens.estimators import coarse_twins
from stagelens.estimators import hardness as hardness_module
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.coarse_twins import Plan, choose_plan
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.protocol import Counterfactual
from stagelens.replaying.coarse import CoarseModel, transfer
from stagelens.replaying.coarse_plan import Thinning, coarse_steps, groups_of_equal_rate, take_rows
from stagelens.replaying.replay import replay_stage, replay_without
from stagelens.runs.batches import batch_size
from stagelens.runs.run import Run
from stagelens.runs.states import TrainingState
from stagelens.runs.step_records import MicroBatch
from tests.support.grids import pairs
from tests.support.loops import differing_state
from tests.support.small_runs import Phase, record

Make = Callable[[list[dict[str, object]]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda g: torch.optim.SGD(g, 0.05, momentum=0.9, weight_decay=0.01),
    "plain sgd": lambda g: torch.optim.SGD(g, 0.05),
    "nesterov": lambda g: torch.optim.SGD(g, 0.05, momentum=0.9, nesterov=True),
    "dampened": lambda g: torch.optim.SGD(g, 0.05, momentum=0.9, dampening=0.3),
    "adam": lambda g: torch.optim.Adam(g, 0.01, weight_decay=0.01),
    "adamw": lambda g: torch.optim.AdamW(g, 0.01, betas=(0.9, 0.99), weight_decay=0.1),
}


def _three(path: Path, make: Make, network: str = "cnn", **phase: object) -> Run:
    phases = [Phase(name, make, steps=12, **phase) for name in ("first", "second", "third")]  # type: ignore[arg-type]
    return record(path, network, phases)


def _walked(run: Run, merge: float, thin: float) -> TrainingState:
    stage = run.stages[1]
    model = CoarseModel(run.task, stage, stage.start())
    for step in coarse_steps(stage.read_steps(), merge, thin):
        model.step(step)
    return model.snapshot()


@pytest.mark.slow
# A branch without a gradient meets momentum and Adam also where only the diagonal is walked.
@pytest.mark.parametrize(
    ("name", "network"), pairs(OPTIMIZERS, ["branch", "cnn", "batch norm", "encoder"])
)
def test_unmerged_steps_on_whole_batches_are_the_optimisers_own(
    name: str, network: str, tmp_path: Path
) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS[name], network, clip_norm=1.0, accumulation=2)
    ours, torchs = _walked(run, 1, 1), replay_stage(run.task, run.stages[1]).state
    for key, tensor in torchs.model.items():
        torch.testing.assert_close(ours.model[key], tensor, rtol=0, atol=1e-10)
    for parameter, tensors in torchs.optimizer.items():
        for key, tensor in tensors.items():
            own = ours.optimizer[parameter][key]
            torch.testing.assert_close(own.double(), tensor.double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_merged_step_leaves_the_moments_that_its_steps_leave_for_a_constant_gradient(
    name: str, tmp_path: Path
) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS[name], "linear")
    stage = run.stages[1]
    model = CoarseModel(run.task, stage, stage.start())
    (step,) = coarse_steps(stage.read_steps(), merge=12, thin=1)
    gradient = {n: torch.randn_like(p) for n, p in model.parameters.items()}
    model.gradients = lambda *_: gradient  # type: ignore[method-assign, assignment]
    twin = {n: torch.nn.Parameter(p.detach().clone()) for n, p in model.parameters.items()}
    # Decay makes a gradient follow the weights, so it is left out here.
    optimizer = OPTIMIZERS[name]([{"params": list(twin.values()), "weight_decay": 0.0}])
    for record_ in step.facts:
        record_.groups[0]["weight_decay"] = 0.0
        for parameter, own in zip(twin.values(), gradient.values(), strict=True):
            parameter.grad = own.clone()
        optimizer.step()
    model.step(step)
    for key, parameter in twin.items():
        if isinstance(optimizer, torch.optim.SGD):
            torch.testing.assert_close(model.parameters[key], parameter, rtol=1e-9, atol=1e-12)
        for kind, tensor in optimizer.state[parameter].items():
            if tensor is not None:
                torch.testing.assert_close(
                    model.state[key][kind].double(), tensor.double(), rtol=1e-9, atol=1e-12
                )


@given(
    st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=80), st.integers(1, 90)
)
def test_groups_hold_every_step_once_in_order(rates: list[float], count: int) -> None:
    groups = groups_of_equal_rate(rates, count)
    steps = [step for group in groups for step in range(group.first, group.last)]
    assert steps == list(range(len(rates)))
    assert all(group.first <= group.middle < group.last for group in groups)
    assert len(groups) <= min(count, len(rates))


def test_the_peak_of_the_schedule_is_merged_least() -> None:
    rates = [0.1] * 40 + [1.0] * 40 + [0.1] * 40
    merged = [g.merged for g in groups_of_equal_rate(rates, 24)]
    sums = [sum(rates[g.first : g.last]) for g in groups_of_equal_rate(rates, 24)]
    assert max(sums) <= sum(rates) / 24 + 1.0
    assert merged[0] > 5 * min(merged)


def test_rows_are_taken_of_every_tensor_that_has_one_an_example() -> None:
    batch = {"x": torch.arange(8), "more": (torch.arange(16).view(8, 2), "text"), "scale": 3}
    taken = take_rows(batch, [0, 5])
    assert taken["x"].tolist() == [0, 5]
    assert taken["more"][0].tolist() == [[0, 1], [10, 11]]
    assert (taken["more"][1], taken["scale"]) == ("text", 3)


def test_a_count_of_labels_shrinks_with_the_labels() -> None:
    labels = torch.tensor([[1, 2, -100], [3, -100, -100], [4, 5, 6], [7, 8, -100]])
    batch = {"num_items_in_batch": torch.tensor(16), "input_ids": labels.abs(), "labels": labels}
    assert batch_size(batch) == 4
    taken = take_rows(batch, [0, 2])
    assert taken["input_ids"].tolist() == [[1, 2, 100], [4, 5, 6]]
    assert float(taken["num_items_in_batch"]) == 16 * 5 / 8
    assert take_rows({**batch, "num_items_in_batch": 16}, [1])["num_items_in_batch"] == 2


def test_a_text_is_known_again_however_it_is_padded() -> None:
    thinning = Thinning(0.5)
    kept = []
    for width in (3, 5, 7, 9):
        ids, mask = torch.zeros(2, 4, width, dtype=torch.int64).unbind()
        ids[:, :2], mask[:, :2] = torch.arange(8).view(4, 2), 1
        micro = MicroBatch({"input_ids": ids, "attention_mask": mask})
        kept += thinning.keep([micro], [micro])[0].batch["input_ids"][:, 0].tolist()
    assert sorted(kept) == [0, 0, 2, 2, 4, 4, 6, 6]


def test_over_a_stage_every_example_is_kept_as_often_as_it_is_due() -> None:
    generator = torch.Generator().manual_seed(0)
    thinning = Thinning(0.25)
    uses, kept = torch.zeros(40), torch.zeros(40)
    for _ in range(100):
        rows = torch.randint(40, (16,), generator=generator)
        micro = MicroBatch((torch.eye(40)[rows], rows))
        uses += torch.bincount(rows, minlength=40)
        (part,) = thinning.keep([micro], [micro])
        assert len(part.batch[1]) == 4
        kept += torch.bincount(part.batch[1], minlength=40)
    assert (kept - uses / 4).abs().max() <= 2  # by chance alone it would be about 7


def test_labels_are_kept_in_the_proportions_in_which_they_were_used() -> None:
    generator = torch.Generator().manual_seed(0)
    thinning = Thinning(0.125)
    used, kept = torch.zeros(10), torch.zeros(10)
    for _ in range(20):
        labels = torch.randint(10, (32,), generator=generator)
        micro = MicroBatch({"x": torch.rand(32, 3, generator=generator), "labels": labels})
        used += torch.bincount(labels, minlength=10)
        (part,) = thinning.keep([micro], [micro])
        kept += torch.bincount(part.batch["labels"], minlength=10)
        assert (kept - used / 8).abs().max() <= 1.5  # by chance alone it would soon be about 5


def test_whole_batches_are_left_as_they_are() -> None:
    micro = MicroBatch((torch.eye(3), torch.arange(3)))
    assert Thinning(1.0).keep([micro], [micro]) == [micro]


def test_variances_and_second_moments_stay_positive_when_differences_are_carried_over() -> None:
    def state(variance: float, moment: float) -> TrainingState:
        model = {"norm.running_var": torch.tensor([variance]), "w": torch.tensor([variance])}
        return TrainingState(model, {"w": {"exp_avg_sq": torch.tensor([moment])}})

    moved = transfer(state(1.0, 0.1), factual=state(5.0, 0.9), counterfactual=state(0.5, 0.3))
    assert moved.model["w"].item() == pytest.approx(1.0 - 4.5)
    assert moved.model["norm.running_var"].item() == pytest.approx(0.1)
    assert moved.optimizer["w"]["exp_avg_sq"].item() == pytest.approx(0.1 / 3)


def _all(run: Run, budget: float, *names: str) -> dict[str, Counterfactual]:
    stages = [run.stage(name) for name in names] if names else run.stages
    estimator = CoarseReplay(budget)
    return {c.stage: c for c in estimator.counterfactuals(run, stages[:2], lambda *_: None)}


def test_without_merging_and_thinning_it_is_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS["adamw"], "batch norm")
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(1, 1))
    for name, found in _all(run, 1.0).items():
        truth = replay_without(run, run.stage(name)).state.model
        assert found.weights is not None
        for key, tensor in truth.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(found.weights[key], tensor, rtol=1e-9, atol=1e-9)


def test_a_stage_gets_the_same_estimate_whichever_others_are_asked_for(tmp_path: Path) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS["adamw"], "encoder")
    together, alone = _all(run, 0.25), _all(run, 0.25, "first")
    assert together["first"].weights is not None
    assert alone["first"].weights is not None
    for key, tensor in together["first"].weights.items():
        assert torch.equal(tensor, alone["first"].weights[key])


@pytest.mark.parametrize("budget", [0.5, 0.25, 0.125])
def test_it_spends_its_budget(
    budget: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardness_module, "straightness", lambda _stage: 0.9)  # gentle enough
    phases = [Phase(n, OPTIMIZERS["sgd"], steps=48, batch=16) for n in ("a", "b", "c", "d")]
    run = record(tmp_path / "run", "linear", phases)
    found = list(CoarseReplay(budget).counterfactuals(run, run.stages[:3], lambda *_: None))
    later = [144, 96, 48]
    spent = sum(c.trust.cost * steps for c, steps in zip(found, later, strict=True)) / sum(later)
    assert spent == pytest.approx(budget, rel=0.15)


def test_what_diverges_is_tried_with_less_merging_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS["sgd"], "linear")
    monkeypatch.setattr(hardness_module, "straightness", lambda _stage: 0.9)  # gentle enough
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(4, 1))
    tried: list[float] = []
    walk: Any = coarse_twins._walk

    def watched(run: Run, stage: object, here: object, plan: Plan, *more: object) -> object:
        tried.append(plan.merge)
        factual, ends, spent = walk(run, stage, here, plan, *more)
        return factual, [end if plan.merge <= stable else None for end in ends], spent

    monkeypatch.setattr(coarse_twins, "_walk", watched)
    stable = 2.0
    found = _all(run, 0.25, "second")["second"]
    assert (tried, found.trust.trust) == ([4, 2], "estimated")
    stable, tried[:] = 0.0, []
    found = _all(run, 0.25, "second")["second"]
    assert (found.trust.trust, found.weights) == ("refused", None)
    assert "third" in found.trust.reason
    assert "raise the budget, or use replay" in found.trust.reason


@pytest.mark.parametrize(
    ("optimizer", "straight", "thin", "trust"),
    [
        ("sgd", 0.1, 8, "refused"),
        ("sgd", 0.1, 2, "estimated"),
        ("sgd", 0.99, 8, "estimated"),
        ("adamw", 0.1, 8, "estimated"),
    ],
)
def test_thin_batches_are_refused_only_where_sgd_trained_hard(
    optimizer: str,
    straight: float,
    thin: float,
    trust: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases = [Phase(n, OPTIMIZERS[optimizer], steps=48, batch=16) for n in "ab"]
    run = record(tmp_path / "run", "linear", phases)
    monkeypatch.setattr(hardness_module, "straightness", lambda _stage: straight)
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(1, thin))
    (found,) = CoarseReplay(0.5).counterfactuals(run, run.stages[:1], lambda *_: None)
    assert found.trust.trust == trust
    assert ("batches as small as" in found.trust.reason) == (trust == "refused")
    assert found.trust.cost > 0 or trust == "refused"  # a refusal costs nothing


def test_less_merging_is_no_way_to_batches_that_are_too_thin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [Phase(n, OPTIMIZERS["sgd"], steps=48, batch=16) for n in "ab"]
    run = record(tmp_path / "run", "linear", phases)
    monkeypatch.setattr(hardness_module, "straightness", lambda _stage: 0.1)
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(4, 1.4))
    tried: list[Plan] = []

    def diverging(_run: Run, _stage: object, here: list[object], plan: Plan, *_: object) -> object:
        tried.append(plan)
        return None, [None] * len(here), 0

    monkeypatch.setattr(coarse_twins, "_walk", diverging)
    (found,) = CoarseReplay(0.5).counterfactuals(run, run.stages[:1], lambda *_: None)
    assert tried == [Plan(4, 1.4)]  # the next one, half as merged, would be twice as thin
    assert found.trust.trust == "refused" and "batches as small as" in found.trust.reason


def test_a_twin_that_really_diverges_is_noticed(tmp_path: Path) -> None:
    phases = [Phase(n, lambda g: torch.optim.SGD(g, 0.3, momentum=0.9), steps=60) for n in "ab"]
    run = record(tmp_path / "run", "cnn", phases)
    stage = run.stages[0]
    here = [coarse_twins.OpenStage(stage, stage.start(), stage.end())]
    _, (steady,), _ = coarse_twins._walk(run, run.stages[1], here, Plan(1, 1), lambda *_: None)
    _, (diverged,), _ = coarse_twins._walk(run, run.stages[1], here, Plan(12, 1), lambda *_: None)
    assert steady is not None
    assert diverged is None


def test_a_twin_that_diverges_does_not_change_the_others(tmp_path: Path) -> None:
    """So a stage has one estimate, whichever are asked for with it, in one process or several."""
    run = _three(tmp_path / "run", OPTIMIZERS["sgd"])
    first, second, third = run.stages
    broken = first.start()
    broken.model = {name: tensor * float("nan") for name, tensor in broken.model.items()}
    steady = coarse_twins.OpenStage(second, second.start(), second.end())
    apart = coarse_twins.OpenStage(first, broken, second.end())
    plan = Plan(2, 1)
    _, (alone,), _ = coarse_twins._walk(run, third, [steady], plan, lambda *_: None)
    _, (lost, beside), _ = coarse_twins._walk(run, third, [apart, steady], plan, lambda *_: None)
    assert lost is None
    assert alone is not None and beside is not None
    assert differing_state(alone, beside) == []


def test_a_budget_outside_0_to_1_is_refused() -> None:
    for budget in (0.0, -1.0, 1.5):
        with pytest.raises(Refused, match="between 0 and 1"):
            CoarseReplay(budget)


def test_straight_ways_are_merged_and_zigzag_ways_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [Phase(n, OPTIMIZERS["adamw"], steps=120, batch=8) for n in ("a", "b", "c")]
    run = record(tmp_path / "run", "linear", phases)
    plans = []
    for straight in (0.1, 0.25, 0.5):
        monkeypatch.setattr(hardness_module, "straightness", lambda _stage, s=straight: s)
        plans.append(choose_plan(run, run.stages[1], 0.25))
    assert [p.merge * p.thin for p in plans] == [pytest.approx(5 / 3 / 0.25)] * 3
    assert plans[0].thin > plans[1].thin > plans[2].thin
    assert plans[0].merge < plans[1].merge < plans[2].merge


def test_a_short_stage_is_not_merged_to_a_handful_of_steps(tmp_path: Path) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS["sgd"])
    assert choose_plan(run, run.stages[1], 0.125).merge == 1


def test_the_last_stage_costs_nothing(tmp_path: Path) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS["adamw"])
    (last,) = counterfactuals(run, CoarseReplay(0.25), run.stages[2:])
    assert (last.trust.trust, last.trust.cost) == ("exact", 0.0)


def test_masks_and_counters_do_not_stand_in_the_way_of_a_transfer() -> None:
    def state(value: float, count: int) -> TrainingState:
        model = {"w": torch.tensor([value]), "mask": torch.tensor([True]), "n": torch.tensor(count)}
        return TrainingState(model)

    moved = transfer(state(1.0, 36), factual=state(1.0, 36), counterfactual=state(0.5, 24)).model
    assert moved["mask"].tolist() == [True]
    assert moved["n"].item() == 24


def test_a_shared_batch_counts_as_one_draw(tmp_path: Path) -> None:
    run = _three(tmp_path / "run", OPTIMIZERS["adamw"])
    stage = run.stages[1]
    every = coarse_twins._sampling(stage, Plan(1, 1.25))
    stage.facts = stage.facts.model_copy(update={"keep_batches": 6})
    assert coarse_twins._sampling(stage, Plan(1, 1.25)) > 2 * every
