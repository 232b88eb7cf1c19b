"""A run folder as it is now, and the run in it.

A :class:`Source` names a run folder *as it is now*: when a stage, a set or a result is written, its
stamps change, and everything is read again. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from stagelens.runs.data_rows import GivenElsewhere
from stagelens.runs.lineage import NEWEST
from stagelens.runs.run import Run, open_run
from stagelens.ui.server import given_data


@dataclass(frozen=True)
class Source:
    """A run folder at one moment.

    Attributes:
        path: The run folder.
        recorded: Changes whenever its stages or sets do, or the data sets that were given for it.
        results: Changes whenever its results do, or what is verified of them.
        slices: Changes whenever its saved slices do.
        leaf: Whose history is looked at; empty for the only one, or the newest.
    """

    path: str
    recorded: str
    results: str
    slices: str = ""
    leaf: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """All but the slices: saving one leaves what was measured in the caches."""
        return self.path, self.recorded, self.results, self.leaf

    @property
    def words(self) -> tuple[str, ...]:
        """What names the run, and the leaf, to a command."""
        return (self.path, "--leaf", self.leaf) if self.leaf else (self.path,)


MEASURED: dict[str | type[Any], Callable[[Any], Any]] = {Source: lambda at: at.key}
"""``hash_funcs`` of caches whose content does not depend on slices."""


def source(path: Path) -> Source:
    """Stamps of a run folder; a few stat calls, cheap enough for every rerun."""
    # Sorted: glob promises no order, and another one would look like another recording.
    recorded = [path / "run.json", path / "results" / "given.json"]
    recorded += [*sorted(path.glob("stages/*")), *sorted(path.glob("sets/*"))]
    results = [
        path / "results" / name
        for name in (
            "tables",
            "verification.parquet",
            "noise",
            "draws",
            "features",
            "checks",
            "soups",
        )
    ]
    given = given_data.of_run(path)
    return Source(
        str(path),
        "-".join([*(_stamp(each) for each in recorded), *(f"{s}={given[s]}" for s in given)]),
        "-".join(_stamp(each) for each in results),
        _stamp(path / "slices"),
    )


def _stamp(path: Path) -> str:
    try:
        # Of a folder: it changes whenever a file in it is added, replaced or removed.
        return f"{path.stat().st_mtime_ns:x}"
    except OSError:
        return "0"


def run(at: Source) -> Run:
    """The run, opened and validated.

    Raises:
        RunError: It is damaged or foreign.
    """
    return _run(at.path, at.recorded, at.leaf)


def ends(at: Source) -> tuple[str, ...]:
    """The models of a run that have a history each, the newest first; see ``Lineage.ends``.

    Raises:
        RunError: It is damaged or foreign.
    """
    return _ends(at.path, at.recorded)


@st.cache_data(max_entries=64, show_spinner=False)
def _ends(path: str, recorded: str) -> tuple[str, ...]:
    return tuple(reversed(open_run(path, leaf=NEWEST).lineage.ends))


# Results are no part of the key: writing one must not open and validate the run again.
@st.cache_resource(max_entries=8, show_spinner=False)
def _run(path: str, recorded: str, leaf: str) -> Run:
    given = {stage: GivenElsewhere() for stage in given_data.of_run(Path(path))}
    return open_run(path, leaf=leaf or NEWEST, datasets=given)
