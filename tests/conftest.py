"""Fixtures for every test."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock

from tests.support import processor_time, spreading, warm

ROOT = Path(__file__).resolve().parents[1]

# The models are small: two threads wait for each other longer than one works, above all where
# other processes hold the cores. Set before torch is imported, here and in child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

warm.install()
warm.forgo_fsync()

# Examples are bounded in number, not in time: the machines that run this are busy ones.
hypothesis.settings.register_profile("stagelens", deadline=None, print_blob=True)
hypothesis.settings.load_profile("stagelens")


pytest_configure = processor_time.pytest_configure
pytest_collection = processor_time.pytest_collection
pytest_xdist_auto_num_workers = spreading.pytest_xdist_auto_num_workers
pytest_xdist_make_scheduler = spreading.pytest_xdist_make_scheduler
pytest_collection_modifyitems = spreading.pytest_collection_modifyitems
pytest_terminal_summary = spreading.pytest_terminal_summary


@pytest.fixture(autouse=True)
def alone() -> None:
    """How many processes share the work is not what an earlier test, or a library in it, left."""
    for name in ("STAGELENS_PROCESSES", "WORLD_SIZE", "RANK", "PMI_SIZE"):
        os.environ.pop(name, None)


@dataclass(frozen=True)
class DemoRun:
    """A demo as the command line built it.

    Attributes:
        path: The run folder. Read it only; copy it to change it.
        output: What the command printed.
        progress: The last state in the file given as ``--progress``; of the digits demo only.
        cpu_seconds: Processor time that it took.
        told: What it printed as progress, with neither a file nor a terminal for it.
    """

    path: Path
    output: str
    progress: dict[str, object]
    cpu_seconds: float
    told: str = ""


def offline() -> dict[str, str]:
    """The environment of a child process that cannot reach any other machine."""
    barred = ROOT / "tests" / "support" / "offline"
    paths = (str(barred), str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """A folder that all workers of one call of pytest share, made by the first that asks for it.

    Args:
        factory: Of the worker.
        name: Of the folder.
        make: Fills a new folder and returns what JSON can hold, for every worker.

    Returns:
        The folder and what ``make`` returned.
    """
    base = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder, told = base / name, base / f"{name}.json"
    with FileLock(base / f"{name}.lock"):
        if not told.exists():
            folder.mkdir()
            told.write_text(json.dumps(make(folder)))
    return folder, json.loads(told.read_text())


def _built(name: str, folder: Path) -> DemoRun:
    """A demo, built by the command line in a process of its own; without draws of its recipe."""
    path, progress = folder / name, folder / "progress.json"
    command = ["demo", name, "--out", str(path), "--draws", "0"]
    if name == "digits":  # the other one tells its progress where it is started
        command += ["--progress", str(progress)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "stagelens", *command],
        cwd=ROOT,
        # Workers share the cores already.
        env={**offline(), "STAGELENS_PROCESSES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    state = json.loads(progress.read_text()) if progress.exists() else {}
    return DemoRun(path, done.stdout, state, cpu, done.stderr)


def _shared(name: str, factory: pytest.TempPathFactory) -> DemoRun:
    """A demo, built by the first worker that needs it."""

    def make(folder: Path) -> dict[str, Any]:
        return {**asdict(_built(name, folder)), "path": name}

    folder, told = made_once(factory, f"demo-{name}", make)
    return DemoRun(**{**told, "path": folder / name})


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The digits demo, built once."""
    return _shared("digits", tmp_path_factory)


@pytest.fixture(scope="session")
def comments_run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The comments demo, built once."""
    return _shared("comments", tmp_path_factory)


@pytest.fixture(scope="session")
def verified_run(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The digits demo after ``verify`` with two budgets and one other order, and what it printed.

    Read it only; copy it to change it.
    """
    options = ("--set", "test", "--budget", "0.25", "--budget", "0.5", "--orders", "1", "--json")

    def make(folder: Path) -> dict[str, Any]:
        path = shutil.copytree(digits_run.path, folder / "digits")
        done = subprocess.run(
            [sys.executable, "-m", "stagelens", "verify", str(path), *options],
            cwd=ROOT,
            env=offline(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return {"output": done.stdout}

    folder, told = made_once(tmp_path_factory, "verified-digits", make)
    return DemoRun(folder / "digits", told["output"], {}, 0.0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data sets, which are no part of the repository; STAGELENS_DATA says where they are."""
    folder = Path(os.environ.get("STAGELENS_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder} (set STAGELENS_DATA to a folder that has them)")
    return folder


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the run ``answers``, whose answers are scored. Read it only, or copy it."""
    from tests.support.text_runs import record_answers

    def make(home: Path) -> dict[str, Any]:
        record_answers(home / "answers")
        return {}

    return made_once(tmp_path_factory, "answers", make)[0]


@pytest.fixture(scope="session")
def short_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the demo ``chat`` of few steps, answered and scored. Read it only, or copy it."""
    from stagelens.demos import chat
    from stagelens.effects.computing import attribute
    from tests.support.text_runs import SHORT_CHAT

    def make(home: Path) -> dict[str, Any]:
        run = chat.record(home / "chat", plans=SHORT_CHAT)
        chat.finish(run)
        attribute(run, "test", "replay")
        return {}

    return made_once(tmp_path_factory, "chat", make)[0]


@pytest.fixture(scope="session")
def text_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the runs ``comments`` and ``prompts``, each with a set of hostile texts too.

    Read it only; copy it to change it.
    """
    from tests.support.text_runs import add_hostile_set, record_comments, record_prompts

    def make(home: Path) -> dict[str, Any]:
        for record in (record_comments, record_prompts):
            add_hostile_set(record(home / record.__name__.removeprefix("record_")))
        return {}

    return made_once(tmp_path_factory, "texts", make)[0]
