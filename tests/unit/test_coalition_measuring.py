"""Coalitions measured and stored: never twice, by several processes, with what is known of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagelens.compute import helpers
from stagelens.contracts import ProgressCallback, Refused, StageLensError, no_progress
from stagelens.effects import coalition_measuring
from stagelens.effects.coalition_measuring import do, measure_coalitions
from stagelens.effects.coalition_results import CoalitionResult, load_coalitions
from stagelens.effects.computing import attribute, boundaries
from stagelens.estimators.coalition_plan import cost, first_missing, passes, pieces
from stagelens.estimators.durations import Pace
from stagelens.estimators.parties import parties_of
from stagelens.replaying import coalition_tree
from stagelens.runs.run import Run, open_run
from tests.unit.test_helpers import recorded, waits_for
from tests.unit.test_inexact_replay import not_bit_for_bit

__all__ = ["recorded"]  # a fixture


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """The run in a folder of its own."""
    return open_run(shutil.copytree(run.path, tmp_path / "run"), run.task)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are trained, in order."""
    names: list[str] = []
    replay = coalition_tree.replay_stage

    def noted(task: Any, stage: Any, *rest: Any, **more: Any) -> Any:
        names.append(stage.name)
        return replay(task, stage, *rest, **more)

    monkeypatch.setattr(coalition_tree, "replay_stage", noted)
    return names


def same(a: CoalitionResult, b: CoalitionResult) -> bool:
    found = [result.values("margin") for result in (a, b)]
    return found[0].keys() == found[1].keys() and all(
        np.array_equal(values, found[1][mask]) for mask, values in found[0].items()
    )


def test_values_are_those_of_effects_and_boundaries(own: Run, trained: list[str]) -> None:
    found = measure_coalitions(own, "test", "replay")
    assert found.complete and {each.trust for each in found.trust.values()} == {"exact"}
    assert found.facts.passes == len(trained) == 4
    effects = attribute(own, "test", "replay").table
    edges = boundaries(own, "test").table
    for behaviour in ("loss", "margin"):
        rows = effects[effects["behaviour"] == behaviour]
        for number, stage in enumerate(own.stages):
            one = rows[rows["stage"] == stage.name]
            without = found.value(7 & ~(1 << number), behaviour)
            assert np.allclose(one["without"], without, rtol=0, atol=1e-12)
            assert np.array_equal(one["final"], found.value(7, behaviour))
        for mask, boundary in {0: "base", 1: "first", 3: "second", 7: "third"}.items():
            there = edges[(edges["boundary"] == boundary) & (edges["behaviour"] == behaviour)]
            assert np.array_equal(there["value"], found.value(mask, behaviour))
    assert 0 <= np.nanmean(found.value(2, "accuracy")) <= 1


