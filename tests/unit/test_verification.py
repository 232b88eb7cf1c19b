"""Estimates held against replays: the figures, their intervals, and the noise floor."""

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

from stagelens import cli, verification
from stagelens.effects import attribute, measure
from stagelens.expected_error import RELIABLE_BELOW, Evidence, judged
from stagelens.results import StageTrust
from stagelens.runs.run import Run, open_run
from stagelens.training.replay import replay_later
from tests.conftest import DemoRun
from tests.small_runs import Phase, record

QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("verified") / "run"
    phases = [
        Phase(name, lambda groups: torch.optim.AdamW(groups, 0.01), steps=20)
        for name in ("first", "second", "third")
    ]
    made = record(path, "cnn", phases)
    random = np.random.default_rng(0)
    from stagelens.runs.set_writer import write_set

    write_set(
        path,
        made.task,
        "test",
        images=random.normal(size=(60, 4, 4)).astype(np.float32),
        labels=random.integers(0, 3, 60).tolist(),
    )
    return made


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
    assert row["trust"] == "verified"
    last = rows[rows["stage"] == "third"]
    assert set(last["trust"]) == {"exact"}
    assert np.allclose(last["relative_error"], 0)


def test_a_verified_estimate_says_so_wherever_it_is_read(run: Run) -> None:
    verification.verify(run, "test", [("task-vector", {})], QUIET)
    result = verification.trusted(run, attribute(run, "test", "task-vector"))
    assert result.trust["first"].trust == "verified"
    assert "slope" in result.trust["first"].reason
    assert "relative error" in result.trust["first"].reason
    assert result.trust["third"].trust == "exact"


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
    shutil.copytree(run.path / "results", other.path / "results")
    assert verification.load_verification(other).empty


def test_the_noise_floor_is_the_paired_replay_in_another_order(run: Run) -> None:
    noise = verification.measure_noise(run, "test", 2, QUIET)
    assert set(noise["stage"]) == {"first", "second"}
    random = np.random.default_rng(1)
    orders = {s.name: random.permutation(s.steps).tolist() for s in run.stages}
    stage = run.stages[0]
    pair = [
        replay_later(run, stage, state, orders=orders).state.model
        for state in (stage.end(), stage.start())
    ]
    examples = run.evaluation_set("test")
    model = run.task.build_model()
    with_stage, without = measure(run.task, model, pair, examples.batches(256), examples.count)
    mine = noise[
        (noise["order"] == 1) & (noise["stage"] == "first") & (noise["behaviour"] == "margin")
    ]
    effect = with_stage.values["margin"] - without.values["margin"]
    np.testing.assert_allclose(mine["effect"], effect)


def test_effects_below_two_noise_sd_are_marked_and_unknown_noise_is_not(run: Run) -> None:
    verification.measure_noise(run, "test", 2, QUIET)
    plain = attribute(run, "test", "replay")
    assert plain.table["within_noise"].isna().all()
    table = verification.trusted(run, plain).table
    noise = verification.load_noise(run, plain.facts.set_digest)
    assert noise is not None
    known = verification.noise_sd(noise, plain.table)
    first = table["stage"] == "first"
    key = pd.MultiIndex.from_frame(table.loc[first, ["stage", "behaviour", "example_id"]])
    sd = known.reindex(key).to_numpy()
    expected = table.loc[first, "effect"].abs() < 2 * sd
    assert (table.loc[first, "within_noise"] == expected).all()
    assert 0 < expected.mean() < 1
    assert table.loc[table["stage"] == "third", "within_noise"].isna().all()


def test_the_recorded_order_is_one_of_the_orders_of_the_noise_sd() -> None:
    key = {"stage": "a", "behaviour": "loss", "example_id": "1"}
    noise = pd.DataFrame([{**key, "order": 0, "effect": 1.0}, {**key, "order": 1, "effect": 3.0}])
    effects = pd.DataFrame([{**key, "effect": 2.0}])
    assert verification.noise_sd(noise, effects).tolist() == [pytest.approx(1.0)]


def test_the_command_prints_one_json_row_per_stage_behaviour_and_estimator(
    digits_run: DemoRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "digits"
    shutil.copytree(digits_run.path, path)
    command = ["verify", str(path), "--set", "test", "--budget", "0.25", "--orders", "1", "--json"]
    monkeypatch.setattr("sys.argv", ["stagelens", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4 * 3 * 2
    assert list(rows[0]) == list(verification.COLUMNS)
    coarse = [r for r in rows if r["estimator"] == "coarse-replay" and r["behaviour"] == "margin"]
    assert [r["budget"] for r in coarse] == [0.25] * 4
    assert all(r["noise_floor_r"] is not None for r in coarse[:3])
    run = open_run(path)
    result = verification.trusted(run, attribute(run, "test", "coarse-replay"))
    assert {t.trust for t in result.facts.stages} <= {"verified", "exact", "refused"}


def _evidence(disagreement: float, hardness: float = 0.0, sgd: bool = False) -> Evidence:
    random = np.random.default_rng(0)
    effect, other, third = random.normal(size=(3, 300))
    final = random.normal(size=300)
    return Evidence(
        final=final,
        factual=final + 0.05 * other,
        by_weights=effect,
        by_twins=effect + disagreement * other,
        by_task_vector=effect + third,
        hardness=hardness,
        sgd=sgd,
    )


def test_read_outs_that_disagree_raise_the_expected_error_up_to_refusal() -> None:
    errors = [_evidence(d, hardness=1.0).expected_error() for d in (0.02, 0.1, 0.5, 2.0)]
    assert errors == sorted(errors)
    trust = StageTrust(stage="a", estimator="coarse-replay", trust="estimated", reason="")
    good, bad = judged(trust, _evidence(0.02)), judged(trust, _evidence(3.0, 1.0, True))
    assert (good.trust, good.reliable) == ("estimated", True)
    assert good.expected_error is not None and good.expected_error <= RELIABLE_BELOW
    assert bad.trust == "refused"
    assert "raise the budget, or use replay" in bad.reason


def test_values_that_are_not_finite_are_refused() -> None:
    evidence = _evidence(0.1)
    evidence.by_twins[3] = np.inf
    trust = StageTrust(stage="a", estimator="coarse-replay", trust="estimated", reason="")
    assert judged(trust, evidence).trust == "refused"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def test_an_example_without_a_label_does_not_refuse_the_others(tmp_path: Path) -> None:
    from stagelens.runs.set_writer import write_set

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
