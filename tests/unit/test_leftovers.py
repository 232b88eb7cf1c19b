"""What jobs leave behind when they are cancelled, killed, or lose their server: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stagelens.compute import temporaries
from stagelens.effects.computing import attribute
from stagelens.runs.sets.writer import write_set
from stagelens.ui.server import interrupted_jobs, jobs
from stagelens.ui.server.child import Job
from stagelens.ui.server.jobs import Registry
from tests.support.checkpoints import classifiers
from tests.support.loops import Plan, make_batches, make_task, record_plans

HALTED = (sys.executable, "-m", "tests.support.halted")

ON_A_RUN = {
    "attribute": "attribute RUN --set test --estimator replay",
    "verify": "verify RUN --set test",
    "contributions": "contributions RUN --set test --example 3",
    "features": "features RUN --set test --estimator task-vector",
    "saliency": "saliency RUN --set test --stage first --example 3 --estimator task-vector",
    "remove": "remove RUN --set test --stage first --estimator task-vector --strength 0.5",
    "search": "remove RUN --set test --stage first --estimator task-vector --by group "
    "--close-gap x",
    "report": "report RUN --set test --out HOME/report.html",
}
MAKING = {
    "demo": "demo digits",
    "assemble": "assemble --stage base=CHECKPOINTS/base --stage sft=CHECKPOINTS/sft",
    "save": "remove RUN --set test --stage first --estimator task-vector --strength 1",
}
"""Jobs that make a folder, as the dashboard starts them."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a run ``run``, whose task vector is known, and checkpoints beside it."""
    folder = tmp_path_factory.mktemp("leftovers")
    task = make_task()
    plans = [
        Plan(name, lambda model, _: torch.optim.SGD(model.parameters(), lr=0.1), batches=2)
        for name in ("first", "second")
    ]
    run = record_plans(folder / "home" / "run", task, plans)
    images, labels = make_batches(1, seed=5, size=24)[0]
    columns = {"group": ["x", "y"] * 12}
    write_set(run.path, task, "test", images=images, labels=labels.tolist(), columns=columns)
    attribute(run, "test", "task-vector")
    words = MAKING["save"].replace("RUN", str(run.path)).split()
    # Measured before, so that it is the edited model whose making is cut short.
    subprocess.run([sys.executable, "-m", "stagelens", *words], check=True, capture_output=True)
    classifiers(folder / "checkpoints", ("base", "sft"))
    return folder


@pytest.fixture
def home(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with a folder of its own for temporary files."""
    shutil.copytree(prepared / "home", tmp_path / "home")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("STAGELENS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path / "home"


def tree(home: Path) -> set[str]:
    return {str(path.relative_to(home.parent)) for path in home.parent.rglob("*")}


def temporary(home: Path) -> set[str]:
    return {path for path in tree(home) if "-of-" in path and "stagelens-job" not in path}


def wait_until(true: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.02)


def started(registry: Registry, words: str, home: Path, prepared: Path, making: bool) -> Job:
    """The job, once it has something half-made."""
    for name, path in (
        ("RUN", home / "run"), ("HOME", home), ("CHECKPOINTS", prepared / "checkpoints")
    ):  # fmt: skip
        words = words.replace(name, str(path))
    command = (*HALTED, *words.split())
    out = home / "edited" / "made" if making else None
    job = registry.start(command, "Test", out, () if making else (home / "run", home))
    wait_until(lambda: not job.running or "halted" in job.log(), job.log)
    assert job.running, job.log()
    return job


# All are cut short at their first file or folder, so one is cancelled as the other.
OFTEN = {*((kind, "kill") for kind in (*ON_A_RUN, *MAKING) if kind != "report"), ("save", "cancel")}


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        pytest.param(kind, end, marks=[] if (kind, end) in OFTEN else pytest.mark.extensive)
        for kind in (*ON_A_RUN, *MAKING)
        for end in ("kill", "cancel")
    ],
)
def test_a_job_that_is_cancelled_or_killed_leaves_nothing(
    kind: str, end: str, home: Path, prepared: Path
) -> None:
    before = tree(home)
    registry = Registry()
    job = started(registry, {**ON_A_RUN, **MAKING}[kind], home, prepared, kind in MAKING)
    assert temporary(home), "nothing was half-made"
    if end == "cancel":
        job.cancel(grace=60)
    else:
        assert job.pid is not None
        os.kill(job.pid, signal.SIGKILL)
    wait_until(lambda: not job.running)
    registry.cancel_all()
    assert job.status().state == ("cancelled" if end == "cancel" else "failed")
    wait_until(lambda: tree(home) == before, lambda: sorted(tree(home) ^ before))


def test_the_next_command_deletes_what_a_killed_one_left(home: Path, tmp_path: Path) -> None:
    images, labels = make_batches(1, seed=7)[0]
    np.savez(tmp_path / "more.npz", images=images.numpy(), labels=labels.numpy())
    before = tree(home)
    words = ["add-set", str(home / "run"), str(tmp_path / "more.npz")]
    child = subprocess.Popen([*HALTED, *words, "--name", "more"], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"halted\n"
    assert temporary(home)
    child.kill()
    child.communicate()
    done = [sys.executable, "-m", "stagelens", "attribute", str(home / "run"), "--set", "test"]
    subprocess.run([*done, "--estimator", "task-vector"], check=True, capture_output=True)
    assert not temporary(home)
    assert {each for each in tree(home) - before if "/results/" not in each} == set()


SERVER = """
import sys, time
from pathlib import Path
from stagelens.ui.server.jobs import Registry
code = '''
import sys, time
from pathlib import Path
from stagelens.runs.files import atomic_path, new_folder
out, run = Path(sys.argv[sys.argv.index("--out") + 1]), Path(sys.argv[1])
with new_folder(out), atomic_path(run / "results" / "new" / "table") as file:
    file.touch()
    print("halted", flush=True)
    time.sleep(60)
'''
home, run = Path(sys.argv[1]), Path(sys.argv[2])
command = (sys.executable, "-c", code, str(run))
job = Registry().start(command, "Save", home / "edited" / "made", [run])
while job.running and "halted" not in job.log():
    time.sleep(0.02)
print(job.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("where", [pytest.param("home", marks=pytest.mark.extensive), "elsewhere"])
def test_a_killed_server_leaves_nothing_once_the_next_one_starts(
    where: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home.parent / where / "run"
    if where == "elsewhere":
        shutil.copytree(home / "run", run)
    monkeypatch.setenv("STAGELENS_ROOTS", str(home.parent))
    before = tree(home)
    paths = os.pathsep.join([str(Path(jobs.__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(home), str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert server.stdout is not None
    child = int(server.stdout.readline())
    assert len(temporary(home)) >= 3, "a folder within a folder, and a file"
    interrupted_jobs.clean_up()  # another server of this home starts: this one's are not touched
    assert len(temporary(home)) >= 3
    server.kill()
    server.wait()
    interrupted_jobs.clean_up()
    assert temporaries.born(child) is None
    (left,) = interrupted_jobs.found()
    left.dismiss()
    (home / interrupted_jobs.FOLDER).rmdir()
    assert tree(home) == before
