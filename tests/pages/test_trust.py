"""The Trust page on the real demo: nothing verified, compared, verifying, verified, refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.effects.results import load_result, save_result
from stagelens.estimators import durations
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import open_run
from stagelens.trust import noise
from stagelens.trust.verification import load_verification, trusted
from stagelens.ui.server import jobs
from tests.conftest import DemoRun
from tests.pages.reading import check, drawn, figures, labels, table, words
from tests.support.toy_estimator import register_toy

PAGE = "pages/4_Trust.py"
OPEN = ["pretrain", "shortcut", "mislabelled"]


def compared(folder: Path, estimator: str, settings: dict[str, float]) -> list[str]:
    """Stages before the last of which an estimate gives numbers."""
    result = load_result(open_run(folder), "test", "effects", estimator, settings)
    assert result is not None
    return [stage for stage in OPEN if result.trust[stage].trust != "refused"]


COARSE = ("coarse-replay", {"budget": 0.25})


def scatters(app: AppTest) -> list[str]:
    """What the plots of estimates against replay say, without that of the bench."""
    return [one for one in drawn(app) if one.startswith("Stage effect of ")]


def press(app: AppTest, label: str) -> AppTest:
    next(b for b in app.button if b.label == label).click()
    return app.run()


@pytest.fixture(scope="module")
def verified(verified_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo after a verification with one other order."""
    folder = tmp_path_factory.mktemp("verified") / "digits"
    return Path(shutil.copytree(verified_run.path, folder))


def test_a_stored_replay_is_compared_with_before_anything_is_verified(open_page, demo) -> None:
    app = check(open_page(demo.parent, "run=digits", PAGE))
    shown = compared(demo, *COARSE)
    alts = scatters(app)
    assert len(alts) == len(shown) >= 2
    assert all(f"Stage effect of {s} on" in " ".join(alts) for s in shown)
    said = words(app)
    assert said.count("Checked against a replay, on the margin: r ") == len(shown)
    assert "noise not known" in said and "Noise not known" in said
    assert "adapt: exact. The last stage's start" in said
    assert {badge.proto.body for badge in app.get("badge")} <= {"verified", "does not agree"}


def test_without_any_result_it_says_what_would_be_learnt_and_how_long(
    open_page, demo_copy: Path
) -> None:
    shutil.rmtree(demo_copy / "results")
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    said = words(app)
    assert "Nothing has been compared with a replay on this set yet" in said
    # How long depends on how busy the machine is, where a step is timed.
    time = r"(under 10 seconds|about a minute|about \d+ (seconds|minutes|hours))"
    assert re.search(
        rf"Predicted: {time}, from (steps timed here|the recorded times|replays on this mach)", said
    )
    assert "Verify by replay" in labels(app)


@pytest.mark.slow
def test_figures_stand_together_with_their_intervals(open_page, verified: Path) -> None:
    app = check(open_page(verified.parent, "run=digits&measure=loss&estimate=coarse-replay 1/4",
                          PAGE))  # fmt: skip
    said = words(app)
    stored = load_verification(open_run(verified))
    row = stored[
        (stored["stage"] == "shortcut")
        & (stored["behaviour"] == "loss")
        & (stored["budget"] == 0.25)
    ].iloc[0]
    assert f"on the loss: r {row['r']:.2f}, slope {row['slope']:.2f}" in said
    assert f"{row['r_low']:.2f} to {row['r_high']:.2f}" in said
    for name in ("Pearson r", "Spearman rho", "Slope", "Relative error", "Sign agreement"):
        assert said.count(name) == len(compared(verified, *COARSE))
    assert "Noise-floor r" in said and "1 other order" in said
    assert "noise not known" not in said


def test_every_stored_estimate_has_its_time_and_cost(open_page, verified: Path) -> None:
    said = words(check(open_page(verified.parent, "run=digits", PAGE)))
    costs = said[said.index("cost in replays") :]
    for name in ("replay", "coarse-replay 1/2", "coarse-replay 1/4", "task-vector"):
        assert name in costs
    # How long a prediction is depends on how busy the machine is.
    predicted = r"([\d.]+ (s|min)|under a second)"
    assert re.search(rf"replay\s+[\d.]+ (ms|s)\s+{predicted}\s+1\.00", costs)
    assert re.search(rf"unrolled-jump\s+not computed\s+{predicted}", costs)


def test_the_link_chooses_estimate_behaviour_and_options(open_page, verified: Path) -> None:
    link = "run=digits&estimate=task-vector&measure=loss&orders=3&budgets=1/2"
    app = check(open_page(verified.parent, link, PAGE))
    assert app.selectbox(key="estimate").value == "task-vector"
    assert "the loss by task-vector against replay" in scatters(app)[0]
    assert app.session_state["orders"] == 3 and app.session_state["budgets"] == ["1/2"]


def test_other_pages_say_verified_and_within_noise(open_page, verified: Path) -> None:
    app = check(open_page(verified.parent, "run=digits&estimator=task-vector"))
    assert "◇ does not agree" in figures(app)[0]["layout"]["yaxis"]["ticktext"][0]
    assert "pretrain: does not agree" in words(app)
    for measure in ("accuracy", "loss"):
        app = check(open_page(verified.parent, f"run=digits&measure={measure}"))
        said = words(app)
        assert "noise not known" not in said
        assert "and beyond training noise" in said
        assert "Beyond training noise: the mean effect" in said or "Within training noise" in said
    link = "run=digits&measure=loss&estimator=replay&stage=shortcut&sort=order+of+the+set"
    app = check(open_page(verified.parent, link, "pages/1_Examples.py"))
    result = load_result(open_run(verified), "test", "effects", "replay")
    assert result is not None
    marked = trusted(open_run(verified), result).table
    rows = marked[(marked["stage"] == "shortcut") & (marked["behaviour"] == "loss")]
    cells = table(app).filter(like="shortcut").iloc[:, 0]
    expected = rows["within_noise"].iloc[: len(cells)].tolist()
    zeros = cells.isin(["0", "0.0"]).tolist()
    found = cells.str.startswith("≈").tolist()
    assert [a or z for a, z in zip(found, zeros, strict=True)] == [
        bool(e) or z for e, z in zip(expected, zeros, strict=True)
    ]
    assert "≈ within training noise (below 2 noise sd of that very example)" in words(app)


