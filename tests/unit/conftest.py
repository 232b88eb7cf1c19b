"""Fixtures for unit tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from stagelens import cli
from stagelens.report.page import Report
from stagelens.report.sections import whole_report
from stagelens.report.store import FindingStore
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from tests.conftest import DemoRun
from tests.support.findings import seen
from tests.support.loops import Training
from tests.support.small_runs import Phase, record


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("attribute", run, "--set", "test")``: the command line, in this process."""

    def run(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["stagelens", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(end.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def copied(digits_run: DemoRun, tmp_path: Path) -> Path:
    """A copy of the demo to change."""
    return Path(shutil.copytree(digits_run.path, tmp_path / "digits"))


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """A small training into a new folder, for a test to spoil."""
    return Training(tmp_path / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three stages of AdamW on a small network, with the evaluation set ``test``."""
    path = tmp_path_factory.mktemp("three") / "run"
    phases = [
        Phase(name, lambda groups: torch.optim.AdamW(groups, 0.01), steps=20)
        for name in ("first", "second", "third")
    ]
    made = record(path, "cnn", phases)
    random = np.random.default_rng(0)
    write_set(
        path,
        made.task,
        "test",
        images=random.normal(size=(60, 4, 4)).astype(np.float32),
        labels=random.integers(0, 3, 60).tolist(),
    )
    return made


@pytest.fixture(scope="module")
def whole(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The default report of the demo, with one pinned finding, for tests of reports."""
    folder = tmp_path_factory.mktemp("report") / "digits"
    shutil.copytree(digits_run.path, folder)
    run = open_run(folder)
    FindingStore(run).pin(seen(run_digest=run.digest), "A note beside it")
    made, problems = whole_report(run, "test")
    assert not problems
    return made
