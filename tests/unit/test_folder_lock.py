"""A run folder has one recorder at a time, and none once that is closed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import stagelens
from tests.support.loops import make_task, refused


def test_a_second_recorder_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", make_task())
    with refused("another recorder has", "call its close method"):
        stagelens.Recorder(tmp_path / "run", make_task(), resume=True)
    recorder.close()
    stagelens.Recorder(tmp_path / "run", make_task(), resume=True).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only forked workers inherit open files")
def test_workers_of_a_loader_that_live_on_do_not_hold_the_folder(tmp_path: Path) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", make_task())
    loader = DataLoader(
        TensorDataset(torch.zeros(2)),
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    workers = iter(loader)
    next(workers)
    with refused("another recorder has"):  # the fork released nothing that this process holds
        stagelens.Recorder(tmp_path / "run", make_task(), resume=True)
    recorder.close()
    stagelens.Recorder(tmp_path / "run", make_task(), resume=True).close()
    assert list(workers) != []