def test_with_enough_orders_it_says_how_near_an_estimate_is_to_the_recipe(
    open_page, verified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(verified, tmp_path / "orders" / "digits")
    known = noise.load_orders(open_run(folder), "test")
    assert known is not None
    one = known[known["order"] == noise.RECORDED]
    others = [one.assign(order=n, effect=one["effect"] * 2) for n in range(4)]
    monkeypatch.setattr(noise, "load_orders", lambda *_: pd.concat([one, *others]))
    app = check(open_page(folder.parent, "run=digits&estimate=coarse-replay 1/2", PAGE))
    # All other orders have twice the effects, of which this estimate is about a half.
    assert "the recipe known from 4 other orders" in words(app)
    assert re.search(r"pretrain \d+ % of this run, [45]\d % of the recipe", words(app))


@pytest.mark.slow
def test_verifying_runs_beside_the_page_and_its_result_is_shown(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, "run=digits&budgets=1/8&orders=0", PAGE))
    check(press(app, "Verify by replay"))
    started = app.session_state["stagelens:verification"]
    assert started == (
        "verify", str(demo_copy), "--set", "test", "--estimator", "task-vector",
        "--estimator", "coarse-replay", "--budget", "0.125", "--orders", "0",
    )  # fmt: skip
    job = jobs.find(started)
    assert job is not None
    if job.running:
        assert "Cancel" in labels(app) and len(scatters(app)) == len(compared(demo_copy, *COARSE))
    job._reaper.join(400)
    assert job.status().state == "done", job.log()
    check(app.run())
    check(app.selectbox(key="estimate").select("coarse-replay 1/8").run())
    assert "Checked against a replay" in words(app)
    check(app.selectbox(key="estimate").select("task-vector").run())
    assert words(app).count("Checked against a replay") == 3
    assert "Verify by replay" in labels(app)


def test_a_failed_verification_says_why(open_page, demo_copy: Path) -> None:
    # Another order has to be replayed, so the batches are read although the replay is stored.
    app = check(open_page(demo_copy.parent, "run=digits&orders=1", PAGE))
    batches = next((demo_copy / "stages").glob("01-*")).glob("batches-*")
    for path in batches:
        path.write_bytes(b"damaged" * (path.stat().st_size // 7 + 1))
    check(press(app, "Verify by replay"))
    jobs.find(app.session_state["stagelens:verification"])._reaper.join(400)
    check(app.run())
    assert "The verification failed" in app.error[0].value
    assert "Dismiss" in labels(app)


def test_refused_stages_say_why_and_have_no_scatter(open_page, verified: Path, tmp_path) -> None:
    folder = shutil.copytree(verified, tmp_path / "refused" / "digits")
    run = open_run(folder)
    result = load_result(run, "test", "effects", "coarse-replay", {"budget": 0.5})
    assert result is not None
    refused = StageTrust(
        stage="pretrain", estimator="coarse-replay", trust="refused", reason="It diverged."
    )
    trusts = [refused if t.stage == "pretrain" else t for t in result.facts.stages]
    effects = result.table.copy()
    effects.loc[effects["stage"] == "pretrain", ["effect", "without"]] = float("nan")
    save_result(run, type(result)(result.facts.model_copy(update={"stages": trusts}), effects))
    app = check(open_page(folder.parent, "run=digits&estimate=coarse-replay 1/2", PAGE))
    assert "It diverged." in words(app)
    assert len(scatters(app)) == 2


def test_a_run_whose_batches_were_not_kept_cannot_be_verified(
    open_page, demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagelens.runs.run import Stage

    monkeypatch.setattr(Stage, "_kept_all", property(lambda self: self.index != 2))
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    assert "stage 'mislabelled' cannot be replayed, because its batches" in words(app)
    assert "Verify by replay" not in labels(app)


def test_nothing_from_data_becomes_markup(open_page, demo_copy: Path) -> None:
    evil = "<img src=x onerror=alert(1)> **b**"
    run = open_run(demo_copy)
    result = load_result(run, "test", "effects", "task-vector")
    assert result is not None
    trusts = [
        t if t.trust == "exact" else t.model_copy(update={"trust": "refused", "reason": evil})
        for t in result.facts.stages
    ]
    save_result(run, type(result)(result.facts.model_copy(update={"stages": trusts}),
                                  result.table))  # fmt: skip
    app = check(open_page(demo_copy.parent, "run=digits&estimate=task-vector", PAGE))
    assert all("<img" not in e.proto.body for e in app.get("html"))


def test_a_new_estimator_is_offered_and_has_its_line_among_the_costs(
    open_page, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = register_toy(monkeypatch)
    # As busy as when the demo was replayed, so that what it says of itself is what is shown.
    monkeypatch.setattr(durations, "slowdown", lambda *_: durations.paces(open_run(demo)).busy)
    app = check(open_page(demo.parent, "run=digits", PAGE))
    assert re.search(rf"{toy}\s+not computed\s+1\.5 s", words(app))
    (offered,) = (each for each in app.button_group if each.label == "Estimators")
    assert toy in offered.options
