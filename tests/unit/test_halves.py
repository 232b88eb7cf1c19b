"""A stage taken as two halves: what each does by itself, and that both are the whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stagelens.analyses.shares import values
from stagelens.analyses.shares.halves import changes, half_means, halves_sentence
from stagelens.analyses.shares.sentences import number_text
from stagelens.analyses.shares.share_table import shares_of as read
from stagelens.analyses.shares.together import as_one, joined_groups
from stagelens.contracts import Refused, StageLensError, no_progress
from stagelens.effects.coalition_halves import measure_halves
from stagelens.effects.coalition_measuring import do, measure_coalitions
from stagelens.effects.coalition_results import CoalitionResult, load_coalitions
from stagelens.estimators.coalition_plan import cost
from stagelens.estimators.coalitions import coalitions
from stagelens.estimators.halves import (
    halved,
    halves_of,
    middle_steps,
    planned_halves,
    stored_halves,
    whole_mask,
)
from stagelens.estimators.replay_check import check_replay
from stagelens.runs.cutting import Cut
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from stagelens.wording.numbers import signed_text
from stagelens.wording.sentences import slice_parts
from tests.support.coalitions import made as made_up
from tests.support.loops import Plan, differing, make_batches, make_task, record_plans, run_plans
from tests.unit.test_inexact_replay import not_bit_for_bit
from tests.unit.test_replay import DROPOUT, carried, new
from tests.unit.test_stage_objectives import with_reference

PLAIN = {"kind": "cnn", "channels": [4, 4], "hidden": 6, "batch_norm": True}
STEPS, STEP = 4, 1


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """Three stages in a folder of their own."""
    return open_run(shutil.copytree(run.path, tmp_path / "run"), run.task)


def kept(_model: nn.Module, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    assert before is not None
    return before


def plans(split: int | None = None) -> list[Plan]:
    """Three stages, or four where one of them is trained in two parts by hand."""
    made = []
    for number, optimizer in enumerate((new("adamw"), carried, new("momentum"))):
        batches = make_batches(STEPS, seed=number)

        def part(first: int, last: int | None = None, batches: Any = batches) -> Any:
            return lambda _count, _seed: batches[first:last]

        if number == split:
            made.append(Plan("a", optimizer, data=part(0, STEP)))
            made.append(Plan("b", kept, data=part(STEP)))
        else:
            made.append(Plan(f"s{number}", optimizer, data=part(0)))
    return made


@pytest.mark.parametrize(
    "index", [0, *(pytest.param(other, marks=pytest.mark.slow) for other in (1, 2))]
)
def test_a_half_by_itself_is_what_training_by_hand_gives(index: int, tmp_path: Path) -> None:
    task = make_task(PLAIN)
    run = record_plans(tmp_path / "run", task, plans())
    cut = Cut(f"s{index}", STEP)
    made = halved(run, cut, no_progress)
    by_hand = plans(split=index)
    masks = range(1 << len(made.stages))
    for one in coalitions(made, masks, "replay"):
        without = [plan.name for place, plan in enumerate(by_hand) if not one.mask >> place & 1]
        found = run_plans(task, by_hand, without=without).model
        assert one.weights is not None and differing(one.weights, found) == [], one.trust.stage
        assert one.trust.trust == "exact", one.trust.reason
    names = [stage.name for stage in made.stages if stage.name.startswith(cut.stage)]
    assert names == [f"{cut.stage} (step 1)", f"{cut.stage} (steps 2 to 4)"]


def shares_of(found: CoalitionResult, behaviour: str) -> np.ndarray:
    return values.shapley(found.values(behaviour), len(found.parties))


@pytest.mark.parametrize("network", ["dropout", pytest.param("three", marks=pytest.mark.slow)])
def test_both_halves_taken_as_one_get_the_share_of_the_whole(
    network: str, own: Run, tmp_path: Path
) -> None:
    """Measured anew, with nothing read of what is known of whole stages."""
    run = own
    if network == "dropout":
        task = make_task(DROPOUT)
        run = record_plans(tmp_path / "drawn", task, plans())
        images, labels = make_batches(1, seed=9, size=20)[0]
        write_set(run.path, task, "test", images=images, labels=labels)
    cut = halves_of(run, run.stages[1].name)
    made = halved(run, cut, no_progress)
    halves = measure_coalitions(made, "test", "replay", range(1 << len(made.stages)))
    assert halves.complete and {each.trust for each in halves.trust.values()} == {"exact"}
    whole = measure_coalitions(run, "test", "replay")
    groups = joined_groups(4, [1, 2])
    for behaviour in ("margin", "loss"):
        together = as_one(halves.values(behaviour), 4, groups)
        for mask, own_values in whole.values(behaviour).items():
            np.testing.assert_array_equal(together[mask], own_values)
        found = values.shapley(together, 3)
        np.testing.assert_array_equal(found, shares_of(whole, behaviour))
        # Counted apart they get something else, but still all of it together.
        apart = shares_of(halves, behaviour)
        assert np.abs(apart[1] + apart[2] - found[1]).max() > 1e-6
        np.testing.assert_allclose(apart.sum(axis=0), found.sum(axis=0), atol=1e-6)


def test_what_is_known_of_whole_stages_is_not_computed_again(own: Run) -> None:
    whole = measure_coalitions(own, "test", "replay")
    cut = halves_of(own, "second")
    assert cut == Cut("second", 10) and stored_halves(own, cut) is None
    assert middle_steps(own, cut) == 10, "a replay of the whole stage is known to be bit for bit"
    # A new stage pass for each coalition in which only one half happened, and a stage follows.
    planned = planned_halves(own, cut)
    alone = [mask for mask in range(16) if whole_mask(mask, 1) is None]
    expected = cost(planned, alone, "replay")
    found = measure_halves(own, "test", "replay", cut)
    assert found.complete and found.facts.passes == expected.passes == 7
    made = stored_halves(own, cut)
    assert made is not None and middle_steps(own, cut) == 0
    for mask in range(16):
        if (known := whole_mask(mask, 1)) is not None:
            np.testing.assert_array_equal(found.value(mask, "loss"), whole.value(known, "loss"))
    again = load_coalitions(made, "test", "replay")
    assert again is not None and again.values("loss").keys() == found.values("loss").keys()
    # What is stored of the whole stages stays what it was.
    stored = load_coalitions(own, "test", "replay")
    assert stored is not None and stored.facts == whole.facts


def test_a_helper_finds_the_halves_by_its_message(own: Run) -> None:
    cut = halves_of(own, "first", 7)
    made = halved(own, cut, no_progress)
    message = {
        **{"coalitions": [1, 2, 10], "set": "test", "estimator": "replay", "settings": {}},
        "cut": ["first", 7],
    }
    helper = open_run(own.path, own.task)
    do(helper, message, no_progress)
    do(helper, {"check": "second", **message, "coalitions": []}, no_progress)
    found = load_coalitions(made, "test", "replay")
    assert found is not None and set(found.trust) == {1, 2, 10}
    assert set(measure_halves(own, "test", "replay", cut).trust) == set(range(16))


def test_a_recorded_checkpoint_near_the_middle_is_taken(tmp_path: Path) -> None:
    every = [
        Plan("one", new("adamw"), batches=8, recorder={"checkpoint_every": 3}),
        Plan("two", carried, batches=4),
    ]
    run = record_plans(tmp_path / "run", make_task(DROPOUT), every)
    cut = halves_of(run, "one")
    assert cut.step == 3 and middle_steps(run, cut) == 0 and stored_halves(run, cut) is not None
    assert halves_of(run, "two").step == 2
    # It is what a replay finds there.
    (state,) = [each.state for each in run.stages[0].facts.checkpoints if each.step == 3]
    made = halved(run, cut, no_progress)
    assert made.stages[0].facts.end == made.stages[1].facts.start == state
    assert check_replay(made, made.stages[0], no_progress).bitwise
    assert check_replay(made, made.stages[1], no_progress).bitwise
    assert made.digest != run.digest and made.stages[1].table()["step"].tolist() == [3, 4, 5, 6, 7]


def test_a_reference_at_the_start_of_a_stage_is_that_of_its_first_half(tmp_path: Path) -> None:
    run = with_reference(tmp_path / "run", "start")
    for name, mask in (("one", 0b1001), ("three", 0b1011)):
        made = halved(run, halves_of(run, name), no_progress)
        found = {one.mask: one for one in coalitions(made, [mask, 0b1111], "replay")}
        assert all(one.weights is not None for one in found.values())
        references = [
            reference.stage
            for stage in made.stages
            if stage.facts.objective is not None
            for reference in stage.facts.objective.references.values()
            if reference.stage is not None
        ]
        assert set(references) <= {stage.name for stage in made.stages}
        assert not differing(found[0b1111].weights or {}, run.last.end().model)


def test_what_cannot_be_taken_as_two_is_refused_in_words(own: Run, tmp_path: Path) -> None:
    for step in (0, 20, 21, -1):
        with pytest.raises(StageLensError, match="after one of the steps 1 to 19"):
            halves_of(own, "first", step)
    with pytest.raises(StageLensError, match="no finished stage 'other'"):
        halves_of(own, "other")
    short = [Plan("one", new("adamw"), batches=1), Plan("two", carried, batches=4)]
    run = record_plans(tmp_path / "short", make_task(PLAIN), short)
    with pytest.raises(StageLensError, match="1 recorded steps, so it cannot be taken as two"):
        halves_of(run, "one")


def test_a_middle_that_no_replay_can_find_is_refused(tmp_path: Path) -> None:
    run = not_bit_for_bit(tmp_path / "run", 1e-3)
    with pytest.raises(Refused, match="does not repeat it bit for bit here; record it with"):
        halved(run, halves_of(run, run.stages[1].name), no_progress)


@pytest.mark.parametrize(
    "estimator", [pytest.param("coarse-replay", marks=pytest.mark.slow), "task-vector"]
)
def test_estimates_of_halves_add_up(own: Run, estimator: str) -> None:
    whole = measure_coalitions(own, "test", estimator)
    found = measure_halves(own, "test", estimator, halves_of(own, "first"))
    assert found.complete
    apart = shares_of(found, "margin")
    total = whole.value(7, "margin") - whole.value(0, "margin")
    np.testing.assert_allclose(apart.sum(axis=0), total, atol=1e-6)


def game(m: int, seed: int = 0) -> dict[int, np.ndarray]:
    """Values in which parties interact."""
    random = np.random.default_rng(seed)
    return {mask: random.normal(mask.bit_count(), 1.0, 30) for mask in range(1 << m)}


def test_changes_are_the_differences_of_both_ways_to_count() -> None:
    v, cut = game(4), Cut("b", 10)
    halves = ("b (steps 1 to 10)", "b (steps 11 to 20)")
    found = read(made_up(v, ("a", *halves, "c")), "score")
    changed = changes(found, cut)
    whole = values.shapley(as_one(v, 4, [[0], [1, 2], [3]]), 3).mean(axis=1)
    apart = values.shapley(v, 4).mean(axis=1)
    assert [each.stage for each in changed] == ["a", "b", "c"]
    np.testing.assert_allclose([each.whole.mean for each in changed], whole)
    halved_ = [apart[0], apart[1] + apart[2], apart[3]]
    np.testing.assert_allclose([each.halved.mean for each in changed], halved_)
    np.testing.assert_allclose([each.change.mean for each in changed], halved_ - whole)
    assert abs(sum(each.change.mean for each in changed)) < 1e-9
    own = half_means(found, cut)
    assert [one.name for one in own] == list(halves)
    np.testing.assert_allclose([one.mean for one in own], apart[1:3])
    behaviour = found.behaviour
    said = str(halves_sentence(changed, own, cut, behaviour, slice_parts("image")))
    one, both = changed[1], [signed_text(mean.mean, behaviour) for mean in own]
    assert said.startswith(
        "Taken as two halves (steps 1 to 10 and steps 11 to 20), b's share of the mean score on "
        f"all images would be {number_text(one.halved, behaviour)} instead of "
        f"{number_text(one.whole, behaviour)}: {both[0]} and {both[1]}; a's would change by "
    )
    assert ", c's would change by " in said and said.endswith(".")


def test_what_is_linear_does_not_change_when_a_stage_is_cut() -> None:
    parts = np.random.default_rng(1).normal(size=(4, 30))
    v = {mask: parts[[bool(mask >> i & 1) for i in range(4)]].sum(axis=0) for mask in range(16)}
    names = ("a (step 1)", "a (steps 2 to 5)", "b", "c")
    changed = changes(read(made_up(v, names), "score"), Cut("a", 1))
    assert [each.stage for each in changed] == ["a", "b", "c"]
    np.testing.assert_allclose([each.change.mean for each in changed], 0, atol=1e-12)
