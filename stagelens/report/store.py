"""Findings in the run folder: plain files that are only ever added.

``findings/ID/seen.json`` holds what was seen, and each change of the note, the place or the
removal is one more small file, ``findings/ID/edits/TIME-RANDOM.json``. Nothing is ever overwritten,
so two people (threads, processes, hosts) who edit at once cannot lose each other's words: of each
note, place and removal the last write counts, and what it replaced stays in the history. No lock
is needed.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stagelens.contracts import RunError, StageLensError
from stagelens.runs.files import cannot_write, check_changeable, read_json, write_json
from stagelens.runs.run import Run

from .figures import check_figure
from .finding import Finding, FindingEdit, Seen, in_order

FOLDER = "findings"
_LARGEST = 32 * 2**20
"""Most bytes of a file that is opened; anything pinned is far smaller."""

_ID = re.compile(r"[0-9a-f]{16}")
_EDIT = re.compile(r"(\d{1,20})-[0-9a-f]{8}\.json")


@dataclass(frozen=True)
class Findings:
    """The findings of a run at one moment.

    Attributes:
        kept: Those in the report, in order.
        removed: Those taken out, which can be put back.
        problems: What could not be read: one sentence per file.
    """

    kept: list[Finding] = field(default_factory=list)
    removed: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def new_id() -> str:
    """A name for a finding, random so that writers need not agree on the next one."""
    return secrets.token_hex(8)


class FindingStore:
    """The findings of one run folder.

    Args:
        run: The run; only its folder is used.
    """

    def __init__(self, run: Run) -> None:
        self._files = run.files

    def stamp(self) -> str:
        """A text that changes whenever anything is added; takes a few stat calls."""
        try:
            folder = self._files.inside(FOLDER)
            found = sorted(each for each in folder.iterdir() if _ID.fullmatch(each.name))
        except (OSError, RunError):
            return ""
        # Both folders: pinning adds seen.json to the first, and every edit a file to the second.
        return "-".join(f"{each.name}{_mtime(each)}{_mtime(each / 'edits')}" for each in found)

    def read(self) -> Findings:
        """All findings; damaged files are reported and left out, so that the others are shown."""
        found = Findings()
        everything: list[Finding] = []
        try:
            folder = self._files.inside(FOLDER)
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
        except (OSError, RunError) as error:
            return Findings(problems=[f"The findings cannot be read: {error}"])
        for name in filter(_ID.fullmatch, names):
            try:
                finding = self._finding(name, found.problems)
            except StageLensError as error:
                found.problems.append(
                    f"A finding is damaged and not shown: {error}. Restore the file, or delete "
                    f"the folder {FOLDER}/{name}"
                )
                continue
            if finding is not None:
                everything.append(finding)
        ordered = in_order(everything)
        return Findings(
            [finding for finding in ordered if not finding.removed],
            [finding for finding in ordered if finding.removed],
            found.problems,
        )

    def _finding(self, name: str, problems: list[str]) -> Finding | None:
        path = self._files.inside(f"{FOLDER}/{name}/seen.json")
        if not path.exists() and not any(path.parent.glob("edits/*.json")):
            return None  # being pinned at this moment: the folder comes first, then the file
        _check_size(path)
        seen = read_json(path, Seen)
        # A copied or renamed folder would have its edits written to the other finding.
        if seen.id != name:
            raise RunError(f"{path}: id: it is that of another finding")
        if seen.figure is not None:
            check_figure(seen.figure, path)
        edits = []
        folder = self._files.inside(f"{FOLDER}/{name}/edits")
        for each in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            if _EDIT.fullmatch(each.name) is None:
                continue
            try:
                _check_size(self._files.inside(str(each.relative_to(self._files.root))))
                edits.append((read_json(each, FindingEdit), each.name))
            except StageLensError as error:
                problems.append(
                    f"A change of the finding {seen.title!r} is damaged and left out: {error}"
                )
        # By name where times are equal, so that all readers agree on the last one.
        ordered = sorted(edits, key=lambda one: (one[0].at, one[1]))
        return Finding(seen=seen, history=tuple(edit for edit, _ in ordered))

    def pin(self, seen: Seen, note: str = "") -> Finding:
        """Keep what was seen, after everything pinned before.

        Raises:
            RunError: The run folder cannot be written; says what to do.
        """
        self._write(f"{FOLDER}/{seen.id}/seen.json", seen)
        finding = Finding(seen=seen)
        return Finding(seen=seen, history=(self.edit(finding, note=note),)) if note else finding

    def edit(
        self,
        finding: Finding,
        *,
        note: str | None = None,
        title: str | None = None,
        place: float | None = None,
        removed: bool | None = None,
    ) -> FindingEdit:
        """Change what is given, and nothing else.

        Raises:
            RunError: The run folder cannot be written; says what to do.
        """
        latest = max((edit.at for edit in finding.history), default=0)
        at = max(time.time_ns(), latest + 1)  # clocks of hosts differ, but a reply must come later
        edit = FindingEdit(at=at, note=note, title=title, place=place, removed=removed)
        # Two writers in the same nanosecond must not choose one name.
        name = f"{edit.at:020d}-{secrets.token_hex(4)}.json"
        self._write(f"{FOLDER}/{finding.id}/edits/{name}", edit)
        return edit

    def move(self, order: Sequence[Finding], finding: Finding, step: int) -> None:
        """Move a finding up (-1) or down (+1) among others that are in order.

        Only the one that moves is written, so that several people can move findings at once.
        """
        moved = [each for each in order if each.id != finding.id]
        here = [each.id for each in order].index(finding.id)
        there = min(max(here + step, 0), len(moved))
        if there == here:
            return
        before = moved[there - 1].place if there else -math.inf
        after = moved[there].place if there < len(moved) else math.inf
        place = _between(before, after)
        # Halving a gap again and again ends at two neighbouring floats.
        if before < place < after:
            self.edit(finding, place=place)
            return
        moved.insert(there, finding)  # no float is left between these two: renumber all
        for number, each in enumerate(moved):
            self.edit(each, place=float(number))

    def _write(self, relative: str, value: Seen | FindingEdit) -> None:
        check_changeable("Findings")
        try:
            write_json(self._files.inside(relative), value)
        except OSError as error:
            raise RunError(self._refused(error)) from None

    def _refused(self, error: OSError) -> str:
        folder = self._files.root / FOLDER
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            return cannot_write(folder, error)
        why = error.strerror or str(error)
        return (
            f"{folder} cannot be written ({why}); findings are kept in the run folder: allow "
            "writing there, or open a copy of the run"
        )


def _between(before: float, after: float) -> float:
    """A place between two others, either of which may be infinite."""
    if math.isinf(before):
        return after - 1.0
    return before + 1.0 if math.isinf(after) else (before + after) / 2


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        return  # read_json reports what is wrong
    if size > _LARGEST:
        raise RunError(f"{path} has {size:,} bytes, more than any finding")


def _mtime(path: Path) -> str:
    try:
        return f"{path.stat().st_mtime_ns:x}"
    except OSError:
        return "0"
