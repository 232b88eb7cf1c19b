"""``stagelens attribute --time``: how times are read, and what is told of what does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from stagelens.cli import app
from stagelens.cli.options import parse_time
from stagelens.estimators import durations, pace
from tests.conftest import DemoRun


def attribute(*words: object) -> Result:
    return CliRunner().invoke(app, ["attribute", *map(str, words)])


@pytest.mark.slow
def test_what_does_not_fit_into_the_time_is_told_with_its_price(
    digits_run: DemoRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(digits_run.path, tmp_path / "digits"))
    shutil.rmtree(run / "results")
    monkeypatch.setattr(pace.Load, "factor", 1.0)  # however busy the machine is
    monkeypatch.setattr(durations, "slowdown", lambda *_: 1.0)
    monkeypatch.setattr(pace, "pass_seconds", lambda *_: 5000.0)
    monkeypatch.setattr(pace, "coarse_pass_seconds", lambda *_: (5000.0, 5000.0))
    out = tmp_path / "effects.csv"
    of = (run, "--set", "mixed-up")
    answer = attribute(*of, "--time", "10m", "--out", out)
    assert answer.exit_code == 0, answer.output
    command = f"stagelens attribute {run} --set mixed-up --estimator replay --stage mislabelled"
    assert f"Note: mislabelled: exact in about 3 hours on this machine: {command}" in answer.stderr
    assert set(pd.read_csv(out)["estimator"]) == {"task-vector"}  # coarse replay takes long, too
    # With the estimator named, a stage is replayed however long that is predicted to take.
    assert "exact" in attribute(*of, "--estimator", "replay", "--stage", "mislabelled").stdout
    again = attribute(*of, "--time", "10m", "--out", out)
    assert "shortcut: exact in" in again.stderr and "mislabelled: exact in" not in again.stderr
    by = pd.read_csv(out).groupby("stage")["estimator"].unique().map(list).to_dict()
    assert by["mislabelled"] == ["replay"] and by["shortcut"] == ["task-vector"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45", 45), ("2.5s", 2.5)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "3d", "m"])
def test_what_is_no_time_is_a_wrong_usage(text: str) -> None:
    answer = attribute("nowhere", f"--time={text}")
    assert answer.exit_code == 2
    assert "is no time; give one like" in " ".join(answer.output.split())


def test_a_time_limit_belongs_to_replay() -> None:
    answer = attribute("nowhere", "--time", "5m", "--estimator", "task-vector")
    assert answer.exit_code == 2
    assert "a time limit belongs to replay; task-vector" in " ".join(answer.output.split())
