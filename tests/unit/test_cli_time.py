"""``attribute`` within a time limit: what it prints, and what is no limit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from stagelens.cli.options import parse_time
from stagelens.estimators import pace
from tests.unit.conftest import Command


def test_what_does_not_fit_into_the_time_is_told_with_its_price(
    copied: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pace, "pass_seconds", lambda *_: 5000.0)
    monkeypatch.setattr(pace, "coarse_pass_seconds", lambda *_: (5000.0, 5000.0))
    shutil.rmtree(copied / "results")
    out = tmp_path / "effects.csv"
    answer = command("attribute", copied, "--set", "mixed-up", "--time", "1m", "--out", out)
    assert answer.status == 0, answer.err
    said = "mislabelled: exact in about 3 hours on this machine: stagelens attribute "
    assert (
        f"Note: {said}{copied} --set mixed-up --estimator replay --stage mislabelled" in answer.err
    )
    table = pd.read_csv(out)
    assert set(table["estimator"]) == {"task-vector"}  # coarse replay would take longer, too
    # With the estimator named, one stage is replayed however long that is predicted to take.
    options = ("--set", "mixed-up", "--estimator", "replay", "--stage", "mislabelled")
    assert "exact" in command("attribute", copied, *options).out
    again = command("attribute", copied, "--set", "mixed-up", "--time", "1m", "--out", out)
    assert "mislabelled: exact in" not in again.err
    by = pd.read_csv(out).groupby("stage")["estimator"].unique().map(list).to_dict()
    assert by["mislabelled"] == ["replay"] and by["shortcut"] == ["task-vector"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45", 45), ("2.5s", 2.5)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "3d", "m"])
def test_what_is_no_time_is_a_wrong_usage(text: str, command: Command) -> None:
    answer = command("attribute", "nowhere", f"--time={text}")
    assert answer.status == 2 and "is no time; give one like 90s, 30m, 2h or 1h30m" in answer.err


def test_a_time_limit_belongs_to_replay(command: Command) -> None:
    answer = command("attribute", "nowhere", "--time", "5m", "--estimator", "task-vector")
    assert answer.status == 2 and "a time limit belongs to replay; task-vector" in answer.err
