"""The command line: what it prints, what it writes, and how it says that something is wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

import stagelens
from stagelens import cli
from stagelens.cli import terminal
from stagelens.contracts import StageLensError
from stagelens.runs.run import open_run
from stagelens.wording.trust_words import TrustWord
from tests.conftest import DemoRun
from tests.unit.conftest import Command

COMMANDS = ("demo", "app", "attribute", "verify", "add-set", "assemble")
STAGES = ["pretrain", "shortcut", "mislabelled", "adapt"]


def in_a_process(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stagelens", *map(str, words)],
        capture_output=True,
        text=True,
    )


# Help


def test_help_lists_every_command(command: Command) -> None:
    answer = command("--help")
    assert answer.status == 0
    assert "Which stage of a model's training is to credit or to blame" in answer.out
    for name in COMMANDS:
        assert f" {name} " in answer.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_its_help(name: str, command: Command) -> None:
    answer = command(name, "--help")
    assert answer.status == 0
    assert f"stagelens {name} " in " ".join(answer.out.split()).split("Example", 1)[1]


def test_no_command_shows_the_help(command: Command) -> None:
    assert "Commands" in command().out + command().err


# The demo


def test_the_demo_says_what_it_made(digits_run: DemoRun) -> None:
    assert f"{digits_run.path}: 4 stages, sets mixed-up, test" in digits_run.output
    assert f"stagelens attribute {digits_run.path} --set test" in digits_run.output
    assert [stage.name for stage in stagelens.open_run(digits_run.path).stages] == STAGES


def test_the_demo_reports_its_progress_in_a_file(digits_run: DemoRun) -> None:
    progress = digits_run.progress
    assert (progress["state"], progress["done"], progress["error"]) == ("done", 1.0, None)
    assert progress.keys() == {"state", "done", "text", "error", "marks"}


def test_the_demo_does_not_overwrite(digits_run: DemoRun, command: Command) -> None:
    answer = command("demo", "digits", "--out", digits_run.path)
    assert answer.status == 1
    assert answer.err.startswith(f"stagelens: {digits_run.path} is not empty; choose another")


@pytest.mark.slow
def test_without_a_terminal_a_demo_prints_a_line_for_every_phase(comments_run: DemoRun) -> None:
    lines, (first, *stages) = comments_run.told.splitlines(), open_run(comments_run.path).stages
    for stage in (first, *stages):
        assert sum(line.endswith(f" %  Training stage {stage.name}") for line in lines) == 1
    assert any(f"Replaying without {first.name}" in line for line in lines)
    assert len(lines) < 60


@pytest.mark.slow
def test_a_terminated_demo_leaves_nothing(tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"
    words = ("demo", "digits", "--out", tmp_path / "home" / "digits", "--progress", progress)
    demo = subprocess.Popen(
        [sys.executable, "-m", "stagelens", *map(str, words)], stderr=subprocess.DEVNULL
    )
    while not any((tmp_path / "home").glob(".digits-*")):
        assert demo.poll() is None
        time.sleep(0.01)
    demo.terminate()
    assert demo.wait() == 128 + signal.SIGTERM
    assert list((tmp_path / "home").iterdir()) == []


# attribute


def test_an_output_that_cannot_be_written_is_said_before_anything_is_computed(
    copied: Path, command: Command
) -> None:
    shutil.rmtree(copied / "results")
    answer = command("attribute", copied, "--out", copied / "run.json" / "effects.parquet")
    assert answer.status == 1
    assert not (copied / "results").exists()


@pytest.mark.slow
def test_the_time_is_told_beside_the_prediction_where_something_was_computed(
    copied: Path, command: Command
) -> None:
    options = ("attribute", copied, "--set", "mixed-up", "--estimator", "coarse-replay")
    first, again = (command(*options, "--budget", "0.5") for _ in range(2))
    assert "Note: computed in " in first.err and "; predicted, from " in first.err
    assert again.err == "" and again.out == first.out


@pytest.mark.slow
def test_where_replay_takes_hardly_longer_it_is_recommended(
    copied: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quick in (True, False):
        monkeypatch.setattr(cli.attributing, "saves_time", lambda *_, quick=quick: not quick)
        shutil.rmtree(copied / "results")
        answer = command("attribute", copied, "--set", "mixed-up", "--estimator", "coarse-replay")
        assert ("--estimator replay gives exact numbers" in answer.err) is quick


def test_a_run_without_a_finished_stage_is_said_to_be_one(command: Command, tmp_path: Path) -> None:
    task = stagelens.tasks.ImageClassification(["a", "b"], (1, 4, 4), model={"kind": "mlp"})
    stagelens.Recorder(tmp_path / "empty", task).close()
    for name in ("attribute", "verify"):
        answer = command(name, tmp_path / "empty")
        assert answer.status == 1
        assert "has no finished stage yet, so there is no final model" in answer.err


def test_attribute_prints_a_line_for_every_stage(digits_run: DemoRun, command: Command) -> None:
    answer = command("attribute", digits_run.path, "--set", "test", "--estimator", "replay")
    assert answer.status == 0, answer.err
    assert "Mean stage effect on test (894 examples)" in answer.out
    for behaviour in ("margin (higher is better)", "loss (lower is better)", "probability"):
        assert behaviour in answer.out
    for stage in STAGES:
        assert f" {stage} " in answer.out
    # What holds for several stages is said once.
    assert answer.out.count("exact. Replay repeats the recording bit for bit.") == 1
    assert "exact. The last stage's start is the model without it." in answer.out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_attribute_writes_the_table_with_its_trust(
    ending: str, digits_run: DemoRun, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "new" / f"effects.{ending}"
    options = ("--set", "mixed-up", "--estimator", "task-vector", "--out", out)
    answer = command("attribute", digits_run.path, *options)
    assert answer.status == 0, answer.err
    table = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert f"{out}: {len(table):,} rows" in answer.out
    assert table["stage"].unique().tolist() == STAGES
    trust = table.groupby("stage")["trust"].unique().map(list).to_dict()
    assert trust["adapt"] == ["exact"]
    assert set(table["trust"]) <= set(get_args(TrustWord))
    stored = stagelens.effects.computing.attribute(  # type: ignore[attr-defined]
        stagelens.open_run(digits_run.path), "mixed-up", "task-vector"
    ).table
    np.testing.assert_allclose(table["effect"], stored["effect"], rtol=1e-12)


def test_attribute_takes_several_stages(
    digits_run: DemoRun, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "effects.parquet"
    chosen = ("--stage", "shortcut", "--stage", "adapt")
    command("attribute", digits_run.path, "--estimator", "replay", *chosen, "--out", out)
    assert pd.read_parquet(out)["stage"].unique().tolist() == ["shortcut", "adapt"]
    assert set(pd.read_parquet(out)["set"]) == {"test"}  # the default, where there are several


# add-set


def test_add_set_reports_what_it_found(copied: Path, command: Command, tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), dtype=np.uint8)
    images[1:] = 200
    np.savez(tmp_path / "more.npz", images=images, y=["1", "2", ""])
    answer = command(
        "add-set", copied, tmp_path / "more.npz", "--name", "more", "--label-column", "y"
    )
    assert answer.status == 0, answer.err
    assert "Set 'more' has 3 examples; 1 without a label" in answer.out
    assert "1 with the input of an earlier one" in answer.out
    assert stagelens.open_run(copied).set_names == ["mixed-up", "more", "test"]


# Errors


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["attribute", "nowhere"], "nowhere is not a folder"),
        (["attribute", "RUN", "--set", "other"], "no evaluation set 'other' (it has: mixed-up, t"),
        (["attribute", "RUN", "--stage", "other"], "no finished stage 'other'; it has 'pretrain'"),
        (["attribute", "RUN", "--estimator", "magic"], "no estimator 'magic'; use one of task-ve"),
        (["attribute", "RUN", "--out", "effects.txt"], "name the file .parquet or .csv"),
        (["attribute", "RUN", "--task", "no.such:Thing"], "task 'no.such:Thing' cannot be import"),
        (["attribute", "RUN", "--task", "pathlib:Path"], "'pathlib:Path' is not a stagelens.Task"),
        (["attribute", "RUN", "--optimizer", "own"], "give it as NAME=package.module:Class"),
        (["attribute", "RUN", "--optimizer", "own=no.such:Thing"], "'no.such:Thing' cannot be"),
        (["add-set", "RUN", "nothing.npz", "--name", "x"], "nothing.npz"),
        (
            ["demo", "numbers", "--out", "new"],
            "there is no demo 'numbers'; use: digits, comments, chat",
        ),
        (
            ["attribute", "RUN", "--progress", "no/such/folder/file"],
            "no/such/folder cannot be written (No such file or directory); choose a folder that",
        ),
        (["attribute", "RUN", "--out", "FILE/effects.csv"], "effects.csv cannot be written (Not a"),
        (["attribute", "RUN", "--out", "folder.csv"], "folder.csv cannot be written (Is a dir"),
        (["demo", "digits", "--out", "FILE/digits"], "something else is in its place; rename it"),
        (
            [
                "attribute",
                "RUN",
                "--estimator",
                "replay",
                "--task",
                "tests.support.other_tasks:Renamed",
            ],
            "is the task 'renamed', but the run was recorded with 'image-classification'",
        ),
        (
            [
                "attribute",
                "RUN",
                "--estimator",
                "replay",
                "--task",
                "tests.support.other_tasks:Wider",
            ],
            "open the run with the task that it was recorded with",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_status_1(
    words: list[str],
    says: str,
    digits_run: DemoRun,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    words = [w.replace("FILE", str(digits_run.path / "run.json")) for w in words]
    words = [str(digits_run.path) if word == "RUN" else word for word in words]
    answer = command(*words)
    assert answer.status == 1
    assert answer.out == ""
    assert says in answer.err
    assert answer.err.startswith("stagelens: ")
    assert answer.err.count("\n") == 1
    with pytest.raises((StageLensError, OSError)):
        monkeypatch.setattr(sys, "argv", ["stagelens", "--debug", *words])
        cli.main()


def test_a_damaged_run_is_one_line_that_names_the_file(copied: Path, command: Command) -> None:
    end = copied / "stages" / "03-adapt" / "end.model.safetensors"
    end.write_bytes(end.read_bytes()[:-1])
    answer = command("attribute", copied)
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert str(end.relative_to(copied)) in answer.err


def test_a_wrong_option_says_how_the_command_is_used(command: Command) -> None:
    answer = command("attribute", "run", "--estimater", "replay")
    assert answer.status == 2
    assert "--estimater" in answer.err
    assert "Traceback" not in answer.err


def test_a_traceback_is_shown_only_with_debug(tmp_path: Path) -> None:
    """In a process of its own, as a user sees it."""
    plain = in_a_process("attribute", tmp_path)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr == (
        f"stagelens: {tmp_path} is not a run folder (it has no run.json); record one with "
        "stagelens.Recorder, or make the demo with: stagelens demo digits --out DIR\n"
    )
    debug = in_a_process("--debug", "attribute", tmp_path)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "RunError" in debug.stderr


def test_an_unfinished_stage_is_noted(copied: Path, command: Command) -> None:
    run = stagelens.open_run(copied)
    recorder = stagelens.Recorder(copied, run.task, resume=True)
    model = run.task.build_model()
    recorder.restore(model)
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), recorder.stage("more", model=model, optimizer=optimizer):
        raise KeyboardInterrupt
    recorder.close()
    answer = command("attribute", copied, "--estimator", "replay")
    assert answer.status == 0
    assert "Note: stage 'more' was not finished: 0 steps were saved" in answer.err


# Progress


def test_progress_goes_from_running_to_done(
    copied: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "results")
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    file, states = tmp_path / "progress.json", []
    real = terminal.Reporter.write

    def write(self: terminal.Reporter, state: str, error: str | None = None) -> None:
        real(self, state, error)
        states.append(json.loads(file.read_text()))

    monkeypatch.setattr(terminal.Reporter, "write", write)
    options = ("--estimator", "task-vector", "--set", "mixed-up", "--progress", file)
    assert command("attribute", copied, *options).status == 0
    assert [state["state"] for state in states[:-1]] == ["running"] * (len(states) - 1)
    assert states[-1]["state"] == "done"
    shares = [state["done"] for state in states]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert any("measuring" in state["text"] for state in states)


def test_progress_that_fails_says_why(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    answer = command("attribute", tmp_path / "nowhere", "--progress", file)
    assert answer.status == 1
    state = json.loads(file.read_text())
    assert (state["state"], state["done"]) == ("failed", 0.0)
    assert answer.err == f"stagelens: {state['error']}\n"
