"""Cached reading of the training examples of a stage. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import streamlit as st

from stagelens.analyses.training_data import reading, tables
from stagelens.analyses.training_data.marks import marked
from stagelens.analyses.training_data.tables import TrainingData
from stagelens.analyses.without_data.chosen import load_listed
from stagelens.runs.run import Run
from stagelens.runs.training_rows import TrainingRows, training_rows_path

from . import sources
from .sources import Source


@dataclass(frozen=True)
class Loaded:
    """The training examples of a stage as pages use them; shared, and never changed.

    Attributes:
        data: What is stored of them.
        frame: The examples with what stands out of them, see :func:`marked`.
        stamp: Changes whenever any of it does.
    """

    data: TrainingData
    frame: pd.DataFrame
    stamp: str


def training_data(at: Source, stage: str) -> Loaded | None:
    """What is stored of a stage's training examples; None where these are not."""
    return _loaded(at.path, at.recorded, at.leaf, stage, _stamp(at, stage), at)


def listed(run: Run, stage: str) -> TrainingRows | None:
    """The training examples of a stage as filters see them; None where nothing listed them."""
    path = training_rows_path(run, run.stage(stage))
    return _listed(str(path), _stamp_of(run, stage), run, stage) if path.exists() else None


@st.cache_resource(max_entries=8, show_spinner=False)
def _listed(path: str, stamp: str, _run: Run, stage: str) -> TrainingRows | None:
    return load_listed(_run, _run.stage(stage))


def _stamp(at: Source, stage: str) -> str:
    """Of the files that hold it; sets are looked up in it, so these count too."""
    return _stamp_of(sources.run(at), stage)


def _stamp_of(run: Run, stage: str) -> str:
    files = (
        training_rows_path(run, run.stage(stage)),
        tables.looks_path(run, stage),
        tables.answers_path(run, stage),
        tables.columns_path(run, stage),
        tables.duplicates_path(run),
    )
    return "-".join(_written(file) for file in files)


def _written(file: Path) -> str:
    try:
        return f"{file.stat().st_mtime_ns:x}"
    except OSError:
        return "0"


@st.cache_resource(max_entries=4, show_spinner=False)
def _loaded(
    path: str, recorded: str, leaf: str, stage: str, stamp: str, _at: Source
) -> Loaded | None:
    # Cached by names and stamps: Streamlit hashes large frames from a sample of their rows.
    found = tables.load(sources.run(_at), stage)
    return None if found is None else Loaded(found, marked(found), stamp)


@st.cache_resource(max_entries=4, show_spinner=False)
def searchable(_at: Source, _loaded: Loaded, stage: str, stamp: str, path: str) -> pd.Series:
    """What a search looks at: ids and, where they are texts, what they say; in their order."""
    ids = _loaded.frame["example_id"].astype("str")
    said = reading.texts(sources.run(_at), stage)
    return ids if said is None else ids + "\n" + said


@st.cache_data(max_entries=64, show_spinner=False)
def contents(
    _at: Source, path: str, stage: str, stamp: str, ids: Sequence[str]
) -> dict[str, bytes | None]:
    """What these examples are shown as."""
    return tables.contents(sources.run(_at), stage, ids)
