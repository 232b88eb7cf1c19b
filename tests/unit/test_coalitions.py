"""A coalition's model is what training by hand with only its stages gives, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stagelens.contracts import Refused, StageLensError
from stagelens.estimators import coalitions as engine
from stagelens.estimators.coalition_plan import cost
from stagelens.estimators.coalitions import coalitions
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.parties import parties_of
from stagelens.estimators.protocol import CoalitionModel
from stagelens.estimators.registry import make_estimator
from stagelens.replaying import coalition_tree
from stagelens.runs.run import Run
from tests.support.adapted import layers_task
from tests.support.loops import (
    BATCH_NORM,
    Plan,
    differing,
    make_batches,
    make_task,
    record_plans,
    run_plans,
)
from tests.support.small_runs import Phase, record
from tests.unit.test_adapters import FULL, LORA, MERGED
from tests.unit.test_replay import ANEW, DROPOUT, HEADS, carried, late_head, new, three
from tests.unit.test_stage_objectives import (
    LOSSES,
    STAGES,
    preferring,
    recorded,
    trained,
    with_reference,
)

AFTER = Plan("last", carried, batches=3)
CASES: dict[str, tuple[Any, list[Plan]]] = {
    "carried optimiser, batch norm": (make_task(BATCH_NORM), three("adamw", "foreach")),
    "four stages": (make_task(DROPOUT), [*[Plan(n, new("momentum")) for n in "abc"], AFTER]),
    "a new head": (make_task(make_model=late_head), HEADS),
    "a head that is initialised anew": (make_task(make_model=late_head), ANEW),
    "an adapter that is merged": (layers_task(), [FULL, LORA, MERGED]),
}


def all_of(run: Run, estimator: str = "replay", **settings: Any) -> dict[int, CoalitionModel]:
    masks = range(1 << len(run.stages))
    return {one.mask: one for one in coalitions(run, masks, estimator, settings)}


def left_out(run: Run, mask: int) -> list[str]:
    return [stage.name for stage in run.stages if not mask >> stage.index & 1]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_training_by_hand_gives(case: str, tmp_path: Path) -> None:
    task, plans = CASES[case]
    run = record_plans(tmp_path / "run", task, plans)
    found = all_of(run)
    count = len(plans)
    assert sum(one.passes for one in found.values()) == 2**count - 1 - count
    for mask, one in found.items():
        by_hand = run_plans(task, plans, without=left_out(run, mask))
        assert one.weights is not None and differing(one.weights, by_hand.model) == [], mask
        assert one.trust.trust == "exact", one.trust.reason
    assert {found[mask].passes for mask in (0, 2**count - 1, 1, 3)} == {0}


def test_all_but_one_is_the_counterfactual_and_all_is_the_final_model(run: Run) -> None:
    found = all_of(run)
    for one in counterfactuals(run, make_estimator("replay"), run.stages):
        coalition = found[7 & ~(1 << run.stage(one.stage).index)]
        assert one.weights is not None and coalition.weights is not None
        assert differing(one.weights, coalition.weights) == []
        assert coalition.trust.trust == one.trust.trust == "exact"
    assert found[7].weights is not None
    assert differing(found[7].weights, run.last.end().model) == []
    assert found[3].trust.stage == "first + second" and found[0].trust.stage == "no stage"


def test_a_reference_model_is_that_of_the_coalition(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    for mask, one in all_of(run).items():
        without = [name for number, name in enumerate(STAGES) if not mask >> number & 1]
        by_hand = trained({**LOSSES, "dpo": preferring}, without=without)
        assert one.weights is not None and differing(one.weights, by_hand.model) == [], mask


@pytest.mark.parametrize("pick", ["start", "end"])
def test_a_reference_at_an_earlier_boundary_is_that_of_the_counterfactual(
    pick: str, tmp_path: Path
) -> None:
    run = with_reference(tmp_path / "run", pick)
    found = all_of(run)
    for one in counterfactuals(run, make_estimator("replay"), run.stages):
        coalition = found[7 & ~(1 << run.stage(one.stage).index)]
        assert one.weights is not None and coalition.weights is not None
        assert differing(one.weights, coalition.weights) == []
    # Without the first stage the reference at its end is the base, which "two" has moved from.
    alone = found[4].weights
    assert alone is not None and differing(alone, run.stages[0].start().model)


def test_a_null_stage_and_two_equal_ones(tmp_path: Path) -> None:
    def same_batches(count: int, _seed: int) -> Sequence[Any]:
        return make_batches(count, seed=3)

    def nothing(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.0)

    plans = [
        Plan("null", nothing),
        *(Plan(name, new("adamw"), data=same_batches) for name in ("one", "same")),
    ]
    run = record_plans(tmp_path / "run", make_task(), plans)
    weights = {mask: one.weights or {} for mask, one in all_of(run).items()}
    for mask in range(0, 8, 2):
        assert differing(weights[mask], weights[mask | 1]) == []
    assert differing(weights[2], weights[4]) == [] and differing(weights[2], weights[6])


def test_stages_taken_as_one_happen_together(run: Run) -> None:
    parties = parties_of(run, [["first", "third"]])
    found = {one.mask: one for one in coalitions(run, range(4), "replay", None, parties)}
    single = all_of(run)
    assert {mask: one.stages for mask, one in found.items()} == {0: 0, 1: 5, 2: 2, 3: 7}
    for one in found.values():
        assert differing(one.weights or {}, single[one.stages].weights or {}) == []


def test_only_what_is_needed_is_trained_and_only_one_way_is_held(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    replay = coalition_tree.replay_stage

    def noted(task: Any, stage: Any, *rest: Any, **more: Any) -> Any:
        passes.append(stage.name)
        return replay(task, stage, *rest, **more)

    monkeypatch.setattr(coalition_tree, "replay_stage", noted)
    for masks, expected in (([0, 1, 3, 7], []), ([6], ["second", "third"]), ([6, 2, 5], None)):
        passes.clear()
        list(coalitions(run, masks, "replay"))
        # "second" alone and "second" with "third" begin alike.
        assert sorted(passes) == (["second", "third", "third"] if expected is None else expected)
        assert len(passes) == cost(run, masks, "replay").passes


def test_a_coalition_that_cannot_exist_is_refused_by_name(tmp_path: Path) -> None:
    plans = [
        Plan("a", new("momentum")),
        Plan("b", new("momentum"), recorder={"keep_batches": "none"}),
        Plan("c", new("momentum")),
    ]
    run = record_plans(tmp_path / "run", make_task(), plans)
    found = all_of(run)
    refused = {mask for mask, one in found.items() if one.weights is None}
    assert refused == {2, 6}  # "b" without "a"; every other coalition has none of b's batches
    assert "'b'" in found[6].trust.reason and "keep_batches" in found[6].trust.reason
    told = cost(run, range(8), "replay")
    assert (told.coalitions, told.recorded, told.passes) == (6, 4, 2)


def test_who_gives_no_coalitions_says_so(run: Run) -> None:
    with pytest.raises(Refused, match="unrolled-jump gives no coalitions of stages; use replay"):
        list(coalitions(run, [1], "unrolled-jump"))
    with pytest.raises(StageLensError, match="coalition 8 is none of 3 parties"):
        list(coalitions(run, [8], "replay"))


def test_task_vectors_are_the_base_and_the_sum_of_changes(tmp_path: Path) -> None:
    phases = [Phase(n, lambda g: torch.optim.AdamW(g, 0.01)) for n in ("a", "b", "c")]
    run = record(tmp_path / "run", "cnn", phases)
    found = all_of(run, "task-vector")
    base = run.stages[0].start().model
    for mask, one in found.items():
        assert one.weights is not None
        for name in base:
            total = base[name].clone()
            for stage in run.stages:
                if mask >> stage.index & 1:
                    total += stage.end().model[name] - stage.start().model[name]
            torch.testing.assert_close(one.weights[name], total, rtol=0, atol=1e-12)
        assert one.trust.trust == ("exact" if mask in (0, 1, 3, 7) else "estimated")
    for single in counterfactuals(run, make_estimator("task-vector"), run.stages):
        coalition = found[7 & ~(1 << run.stage(single.stage).index)]
        assert single.weights is not None and coalition.weights is not None
        assert differing(dict(single.weights), dict(coalition.weights)) == []


def test_a_boundary_state_is_exact_whatever_the_estimator(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", make_task(make_model=late_head), HEADS)
    exact = all_of(run)
    for estimator in ("task-vector", "coarse-replay"):
        for mask in (0, 1, 3, 7):
            one = next(coalitions(run, [mask], estimator))
            assert one.trust.trust == "exact" and one.trust.estimator == estimator
            assert differing(dict(one.weights or {}), dict(exact[mask].weights or {})) == []


def test_coarse_replay_of_all_but_one_is_its_counterfactual(run: Run) -> None:
    found = all_of(run, "coarse-replay", budget=0.5)
    assert sum(one.passes for one in found.values()) == 4
    made = make_estimator("coarse-replay", {"budget": 0.5})
    for one in made.counterfactuals(run, run.stages[:-1], lambda _done, _text: None):
        coalition = found[7 & ~(1 << run.stage(one.stage).index)]
        assert one.weights is not None and coalition.weights is not None
        assert differing(one.weights, coalition.weights) == []
        assert one.twins is not None and coalition.twins is not None
        assert differing(one.twins.counterfactual, coalition.twins.counterfactual) == []
    # Over a stage that did not happen both twins are carried without a step.
    early, after = found[2].twins, found[6].twins
    assert early is not None and after is not None and len(early.travels) == 1
    assert differing(early.counterfactual, run.stages[0].start().model)
    assert differing(early.counterfactual, after.counterfactual)
    assert differing(early.factual, run.last.end().model)


def test_memory_is_asked_for_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.memory, "available", lambda: 1)
    with pytest.raises(StageLensError, match="Replay takes at least"):
        list(coalitions(run, [6], "replay"))
    assert next(coalitions(run, [6], "task-vector")).weights is not None
