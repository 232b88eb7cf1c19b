"""The command that follows answers from boundary to boundary, on the real demo."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from stagelens.analyses.paths.chance import MISFIT
from stagelens.wording.trust_words import MARKS
from tests.conftest import DemoRun
from tests.unit.conftest import Command


def test_totals_reconcile_with_the_answers(
    digits_run: DemoRun, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "paths.csv"
    answer = command("paths", digits_run.path, "--set", "test", "--json", "--out", out)
    assert answer.status == 0, answer.err
    found = json.loads(answer.out[: answer.out.rindex("}") + 1])
    table = pd.read_csv(out)
    count = len(table)
    assert sum(found["paths"].values()) == count == 894
    assert table["path"].value_counts().to_dict() == found["paths"]
    assert table["kind"].value_counts().to_dict() == {
        one["kind"]: one["count"] for one in found["kinds"] if one["count"]
    }
    assert sum(one["without_lucky_guesses"] for one in found["kinds"]) == pytest.approx(count)
    (flipped,) = [one for one in found["kinds"] if one["kind"] == "flipped"]
    ends, lost = found["flipped_by_end"], found["learned_then_forgotten"]
    for name in ("count", "without_lucky_guesses"):
        assert sum(one[name] for one in ends) == pytest.approx(flipped[name])
    assert lost["count"] == ends[1]["count"] == table["learned_then_forgotten"].sum() > 0
    assert lost["low"] < lost["without_lucky_guesses"] < lost["high"]
    assert {stage["trust"] for stage in found["stages"]} <= set(MARKS)
    right = [table["path"].str[place].eq("R").sum() for place in (0, -1)]
    assert sum(stage["seen_after"] for stage in found["stages"]) == right[1] - right[0]


def test_tables_are_printed_with_what_they_mean(digits_run: DemoRun, command: Command) -> None:
    answer = command("paths", digits_run.path, "--set", "test")
    assert answer.status == 0, answer.err
    expected = ("Paths of 894 examples", "learned", "forgotten", "Where it became visible")
    for words in (*expected, "flipped, ends wrong", "Learned, then forgotten (wrong, later"):
        assert words in answer.out


def test_who_caused_it_is_told_with_its_trust_and_no_impossible_number_is_printed(
    digits_run: DemoRun, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagelens.cli import following

    monkeypatch.setattr(following, "fits", lambda _: False)
    answer = command("paths", digits_run.path, "--set", "test")
    assert MISFIT in " ".join(answer.out.split()) and "trust" in answer.out
    found = json.loads(command("paths", digits_run.path, "--set", "test", "--json").out)
    assert {one["without_lucky_guesses"] for one in found["kinds"]} == {None}


def test_a_set_without_labels_is_told_so(
    digits_run: DemoRun, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagelens.cli import following

    monkeypatch.setattr(following, "paths", lambda *_: None)
    answer = command("paths", digits_run.path, "--set", "test")
    assert answer.status == 1
    assert "set test has no paths: they take labels" in answer.err
