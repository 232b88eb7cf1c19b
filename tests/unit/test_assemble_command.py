"""`stagelens assemble`: what it prints and writes, and what follows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

import stagelens
from stagelens import cli
from tests.support.checkpoints import classifiers, labelled_texts, language_models


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stagelens", *map(str, words)])
        cli.main()
    return int(end.value.code or 0)


def stages(folders: dict[str, Path]) -> list[str]:
    return [word for name, path in folders.items() for word in ("--stage", f"{name}={path}")]


def test_folders_to_effects_in_two_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, progress = tmp_path / "run", tmp_path / "progress.json"
    file = labelled_texts(tmp_path / "few.jsonl")
    words = ["assemble", *stages(classifiers(tmp_path)), "--eval", file, "--out", out]
    assert command(*words, "--name", "mine", "--progress", progress) == 0
    assert f"{out}: 2 stages, sets few" in capsys.readouterr().out
    assert json.loads(progress.read_text())["state"] == "done"
    assert stagelens.open_run(out).name == "mine"

    effects = tmp_path / "effects.csv"
    assert command("attribute", out, "--out", effects) == 0
    table = pd.read_csv(effects)
    assert set(table["estimator"]) == {"task-vector"}
    trust = table.groupby("stage")["trust"].first()
    assert trust.to_dict() == {"sft": "sign uncertain", "dpo": "exact"}

    assert command("shares", out) == 0
    said = capsys.readouterr().out
    assert "No replay can settle it: no steps were recorded" in said
    assert "use replay" not in said
    assert command("shares", out, "--estimator", "replay") == 1
    refused = capsys.readouterr().err
    assert "no steps were recorded of stage 'dpo'" in refused
    assert "has to be trained" not in refused


def test_completions_of_a_language_model_by_their_columns(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    row = {"question": "two and two", "good": " make four", "bad": " make dog"}
    file.write_text(json.dumps(row) + "\n")
    words = ["--eval", file, "--prompt-column", "question", "--completion-column", "good"]
    out = tmp_path / "run"
    folders = stages(language_models(tmp_path))
    assert command("assemble", *folders, *words, "--rejected-column", "bad", "--out", out) == 0
    run = stagelens.open_run(out)
    (example,) = run.evaluation_set("pairs").examples()
    assert example.input["prompt"] == "two and two"
    assert command("attribute", out) == 0


def test_what_needs_steps_says_why_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    file = labelled_texts(tmp_path / "few.jsonl")
    command("assemble", *stages(classifiers(tmp_path)), "--eval", file, "--out", out)
    capsys.readouterr()
    assert command("verify", out) == 1
    assert "this run was assembled from checkpoints; use --estimator task-vector" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("given", ["sft", "sft=", "=DIR", ""])
def test_a_stage_is_a_name_and_a_folder(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--stage", f"base={tmp_path}", "--stage", given, "--out", tmp_path / "run"]
    assert command("assemble", *words) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("stagelens: ")
    assert len(printed.splitlines()) == 1


def test_without_a_set_it_says_how_to_add_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert command("assemble", *stages(classifiers(tmp_path)), "--out", out) == 0
    assert f"stagelens add-set {out} FILE --name test" in capsys.readouterr().out
