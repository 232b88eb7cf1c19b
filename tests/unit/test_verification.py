"""Estimates compared with replays: the figures, their intervals, and what is joined at reading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from stagelens.effects.computing import attribute
from stagelens.effects.results import Result, result_key, save_result
from stagelens.estimators import stage_trust
from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R, StageTrust
from stagelens.runs.run import Run, open_run
from stagelens.trust import verification
from stagelens.wording.trust_words import trust_word
from tests.conftest import DemoRun
from tests.support.small_runs import Phase, record
from tests.support.stage_trust import trust

QUIET = lambda *_: None  # noqa: E731


def test_the_figures_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=200)
    estimate = 0.5 * truth + 0.1 * random.normal(size=200)
    found = verification.fidelity(estimate, truth)
    assert found["r"] == pytest.approx(stats.pearsonr(estimate, truth)[0])
    assert found["rho"] == pytest.approx(stats.spearmanr(estimate, truth)[0])
    assert found["slope"] == pytest.approx(np.linalg.lstsq(estimate[:, None], truth)[0][0])
    error = np.linalg.norm(estimate - truth) / np.linalg.norm(truth)
    assert found["relative_error"] == pytest.approx(error)
    assert found["sign_agreement"] == pytest.approx(np.mean(estimate * truth > 0))


def test_correlation_flatters_and_the_other_figures_say_so() -> None:
    truth = np.linspace(-1, 1, 50)
    found = verification.fidelity(2.5 * truth, truth)
    assert found["r"] == pytest.approx(1.0)
    assert found["slope"] == pytest.approx(0.4)
    assert found["relative_error"] == pytest.approx(1.5)


def test_a_perfect_estimate_has_perfect_figures_and_a_constant_has_no_correlation() -> None:
    truth = np.arange(5.0)
    perfect = verification.fidelity(truth, truth)
    assert perfect == {
        "r": pytest.approx(1),
        "rho": pytest.approx(1),
        "slope": 1,
        "relative_error": 0,
        "sign_agreement": 1,
    }
    assert np.isnan(verification.fidelity(np.ones(5), truth)["r"])
    assert np.isnan(verification.fidelity(np.full(5, np.nan), truth)["relative_error"])


def test_intervals_hold_the_true_correlation_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        truth = random.normal(size=150)
        estimate = 0.8 * truth + 0.6 * random.normal(size=150)
        low, high = verification.bootstrap(estimate, truth, 300, seed)["r"]
        held += low <= 0.8 <= high
    assert 88 <= held <= 99


def word_of(row: pd.Series) -> str:
    """The verdict that the figures of a row give."""
    agrees = row["r"] >= AGREES_R and row["relative_error"] <= AGREES_ERROR
    return "verified" if agrees else "does not agree"


def test_verify_compares_every_stage_with_replay_and_stores_it(run: Run) -> None:
    rows = verification.verify(run, "test", [("task-vector", {})], QUIET)
    assert set(rows["stage"]) == {"first", "second", "third"}
    truth = attribute(run, "test", "replay").table
    vector = attribute(run, "test", "task-vector").table
    row = rows[(rows["stage"] == "first") & (rows["behaviour"] == "margin")].iloc[0]
    own, true = (
        t[(t["stage"] == "first") & (t["behaviour"] == "margin")]["effect"] for t in (vector, truth)
    )
    assert row["r"] == pytest.approx(np.corrcoef(own, true)[0, 1])
    assert row["r_low"] <= row["r"] <= row["r_high"]
    assert row["trust"] == word_of(row)
    last = rows[rows["stage"] == "third"]
    assert set(last["trust"]) == {"exact"}
    assert np.allclose(last["relative_error"], 0)


def test_a_verified_estimate_says_so_wherever_it_is_read(run: Run) -> None:
    rows = verification.verify(run, "test", [("task-vector", {})], QUIET)
    rows = rows[rows["stage"] == "first"].set_index("behaviour")
    result = verification.trusted(run, attribute(run, "test", "task-vector"))
    first = result.trust["first"]
    assert first.trust == word_of(rows.loc["margin"]) == rows.loc["margin", "trust"]
    for name in ("margin", "loss", "probability"):
        found = first.agreement(name)
        assert found is not None and found.behaviour == name
        assert found.r == pytest.approx(rows.loc[name, "r"])
        assert found.relative_error == pytest.approx(rows.loc[name, "relative_error"])
    # As it was promised; what came of it is in the word.
    assert first.reliable is attribute(run, "test", "task-vector").trust["first"].reliable
    assert first.agreements[0].sign_agreement is not None
    assert result.trust["third"].trust == "exact"


@pytest.mark.parametrize("reliable", [True, False])
def test_what_was_promised_stays_beside_what_came_of_it(run: Run, reliable: bool) -> None:
    vector, truth = (attribute(run, "test", name) for name in ("task-vector", "replay"))
    promise = {"reliable": reliable, "expected_error": 0.07, "trust": "estimated"}
    stages = [one.model_copy(update=promise) for one in vector.facts.stages]
    promised = Result(vector.facts.model_copy(update={"stages": stages}), vector.table)
    rows = verification.compare(promised, truth)
    assert list(rows[list(verification.COLUMNS)]) == list(verification.COLUMNS)
    assert set(rows["reliable"]) == {reliable} and set(rows["expected_error"]) == {0.07}
    assert rows.loc[0, "trust"] == word_of(rows.loc[0])


def test_a_stored_replay_verifies_every_estimate_by_itself(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(folder / "results")
    fresh = open_run(folder, run.task)
    vector = attribute(fresh, "test", "task-vector")
    assert verification.trusted(fresh, vector).trust["first"].trust == "estimated"
    attribute(fresh, "test", "replay")
    assert verification.trusted(fresh, vector).trust["first"].agreements
    assert verification.load_verification(fresh).empty


def test_figures_outlive_the_replay_that_they_came_from(run: Run, tmp_path: Path) -> None:
    verification.verify(run, "test", [("task-vector", {})], QUIET)
    before = verification.trusted(run, attribute(run, "test", "task-vector")).trust
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    copy = open_run(folder, run.task)
    replay = result_key(copy, "test", "effects", "replay", {})
    (folder / "results" / "tables" / f"{replay}.parquet").unlink()
    after = verification.trusted(copy, attribute(copy, "test", "task-vector")).trust
    assert {n: t.agreements for n, t in after.items()} == {
        n: t.agreements for n, t in before.items()
    }


@pytest.mark.parametrize(
    ("real", "verifies"),
    [
        (trust("exact", estimator="replay"), True),
        (trust("exact", estimator="task-vector"), True),  # the last stage
        (trust(estimator="replay", expected_error=0.02, deviation=1e-6), True),
        (trust(estimator="replay", expected_error=0.5, deviation=0.1), False),
        (trust(estimator="replay", deviation=0.1), False),
        (trust(estimator="coarse-replay", expected_error=0.02, reliable=True), False),
    ],
)
def test_only_a_replay_that_repeats_the_recording_closely_verifies(
    real: StageTrust, verifies: bool
) -> None:
    assert stage_trust.is_ground_truth(real) is verifies


def test_what_coarse_replay_refused_is_doubtful_by_cheaper_estimates_too(
    run: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(folder / "results")
    fresh = open_run(folder, run.task)
    vector = attribute(fresh, "test", "task-vector")
    coarse = attribute(fresh, "test", "coarse-replay")
    refused = [
        t.model_copy(update={"trust": "refused"}) if t.stage == "first" else t
        for t in coarse.facts.stages
    ]
    save_result(fresh, Result(coarse.facts.model_copy(update={"stages": refused}), coarse.table))
    known = verification.trusted(fresh, vector).trust
    assert "Coarse replay of this stage was refused." in known["first"].reason
    assert trust_word(known["first"]) in ("rough", "sign uncertain")
    assert not known["first"].reliable
    assert "refused" not in known["second"].reason
    attribute(fresh, "test", "replay")  # settles it
    assert verification.trusted(fresh, vector).trust["first"].agreements


def test_verifying_again_replaces_the_rows_and_keeps_the_others(run: Run) -> None:
    verification.verify(run, "test", [("task-vector", {})], QUIET)
    verification.verify(run, "test", [("coarse-replay", {"budget": 0.5})], QUIET)
    before = len(verification.load_verification(run))
    verification.verify(run, "test", [("coarse-replay", {"budget": 0.5})], QUIET)
    stored = verification.load_verification(run)
    assert len(stored) == before
    assert set(stored["estimator"]) == {"task-vector", "coarse-replay"}


def test_rows_of_another_recording_are_not_read(run: Run, tmp_path: Path) -> None:
    verification.verify(run, "test", [("task-vector", {})], QUIET)
    other = record(
        tmp_path / "other", "cnn", [Phase("first", lambda g: torch.optim.SGD(g, 0.1), steps=3)]
    )
    shutil.copytree(run.path / "results", other.path / "results", dirs_exist_ok=True)
    assert verification.load_verification(other).empty


def test_the_command_prints_one_json_row_per_stage_behaviour_and_estimator(
    verified_run: DemoRun,
) -> None:
    rows = json.loads(verified_run.output)
    assert len(rows) == 4 * 3 * 3
    assert list(rows[0]) == list(verification.COLUMNS)
    coarse = [r for r in rows if r["estimator"] == "coarse-replay" and r["behaviour"] == "margin"]
    assert [r["budget"] for r in coarse] == [0.25] * 4 + [0.5] * 4
    assert all(r["noise_floor_r"] is not None for r in coarse[:3])
    run = open_run(verified_run.path)
    result = verification.trusted(run, attribute(run, "test", "coarse-replay"))
    assert "estimated" not in {t.trust for t in result.facts.stages}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def test_an_example_without_a_label_does_not_refuse_the_others(tmp_path: Path) -> None:
    from stagelens.runs.sets.writer import write_set

    phases = [Phase(n, lambda g: torch.optim.AdamW(g, 1e-3), steps=30) for n in ("a", "b", "c")]
    run = record(tmp_path / "run", "cnn", phases)
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 4, 4)).astype(np.float32)
    labels = random.integers(0, 3, 40).tolist()
    for name, given in (("all", labels), ("but-one", [None, *labels[1:]]), ("none", [None] * 40)):
        write_set(run.path, run.task, name, images=images, labels=given)
    trust = {
        name: attribute(run, name, "coarse-replay").trust["a"]
        for name in ("all", "but-one", "none")
    }
    assert trust["all"].expected_error is not None
    assert trust["but-one"].trust == trust["all"].trust
    assert trust["none"].expected_error is None