def test_what_is_finished_is_not_computed_again(
    own: Run, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = coalition_measuring.save_part
    saved: list[int] = []

    def killed(run: Run, part: Any, table: Any) -> None:
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(part.mask)
        save(run, part, table)

    monkeypatch.setattr(coalition_measuring, "save_part", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_coalitions(own, "test", "replay")
    monkeypatch.undo()
    partial = load_coalitions(own, "test", "replay")
    assert partial is not None and set(partial.trust) == set(saved) and not partial.complete
    left = [mask for mask in range(8) if mask not in saved]
    monkeypatch.setattr(coalition_tree, "replay_stage", _counted(trained))
    trained.clear()
    whole = measure_coalitions(own, "test", "replay")
    assert whole.complete and len(trained) == len(passes(left)) > 0
    trained.clear()
    assert same(whole, measure_coalitions(own, "test", "replay"))
    merged = measure_coalitions(
        own, "test", "replay", parties=parties_of(own, [["first", "third"]])
    )
    assert merged.complete and trained == []
    assert np.array_equal(merged.value(1, "margin"), whole.value(5, "margin"))


def _counted(names: list[str]) -> Any:
    replay = coalition_tree.replay_stage

    def noted(task: Any, stage: Any, *rest: Any, **more: Any) -> Any:
        names.append(stage.name)
        return replay(task, stage, *rest, **more)

    return noted


def test_only_coalitions_that_are_asked_for_are_measured(own: Run, trained: list[str]) -> None:
    merged = parties_of(own, [["first", "second"]])
    found = measure_coalitions(own, "test", "replay", parties=merged)
    assert found.complete and trained == ["third"]
    assert found.facts.passes == cost(own, [0, 3, 4, 7], "replay").passes == 1
    asked = measure_coalitions(own, "test", "replay", masks=[6])
    assert set(asked.values("margin")) == {0, 3, 4, 6, 7} and not asked.complete


def test_a_helper_does_what_one_process_does(own: Run) -> None:
    """Two of them are asked to, in this process."""
    groups = pieces([2, 4, 5, 6], [Pace(s.name, s.steps, 1.0) for s in own.stages], 2)
    assert sorted(mask for group in groups for mask in group) == [2, 4, 5, 6] and len(groups) > 1
    for group in groups:
        message = {"coalitions": group, "set": "test", "estimator": "replay", "settings": {}}
        do(own, message, no_progress)
    shared = load_coalitions(own, "test", "replay")
    assert shared is not None and set(shared.trust) == {2, 4, 5, 6}
    shutil.rmtree(own.path / "results")
    alone = measure_coalitions(own, "test", "replay")
    for mask in shared.trust:
        assert np.array_equal(shared.value(mask, "margin"), alone.value(mask, "margin"))


@pytest.mark.slow
def test_helpers_share_the_coalitions(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(shutil.copytree(recorded, tmp_path / "run"))
    mine = []

    def patient(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
        if "coalitions" in message:  # so that the helper has its share, however late it starts
            mine.append(message["coalitions"])
            waits_for(lambda: len(list(run.path.glob("results/coalitions/*/*.parquet"))) > 1)
        do(run, message, progress)

    monkeypatch.setattr(coalition_measuring, "do", patient)
    monkeypatch.setenv(helpers.ASKED, "2")
    command = [sys.executable, "-m", "stagelens", "help-out", str(run.path)]
    with helpers.allowed(run.path, command) as given:
        found = measure_coalitions(run, "test", "replay")
        assert len(given.started) == 1
    assert found.complete and sum(map(len, mine)) < 11
    monkeypatch.undo()
    alone = open_run(shutil.copytree(recorded, tmp_path / "alone"))
    assert same(found, measure_coalitions(alone, "test", "replay"))


def test_pieces_share_the_work_evenly_and_lose_no_coalition() -> None:
    known = [Pace(name, 10, 1.0) for name in "abcdef"]
    masks = list(range(64))
    for count in (1, 2, 3, 4):
        groups = pieces(masks, known, count)
        assert sorted(mask for group in groups for mask in group) == masks
        assert len(groups) >= count
        repeated = sum(len(passes(group)) for group in groups) / len(passes(masks))
        assert repeated < 1.2


def test_passes_are_counted() -> None:
    for count in range(1, 8):
        full = (1 << count) - 1
        assert len(passes(range(1 << count))) == full - count
        assert len(passes(full & ~(1 << k) for k in range(count))) == count * (count - 1) // 2
        assert len(passes((1 << k) - 1 for k in range(count + 1))) == 0
    assert [first_missing(mask) for mask in (0, 1, 2, 3, 5, 7)] == [0, 1, 0, 2, 1, 3]


def test_a_replay_that_is_not_bit_for_bit_has_its_deviation(tmp_path: Path) -> None:
    run = not_bit_for_bit(tmp_path / "run", 1e-3)
    found = measure_coalitions(run, "test", "replay")
    known = attribute(run, "test", "replay").trust["first"]
    trust = found.trust[2]
    assert trust.trust == "estimated" and trust.deviation == known.deviation
    assert trust.expected_error == pytest.approx(known.expected_error)
    assert {found.trust[mask].trust for mask in (0, 1, 3)} == {"exact"}


@pytest.mark.parametrize("estimator", ["task-vector", "coarse-replay"])
def test_an_estimate_is_judged_where_one_stage_did_not_happen(own: Run, estimator: str) -> None:
    settings: Mapping[str, Any] = {"budget": 0.5} if estimator == "coarse-replay" else {}
    found = measure_coalitions(own, "test", estimator, settings=settings)
    known = attribute(own, "test", estimator, settings=settings)
    for number, stage in enumerate(own.stages):
        trust, mask = known.trust[stage.name], 7 & ~(1 << number)
        assert found.trust[mask].trust == trust.trust
        assert found.trust[mask].expected_error == trust.expected_error
        assert found.trust[mask].reliable == trust.reliable
        rows = known.table[known.table["stage"] == stage.name]
        rows = rows[rows["behaviour"] == "margin"]
        if trust.trust != "refused":
            assert np.allclose(rows["without"], found.value(mask, "margin"), rtol=0, atol=1e-12)
    # The calibration leaves out one at a time; what is expected is said of all that is missing.
    several = found.trust[2]
    assert several.reliable is False and "one at a time" in several.reason
    assert several.expected_error is not None and several.wrong_signs is None


def test_too_many_parties_need_a_choice_of_coalitions(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalition_measuring, "MOST", 2)
    with pytest.raises(StageLensError, match="3 parties have 8 coalitions"):
        measure_coalitions(own, "test", "replay")
    found = measure_coalitions(own, "test", "replay", masks=[0, 1])
    assert set(found.trust) == {0, 1, 7}


def test_what_nobody_can_compute_is_refused(own: Run) -> None:
    def unknown(stage: Any) -> str:
        return f"stage {stage.name!r} cannot be replayed"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(own.stages[0]), "no_replay", property(unknown))
        with pytest.raises(Refused, match="stage 'third' cannot be replayed"):
            measure_coalitions(own, "test", "replay", masks=[4, 5])
        stored = load_coalitions(own, "test", "replay")
        assert stored is not None and stored.trust[4].trust == "refused"
