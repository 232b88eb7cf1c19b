"""Fixtures for unit tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stagelens.runs.run import Run
from stagelens.runs.sets.writer import write_set
from tests.support.loops import Training
from tests.support.small_runs import Phase, record


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
