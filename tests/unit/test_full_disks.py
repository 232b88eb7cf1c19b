"""A disk that is full or may not be written: the job says so, and the run folder stays whole."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from stagelens.effects.computing import attribute
from stagelens.runs.files import atomic_path
from stagelens.runs.run import Run, open_run
from stagelens.runs.saved_states import save_tensors
from stagelens.ui.server.child import Job
from stagelens.ui.server.jobs import Registry
from tests.support.odd_runs import record


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return record(tmp_path / "run", {"first": (2, 0.05), "last": (2, 0.05)})


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def over(job: Job) -> None:
    assert job._reaper is not None
    job._reaper.join(400)
    assert not job.running


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said", "advice"),
    [
        ("full", "File too large", "free some space, or choose another disk"),
        ("read-only", "Read-only file system", "choose a folder that you may write to"),
    ],
    ids=["full", "read-only"],
)
def test_a_job_that_cannot_write_says_so_and_leaves_the_run_as_it_was(
    run: Run, spoil: str, said: str, advice: str
) -> None:
    before = files(run.path)
    job = Registry().start(
        (sys.executable, "-m", "tests.support.spoiled", spoil, "attribute", str(run.path)),
        "Attribute",
    )
    over(job)
    error = str(job.status().error)
    assert job.status().state == "failed"
    assert f"cannot be written ({said})" in error and advice in error and str(run.path) in error
    assert files(run.path) == before
    result = attribute(open_run(run.path), "test", "task-vector")  # once there is room again
    assert result.table["effect"].notna().all()


@pytest.mark.parametrize("size", [10, 10**6])
def test_weights_that_do_not_fit_leave_nothing_behind(tmp_path: Path, size: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        save_tensors(tmp_path, "a.safetensors", {"w": torch.zeros(size)})
        written = True
    except OSError as error:
        assert (error.errno, error.filename) == (errno.EFBIG, str(tmp_path / "a.safetensors"))
        written = False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert written == (size == 10)
    assert len(list(tmp_path.iterdir())) == written


def test_a_disk_that_fills_up_at_the_last_moment_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.json"
    path.write_text("before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as raised, atomic_path(path) as to:
        to.write_text("after")
    assert raised.value.filename == str(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
