"""Where counterfactuals are kept in a run folder. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import ChainMap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stagelens.compute import temporaries
from stagelens.compute.memory import bytes_of
from stagelens.contracts import StageLensError
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import FileRef, digest

from .registry import method_of


def cache_name(run: Run, stage: Stage, estimator: str, settings: Mapping[str, Any]) -> str:
    """What the files of a counterfactual begin with, within the run folder."""
    key = digest(method_of(estimator), run.digest, stage.name, estimator, dict(settings))[:32]
    return f"results/counterfactuals/{key}"


def is_cached(run: Run, stage: Stage, estimator: str) -> bool:
    """Whether the model without a stage is there, by an estimator without settings."""
    return run.files.inside(f"{cache_name(run, stage, estimator, {})}.json").is_file()


LIMIT = "STAGELENS_RESULTS_SIZE"
"""Environment variable: how much disk the models without a stage may take in a run's results."""


def limit() -> int | None:
    """Bytes that they may take; None for no limit.

    Raises:
        StageLensError: The variable is set, and is not an amount.
    """
    text = os.environ.get(LIMIT) or ""
    if not text.strip():
        return None
    found = bytes_of(text)
    if found is None:
        raise StageLensError(
            f"{LIMIT} is {text.strip()!r}, which is not an amount; set one such as 500MB or 20GB"
        )
    return found


def note_use(run: Run, name: str) -> None:
    """Say that an entry was read just now, so that others go first."""
    if limit() is not None:
        with contextlib.suppress(OSError):  # a run that cannot be changed is not thinned either
            # To the nanosecond: what the system itself notes moves on every few milliseconds only,
            # in which several small models are read.
            now = time.time_ns()
            os.utime(run.path / f"{name}.json", ns=(now, now))


def make_room(run: Run, keep: str) -> list[str]:
    """Delete the entries that were not used for longest until the limit holds.

    What was measured with them is in tables, which stay; the models are computed again when they
    are needed. Who reads one at the moment goes on, since its files are mapped.

    Args:
        run: Whose results.
        keep: The entry that was written just now, which stays.

    Returns:
        The entries that are gone.
    """
    most = limit()
    if most is None:
        return []
    note_use(run, keep)
    folder = run.files.inside("results/counterfactuals")
    entries: dict[str, list[Path]] = {}
    for file in Path(folder).iterdir():
        entries.setdefault(file.name.partition(".")[0], []).append(file)
    stats = {key: [file.stat() for file in files] for key, files in entries.items()}
    # What several entries share goes with the last of them.
    sizes = {key: {stat.st_ino: stat.st_size for stat in own} for key, own in stats.items()}
    used = {
        key: max(s.st_mtime_ns for f, s in zip(files, stats[key], strict=True) if _says(f, files))
        for key, files in entries.items()
    }
    gone = []
    for key in sorted(entries, key=lambda key: used[key]):
        if sum(dict(ChainMap(*sizes.values())).values()) <= most:
            break
        if key == Path(keep).name:
            continue
        # The description first: without it nothing counts as stored.
        for file in sorted(entries[key], key=lambda file: file.suffix != ".json"):
            file.unlink(missing_ok=True)
        del sizes[key]
        gone.append(key)
    return gone


def _says(file: Path, files: list[Path]) -> bool:
    """Whether a file tells when its entry was used: its description, if there is one."""
    return file.suffix == ".json" or all(each.suffix != ".json" for each in files)


def share(run: Run, written: Iterable[FileRef]) -> None:
    """Let files of other entries that are the same as new ones be these, as hard links.

    The twin that stands for the recorded training is the same of every stage. Where the disk has no
    links, both stay.

    Args:
        run: Whose results.
        written: Files of an entry, just written.
    """
    folder = run.files.inside("results/counterfactuals")
    new = {file.sha256: file for file in written}
    for description in folder.glob("*.json"):
        try:
            known = json.loads(description.read_bytes())["files"].values()
            same = [(each["path"], new[each["sha256"]]) for each in known if each["sha256"] in new]
            for path, file in same:
                _link(run.files.inside(file.path), run.files.inside(path))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, StageLensError):
            continue  # damaged, or just deleted by another process


def _link(file: Path, place: Path) -> None:
    if not place.is_file() or place.samefile(file):
        return
    # Through another name, so that the place is never without its file.
    temporary = place.with_name(temporaries.name(f".{place.name}", ".tmp"))
    try:
        os.link(file, temporary)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
