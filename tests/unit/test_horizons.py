"""How far ahead first order holds: expected errors against replays, stored and told."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import stagelens
from stagelens.analyses.contributions import horizon_table
from stagelens.analyses.contributions import horizons as computing
from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import Question, load_contributions
from stagelens.analyses.contributions.horizon_table import (
    Horizons,
    error_text,
    load_horizons,
    promised,
    sentence,
    within_sentence,
)
from stagelens.analyses.contributions.horizons import horizons, stretches
from stagelens.contracts import Refused
from stagelens.derivatives.windows import Window
from stagelens.estimators.neglected_bounds import bounds
from stagelens.measuring.models import measure
from stagelens.replaying.left_out import replay_without_rows
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows
from tests.support import small_runs
from tests.support.small_runs import Optimizer, Phase, record
from tests.unit.conftest import Command

ALL = Question()


def _sgd(rate: float) -> Optimizer:
    return lambda groups: torch.optim.SGD(groups, rate, momentum=0.9)


def _made(folder: Path, rate: float) -> Run:
    path, task = folder / "run", small_runs.make_task("cnn")
    record(path, "cnn", [Phase(name, _sgd(rate), 12) for name in ("first", "second")])
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    with closing(stagelens.Recorder(path, resume=True, task=task)) as recorder:
        recorder.add_set("test", images=images, labels=["a", "b", "c"] * 4)
    return stagelens.open_run(path, task)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _made(tmp_path_factory.mktemp("horizons"), 0.05)


def test_stretches_cover_a_stage_at_every_horizon_and_the_rest_of_the_run() -> None:
    found = stretches(160, [50, 90])
    assert found[-1] == Window(0, None) and Window(0, 160) in found
    lengths = [window.end - window.begin for window in found[:-1] if window.end is not None]
    assert sorted(set(lengths)) == [1, 2, 5, 16, 51, 160]
    assert lengths.count(51) == 3 and lengths.count(160) == 1
    for window in found[:-1]:
        assert window.end is not None and 0 <= window.begin < window.end <= 160
        assert any(window.begin <= step < window.end for step in (50, 90))
    assert stretches(1, [0]) == [Window(0, 1), Window(0, None)]


def _by_replay(run: Run, share: float) -> np.ndarray:
    """Effects of the same examples on the margin of the final model."""
    stage = run.stage("first")
    rows = training_rows(run, stage)
    names = rows.table["example_id"].to_numpy()
    count = round(share * len(names))
    chosen = np.random.default_rng(0).choice(names, count, replace=False)
    places = rows.places([str(each) for each in chosen])
    without = replay_without_rows(run, stage, places, "kept").state.model
    examples = run.evaluation_set("test").examples()
    model = run.task.build_model(run.last.facts.build_config)
    states = [run.last.end().model, without]
    now, then = measure(run.task, model, states, [list(examples)], len(examples))
    return np.asarray(now.values["margin"] - then.values["margin"])


def test_the_expected_error_of_the_whole_is_that_of_a_replay(run: Run) -> None:
    found = horizons(run, run.stage("first"), "test", ALL, "margin", 0.2)
    true = _by_replay(run, 0.2)
    last = found.table.iloc[-1]
    assert pd.isna(last["horizon"]) and found.table["horizon"].dropna().is_monotonic_increasing
    missed = abs(true.mean() - last["first_order"])
    assert abs(true.mean() - last["first_order"] - last["neglected"]) < 0.3 * missed
    assert 0.01 < found.whole < 1
    # A step by itself leaves the curvature of the behaviour alone.
    assert found.table["expected_error"].iloc[0] < 0.1 * found.whole


def test_it_is_stored_and_not_believed_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = horizons(run, run.stage("second"), "test", ALL, "margin")
    monkeypatch.setattr(computing, "follow", None)
    again = horizons(run, run.stage("second"), "test", ALL, "margin")
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.facts == found.facts and found.facts.left_out == 7
    examples = run.evaluation_set("test")
    ids = ALL.of(examples)
    assert load_horizons(run, examples, "margin", ids[1:], run.stage("second")) is None
    assert load_horizons(run, examples, "loss", ids, run.stage("second")) is None
    with pytest.raises(Refused, match="no behaviour 'fame'"):
        horizons(run, run.stage("second"), "test", ALL, "fame")


def _told(found: Horizons, *errors: float) -> Horizons:
    rows = found.table.iloc[[0] * len(errors)].reset_index(drop=True)
    rows["horizon"] = pd.array([10**n for n in range(len(errors) - 1)] + [None], dtype="Int64")
    like = found.facts.model_copy(update={"unlike": "", "optimizers": {}})
    return replace(found, facts=like, table=rows.assign(expected_error=errors))


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of twice the expected error, up to 1."""
    monkeypatch.setattr(
        horizon_table, "bound", lambda kind, span, error: 2 * error if error <= 1 else None
    )


def test_what_is_said_of_it(run: Run, twice: None) -> None:
    found = horizons(run, run.stage("second"), "test", ALL, "margin")
    fine = _told(found, 0.001, 0.02, 0.2)
    assert fine.holds and sentence(fine).endswith(
        "a second-order term of about 20 % of the effect on the final model (nine of ten such "
        "errors are at most 40 %)."
    )
    # It is the bound that counts, not the expected error.
    assert not _told(found, 0.001, 0.02, 0.3).holds
    near = _told(found, 0.001, 0.02, 0.3, 30.0)
    assert (
        "of over 10 times the effect on the final model (how large such errors are at most is "
        in (sentence(near))
    )
    assert "is not known: no expected errors as large were measured)" in sentence(near)
    assert sentence(near).endswith(
        "beyond first order. It holds for the effect 10 steps later (about 2 %, nine of ten at "
        "most 4 %)."
    )
    assert "not even of the next step; use replay" in sentence(_told(found, 0.4, 3.0))
    said = within_sentence(near, 20)
    assert (
        "about 30 % of the effect 20 steps later (nine of ten such errors are at most 60 %" in said
    )
    assert promised(near).startswith("90 % are promised; in ")


