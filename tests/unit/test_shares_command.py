"""``stagelens shares``: what it costs, what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.shares import orders
from stagelens.cli import sharing
from stagelens.effects.coalition_results import (
    key_of,
    load_coalitions,
    save_part,
    stored_part,
)
from stagelens.estimators.coalition_plan import Cost
from stagelens.estimators.reproduction import StepCheck, keep_step_check
from stagelens.runs.objectives import how_to_give
from stagelens.runs.run import Run, open_run
from tests.unit.conftest import Command
from tests.unit.test_helpers import recorded

__all__ = ["recorded"]  # a fixture


@pytest.fixture
def path(recorded: Path, tmp_path: Path) -> Path:
    """Four stages, in a folder of its own."""
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def test_shares_are_printed_and_their_cost_is_told_beforehand(path: Path, command: Command) -> None:
    told = command("shares", path, "--cost")
    assert told.status == 0 and told.out == ""
    cost = "16 models to measure, 5 of them recorded: 11 stage passes, 44 steps"
    assert cost in told.err and "in one process" in told.err
    told = json.loads(command("shares", path, "--cost", "--json").out)
    assert (told["estimator"], told["coalitions"], told["passes"]) == ("replay", 16, 11)
    assert load_coalitions(open_run(path), "test", "replay") is None
    out = path.parent / "shares.csv"
    answer = command("shares", path, "--out", out)
    assert answer.status == 0 and cost in answer.err
    for said in ("Shares in accuracy on test", "Shares in margin on test", "together", "exact"):
        assert said in answer.out
    table = pd.read_csv(out)
    assert set(table["stage"]) == set("abcd") and set(table["trust"]) == {"exact"}
    rows = json.loads(command("shares", path, "--json", "--behaviour", "margin").out)
    assert [row["stage"] for row in rows] == list("abcd")
    total = rows[0]["final_model"] - rows[0]["base"]
    assert sum(row["share"] for row in rows) == pytest.approx(total, abs=1e-6)
    again = command("shares", path, "--cost")
    assert "Every model was measured before" in again.err


def test_stages_are_taken_as_one(path: Path, command: Command) -> None:
    answer = command("shares", path, "--together", "b,d", "--estimator", "task-vector", "--json")
    assert answer.status == 0 and "no stage has to be trained" in answer.err
    assert {row["stage"] for row in json.loads(answer.out)} == {"a", "b + d", "c"}
    assert "counted apart" not in answer.out
    command("shares", path, "--estimator", "task-vector")
    printed = command("shares", path, "--together", "b,d", "--estimator", "task-vector").out
    said = "Were b and d counted apart, the sum of their shares would change by"
    assert re.search(rf"{said} [^(]+ \((rough|sign uncertain) \(error up to", printed), printed


def test_what_cannot_be_shared_is_refused_in_words(path: Path, command: Command) -> None:
    for options, says in (
        (("--together", "a,b", "--together", "b,c"), "stage 'b' is in two parties"),
        (("--together", "a,e"), "'e'"),
        (("--together", ","), "names fewer than two stages"),
        (("--together", "b,b"), "names fewer than two stages"),
        (("--estimator", "unrolled-jump"), "gives no coalitions of stages"),
        (("--exact-stages", "1"), "coalitions by coarse replay have no exact stages"),
        (("--models", "8"), "take 16 models, and all of them are computed"),
        (("--behaviour", "grace", "--estimator", "task-vector"), "no behaviour 'grace'"),
    ):
        answer = command("shares", path, *options)
        assert answer.status == 1 and says in answer.err, answer.err


def test_of_many_parties_orders_are_drawn(
    path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "MOST_PARTIES", 3)
    few = command("shares", path, "--models", "9", "--estimator", "task-vector")
    assert few.status == 1 and "give --models 14 or more" in few.err
    answer = command("shares", path, "--models", "14", "--estimator", "task-vector", "--json")
    assert answer.status == 0, answer.err
    rows = json.loads(answer.out)
    own = [row for row in rows if row["behaviour"] == "margin"]
    total = own[0]["final_model"] - own[0]["base"]
    assert sum(row["share"] for row in own) == pytest.approx(total, abs=1e-6)


def test_a_stage_that_does_not_reproduce_casts_doubt_on_what_it_trained(
    path: Path, command: Command
) -> None:
    command("shares", path)
    run = open_run(path)
    check = StepCheck(run_digest=run.digest, stage="c", steps=2, misfit=2, recorded=1.0, found=9.0)
    keep_step_check(run, check)
    found = load_coalitions(run, "test", "replay")
    assert found is not None and np.isfinite(found.value(4, "margin")).all()
    doubted = {mask for mask, trust in found.trust.items() if check.problem in trust.reason}
    # Those in which "c" was trained again: the ones that have it, but lack an earlier stage.
    assert doubted == {mask for mask in range(16) if mask & 4 and mask & 3 != 3}
    assert {found.trust[mask].trust for mask in doubted} == {"estimated"}


def test_a_refusal_that_no_longer_is_one_is_not_told_as_measured(
    path: Path, command: Command
) -> None:
    command("shares", path)
    run = open_run(path)
    key = key_of(run, run.evaluation_set("test"), "replay", {})
    found = stored_part(run, key, 0b1000)
    assert found is not None
    for reason, told in (("diverged", "Every model"), (f"give it: {how_to_give('d')}", "1 model ")):
        refused = found[0].trust.model_copy(update={"trust": "refused", "reason": reason})
        save_part(run, found[0].model_copy(update={"trust": refused}), found[1].iloc[:0])
        assert told in command("shares", path, "--cost").err


@pytest.mark.slow
def test_a_stage_is_taken_as_two_halves(path: Path, command: Command) -> None:
    command("shares", path)
    told = command("shares", path, "--halves", "b", "--cost")
    cost = "Halves of b, cut after step 2: 16 models to measure, 1 of them recorded"
    assert told.status == 0 and cost in told.err, told.err
    # A half alone (2), the second after a (1); c after each of these and a with the first (4); and
    # d after all of those with and without c (8).
    assert "15 stage passes" in told.err and "and 2 steps to find the state between" in told.err
    price = json.loads(command("shares", path, "--halves", "b", "--cost", "--json").out)["halves"]
    assert (price["passes"], price["between"]) == (15, 2)
    answer = command("shares", path, "--halves", "b:3")
    assert answer.status == 0 and "cut after step 3" in answer.err, answer.err
    for said in (
        "Taken as two halves (steps 1 to 3 and step 4), b's share of the mean margin on all "
        "examples would be ",
        "; a's would change by ",
    ):
        assert said in answer.out
    rows = json.loads(command("shares", path, "--halves", "b:3", "--json").out)
    own = [row for row in rows if row["behaviour"] == "margin"]
    assert [row["stage"] for row in own][4:] == ["a", "b (steps 1 to 3)", "b (step 4)", "c", "d"]
    assert [row["halves_of"] for row in own] == [None] * 4 + ["b"] * 5
    total = own[0]["final_model"] - own[0]["base"]
    for part in (own[:4], own[4:]):
        assert sum(row["share"] for row in part) == pytest.approx(total, abs=1e-6)
    again = command("shares", path, "--halves", "b:3", "--cost")
    assert "Every model was measured before" in again.err


def test_halves_that_cannot_be_had_are_refused_in_words(path: Path, command: Command) -> None:
    for options, says in (
        (("--halves", "b:9"), "after one of the steps 1 to 3, and not after step 9"),
        (("--halves", "b:x"), "gives no step after the colon"),
        (("--halves", "e"), "no finished stage 'e'"),
        (("--halves", "b", "--together", "a,b"), "omit --together"),
    ):
        answer = command("shares", path, *options, "--estimator", "task-vector")
        assert answer.status == 1 and says in answer.err, answer.err


def test_a_time_limit_chooses_the_best_estimator_that_fits(
    path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(run: Run, masks: Sequence[int], name: str, settings: dict[str, float]) -> Cost:
        seconds = {"replay": 3000.0, "coarse-replay": 1000 * settings.get("budget", 0)}[name]
        return Cost(1, 0, 1, 1, 1.0, seconds)

    with monkeypatch.context() as patched:
        patched.setattr(sharing, "cost", told)
        assert sharing_within(path, 3600) == ("replay", {})
        assert sharing_within(path, 600) == ("coarse-replay", {"budget": 0.5})
        assert sharing_within(path, 300) == ("coarse-replay", {"budget": 0.25})
        assert sharing_within(path, 1) == ("task-vector", {})
    answer = command("shares", path, "--time", "1h", "--estimator", "replay")
    assert answer.status == 2 and "a time limit chooses the estimator" in answer.err
    command("shares", path)  # what was measured takes no time
    assert "Every model was measured" in command("shares", path, "--time", "1s", "--cost").err


def sharing_within(path: Path, limit: float) -> tuple[str, dict[str, float]]:
    run = open_run(path)
    return sharing._within(run, run.evaluation_set("test"), range(16), limit, None)
