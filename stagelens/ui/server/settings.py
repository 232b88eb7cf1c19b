"""Where runs may be opened from, how a link names one, and how much memory they may take.

All of this is read from the environment, never from a page.

``STAGELENS_HOME`` is the folder that runs and the demo are kept in (default: ``runs`` under the
current directory). ``STAGELENS_ROOTS`` lists the folders that runs, checkpoints and files may be
opened from, separated as in PATH (default: the home and the current directory). Every path, typed
or from a link, goes through :func:`resolve` or :func:`allowed`.

``STAGELENS_RUN`` is a run folder, wherever it lies, that the first page of a visit opens if its
address names no run (``stagelens app RUN`` sets it).

``STAGELENS_MEMORY`` is how much memory may be taken by the weights of models that answer own
examples, for instance ``500 MB`` (default: 2 GB).

``STAGELENS_UPLOADS`` is how much memory files that people upload may take, of all sessions together
(default: 200 MB); the largest single file is Streamlit's ``server.maxUploadSize``.

``STAGELENS_READ_ONLY=1`` makes a dashboard that is safe to open to everybody: nothing is uploaded,
computed in the background or saved.

``STAGELENS_JOBS`` is how many jobs run at once (default: 2); ``STAGELENS_JOB_MEMORY`` and
``STAGELENS_JOB_THREADS`` limit each of them (default: no limit).

``STAGELENS_SIGN_IN`` set to 1 asks people to sign in, see ``signing_in``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from stagelens.compute.memory import bytes_of
from stagelens.contracts import RunError, StageLensError

# Renamed to itself: that is how type checkers know a re-export.
from stagelens.runs.files import read_only as read_only

DEMO = "digits"
"""How links name the demo."""

DEMOS = (DEMO, "comments", "chat")
"""The built-in demos, by the names that links and the command line give them."""

JOBS = 2
"""How many jobs run at once unless the environment says otherwise."""

READ_ONLY = (
    "This dashboard is read-only: nothing is uploaded, computed in the background or saved here."
)
"""Why controls are disabled or missing."""

MEMORY = "2 GB"
"""What weights may take unless the environment says otherwise."""

UPLOADS = "200 MB"
"""What uploaded files may take unless the environment says otherwise."""

_LONGEST = 1024


def memory() -> int:
    """Bytes that the weights of models may occupy between questions.

    Raises:
        StageLensError: ``STAGELENS_MEMORY`` is not an amount of memory.
    """
    return _amount("STAGELENS_MEMORY", os.environ.get("STAGELENS_MEMORY") or MEMORY)


def uploads() -> int:
    """Bytes that uploaded files may occupy, of all sessions together.

    Raises:
        StageLensError: ``STAGELENS_UPLOADS`` is not an amount of memory.
    """
    return _amount("STAGELENS_UPLOADS", os.environ.get("STAGELENS_UPLOADS") or UPLOADS)


def jobs_at_once() -> int:
    """How many jobs run at the same time.

    Raises:
        StageLensError: ``STAGELENS_JOBS`` is not a whole number of at least 1.
    """
    return _count("STAGELENS_JOBS") or JOBS


def job_threads() -> int | None:
    """How many threads one job may compute with; None leaves the choice to its libraries.

    Raises:
        StageLensError: ``STAGELENS_JOB_THREADS`` is not a whole number of at least 1.
    """
    return _count("STAGELENS_JOB_THREADS")


def job_memory() -> int | None:
    """Bytes of memory that one job may take; None for no limit.

    Raises:
        StageLensError: ``STAGELENS_JOB_MEMORY`` is not an amount of memory.
    """
    text = os.environ.get("STAGELENS_JOB_MEMORY")
    return _amount("STAGELENS_JOB_MEMORY", text) if text else None


def _count(variable: str) -> int | None:
    text = (os.environ.get(variable) or "").strip()
    if not text:
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise StageLensError(
            f"{variable} is {text!r}; start the dashboard with a whole number of at least 1"
        )
    return int(text)


def _amount(variable: str, text: str) -> int:
    found = bytes_of(text)
    if found is None:
        raise StageLensError(
            f"{variable} is {text.strip()!r}, which is not an amount of memory; start the "
            "dashboard with one such as 500MB or 4GB"
        )
    return found


def sign_in() -> bool:
    """Whether people have to sign in before they see anything: any value but 0 requires it."""
    # A misspelt value must lock the dashboard rather than open it.
    return (os.environ.get("STAGELENS_SIGN_IN") or "0").strip() != "0"


def home() -> Path:
    """The folder that runs and the demo are kept in; it need not exist yet."""
    return Path(os.environ.get("STAGELENS_HOME") or "runs").expanduser().resolve()


def roots() -> tuple[Path, ...]:
    """Folders that runs may be opened from, the home first."""
    named = [Path(part).expanduser() for part in _listed() if part.strip()]
    folders = (home(), *(named or [Path.cwd()]), *_started())
    # dict.fromkeys drops duplicates and keeps the order in which paths are tried.
    return tuple(dict.fromkeys(path.resolve() for path in folders))


def started_with() -> str | None:
    """How a link names the run that the dashboard was started with; None without one."""
    return next((reference_for(run.resolve()) for run in _started()), None)


def _started() -> list[Path]:
    run = os.environ.get("STAGELENS_RUN")
    return [Path(run).expanduser()] if run else []


def _listed() -> list[str]:
    return (os.environ.get("STAGELENS_ROOTS") or "").split(os.pathsep)


def demo_folder(name: str = DEMO) -> Path:
    """Where a demo is, or will be built."""
    return home() / name


def demo_built(name: str = DEMO) -> bool:
    """Whether a demo has been built."""
    return (demo_folder(name) / "run.json").is_file()


def resolve(reference: str) -> Path:
    """The run folder that a link or a person names.

    Args:
        reference: ``digits`` for the demo, a path relative to a root, or an absolute path below
            one.

    Raises:
        RunError: It leads out of the roots, or is not a run folder; says what to do.
    """
    if reference.strip() == DEMO:
        if not demo_built():
            raise RunError("the digits demo has not been built yet; build it on the Overview page")
        found = _inside(demo_folder(), roots())
    else:
        found = allowed(reference, "run folder")
    if not (found / "run.json").is_file():
        raise RunError(
            f"{found} is not a run folder (it has no run.json); record one with "
            "stagelens.Recorder, or build the digits demo"
        )
    return found


def allowed(reference: str, what: str) -> Path:
    """The file or folder that a person names, which must lie below one of the roots.

    Args:
        reference: A path relative to a root, or an absolute path below one.
        what: What it is called; a ``file`` may also be a folder, anything else must be one.

    Raises:
        RunError: It leads out of the roots, or nothing is there; says what to do.
    """
    text = reference.strip()
    if not text:
        raise RunError(f"no {what} is named; give the path of one")
    if len(text) > _LONGEST or any(ord(c) < 32 for c in text):
        raise RunError(
            "StageLens cannot open this path: it is too long, or holds characters that cannot be "
            "printed"
        )
    path = Path(text)
    # Checked before the file system is asked about the path at all.
    if ".." in path.parts or "\\" in text:
        raise RunError(f"{text} contains '..' or '\\'; give the path without it")
    if text.startswith("~/"):
        path = path.expanduser()
    below = roots()
    candidates = [path] if path.is_absolute() else [root / path for root in below]
    found = next((each for each in candidates if _is_there(each, what == "file")), None)
    if found is None:
        # The same words whether or not it exists, so that nobody learns what lies outside.
        if path.is_absolute() and not any(path.is_relative_to(root) for root in below):
            raise RunError(_outside(text, below))
        kind = "file" if what == "file" else "folder"
        raise RunError(f"there is no {kind} {text} under {_named(below)}; check the path")
    return _inside(found, below)


def _is_there(path: Path, file: bool) -> bool:
    try:
        return path.exists() if file else path.is_dir()
    except OSError:  # for instance a name longer than the file system allows
        return False


def _inside(path: Path, below: Sequence[Path]) -> Path:
    # Resolved first: a symbolic link below a root may lead out of it.
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in below):
        raise RunError(_outside(str(path), below))
    return real


def _outside(text: str, below: Sequence[Path]) -> str:
    return (
        f"{text} is not below a folder that the dashboard may open ({_named(below)}); move it "
        "there, or start the dashboard with STAGELENS_ROOTS naming its folder"
    )


def _named(below: Sequence[Path]) -> str:
    return ", ".join(str(root) for root in below)


def reference_for(path: Path) -> str:
    """How a link names a run folder: short, and the same on every server with the same roots."""
    if path == demo_folder().resolve():
        return DEMO
    for root in roots():
        if path.is_relative_to(root) and path != root:
            short = path.relative_to(root).as_posix()
            with contextlib.suppress(RunError):
                # An earlier root may hold another run of this name, which would be opened.
                if short != DEMO and resolve(short) == path:
                    return short
    return str(path)


def known_runs(limit: int = 50) -> list[str]:
    """Run folders directly below the home, by the names that links give them."""
    folder = home()
    if not folder.is_dir():
        return []
    names = sorted(path.parent.name for path in folder.glob("*/run.json"))
    # Hidden folders are runs that a job has not finished.
    return [name for name in names if name != DEMO and not name.startswith(".")][:limit]