def test_without_a_bound_the_expected_error_alone_is_told(run: Run, twice: None) -> None:
    found = horizons(run, run.stage("second"), "test", ALL, "margin")
    own = _told(found, 0.001, 0.02, 0.3)
    unlike = replace(own, facts=found.facts.model_copy(update={"task": "chess"}))
    assert unlike.holds and "not calibrated for that: the task is chess)" in sentence(unlike)
    assert "Whether first order holds here is not known" in sentence(unlike)
    assert promised(unlike) == ""
    long = replace(own, facts=own.facts.model_copy(update={"later": 10**6}))
    assert "no run was measured beyond" in sentence(long) and long.bound(1) == pytest.approx(0.04)
    loss = own.facts.behaviour.model_copy(update={"name": "loss"})
    other = replace(own, facts=own.facts.model_copy(update={"behaviour": loss}))
    assert other.bound(0) is None and "errors on the loss were not measured" in other.unknown(0)
    part = replace(own, facts=own.facts.model_copy(update={"share": 0.001}))
    assert part.bound(0) is None and "only parts of" in part.unknown(0)


def test_what_is_unlike_the_runs_that_bounds_were_measured_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = horizons(run, run.stage("first"), "test", ALL, "margin").facts
    # Only one scenario of SGD was chosen on.
    assert facts.strange() == "stage first was trained with SGD"
    # What a later stage's steps are like says nothing of the effect within this one.
    names = list(facts.optimizers)
    mixed = facts.model_copy(
        update={"optimizers": {**dict.fromkeys(names, "SGD"), "first": "AdamW"}}
    )
    assert mixed.strange(final=False) == "" and "second" in mixed.strange()
    # What is known later counts for what was stored before.
    known = bounds().model_copy(update={"optimizers": ["SGD"]})
    monkeypatch.setattr(horizon_table, "bounds", lambda: known)
    assert facts.strange() == ""
    normalised = facts.model_copy(update={"normalised": ("first",)})
    assert normalised.strange() == "stage first trained batch normalisation"
    other = facts.model_copy(update={"unlike": "stage first accumulated gradients"})
    assert other.strange() == other.unlike
    known = bounds().model_copy(update={"tasks": ["chess"]})
    monkeypatch.setattr(horizon_table, "bounds", lambda: known)
    assert facts.strange() == f"the task is {run.task.name}"


def test_a_stage_whose_learning_rate_is_0_throughout_has_no_step_to_look_at(
    tmp_path: Path,
) -> None:
    still = _made(tmp_path, 0.0)
    with pytest.raises(Refused, match="was 0 at every step: its training examples moved nothing"):
        horizons(still, still.stage("first"), "test", ALL, "margin")


def test_stretches_that_moved_nothing_say_nothing(run: Run, twice: None) -> None:
    found = horizons(run, run.stage("second"), "test", ALL, "margin")
    own = {"first_order": 0.0, "neglected": 0.0, "missed": 0.0, "size": 0.0, "gradients": 4.0}
    moved = {**own, "missed": 0.01, "size": 1.0}
    rows = [{"horizon": h, **(own if h == 1 else moved)} for h in (1, 2, np.nan)]
    table = computing._table(pd.DataFrame(rows))
    assert table["expected_error"].isna().tolist() == [True, False, False]
    quiet = replace(found, table=table)
    assert error_text(float(table["expected_error"].iloc[0])) == "nothing moved yet"
    # The next horizon that was looked at is told of instead.
    assert quiet.place(1) == 1 and quiet.furthest() == 1 and quiet.holds


def test_contributions_within_a_horizon(run: Run) -> None:
    whole = contribute(run, "test", ALL, "margin", since="second")
    near = contribute(run, "test", ALL, "margin", since="second", horizon=2)
    far = contribute(run, "test", ALL, "margin", since="second", horizon=100)
    assert (whole.facts.horizon, near.facts.horizon) == (None, 2)
    assert near.facts.value == pytest.approx(whole.facts.value)
    # From the length of the last stage on, the horizon is its end, and that is the final model.
    for part in ("step", "example"):
        np.testing.assert_allclose(far.part(part)["value"], whole.part(part)["value"], atol=1e-12)
    assert (near.part("step")["value"] - whole.part("step")["value"]).abs().max() > 1e-6
    examples = run.evaluation_set("test")
    stored = load_contributions(run, examples, "margin", ALL.of(examples), "second", horizon=2)
    assert stored is not None and stored.facts == near.facts


@pytest.mark.slow
def test_by_the_command(copied: Path, command: Command) -> None:
    told = command("horizon", copied, "--set", "test", "--stage", "adapt", "--group", "label=4")
    assert told.status == 0, told.err
    assert "first order neglects a second-order term of" in told.out
    assert "final model" in told.out and "steps later" in told.out
    asked = ("contributions", copied, "--set", "test", "--group", "label=4", "--since", "adapt")
    assert "no quotient of the two columns" in told.out
    near = command(*asked, "--horizon", "3")
    assert "3 steps later" in near.out and "no effect of the stage" in near.out
    said = re.sub(r"\s+", " ", near.out)
    assert re.search(r"the effect 3 steps later \(.*trained with SGD\), and of", said)
    whole = command(*asked)
    assert "first order neglects a second-order term of" in whole.out
    wrong = command("horizon", copied, "--stage", "adapt", "--share", "1")
    assert wrong.status == 1 and "--share 1 is no share" in wrong.err
