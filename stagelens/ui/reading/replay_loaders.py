"""Stored replays without some of a stage's training examples, from memory where read before."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from stagelens.analyses.selection.outcomes import Outcome, load_outcome
from stagelens.analyses.without_data.chosen import AT_RANDOM
from stagelens.analyses.without_data.stored import (
    WithoutData,
    read_without_data,
    stored_without_data,
)
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet


def without_data(run: Run, examples: EvaluationSet, path: Path) -> WithoutData | None:
    """A stored replay without training examples; None where it cannot be used."""
    return _without_data(str(path), path.stat().st_mtime_ns, run, examples)


def replayed_choices(run: Run, examples: EvaluationSet, stage: str) -> list[WithoutData]:
    """What was chosen of a stage's examples, not drawn at random, and replayed without."""
    return [
        found
        for path, facts in stored_without_data(run, examples).items()
        if facts.stage == stage
        and facts.trust.trust != "refused"
        and not facts.words.startswith(AT_RANDOM)
        and (found := without_data(run, examples, path)) is not None
    ]


def outcome(run: Run, examples: EvaluationSet, path: Path) -> Outcome | None:
    """What came of a selection; None where nothing is stored that can be used."""
    if not path.is_file():
        return None
    return _outcome(str(path), path.stat().st_mtime_ns, run, examples)


# Paths say what was asked. A file that is written again is read again, by its stamp.
@st.cache_resource(max_entries=32, show_spinner=False)
def _without_data(path: str, stamp: int, _run: Run, _examples: EvaluationSet) -> WithoutData | None:
    return read_without_data(_run, _examples, Path(path))


@st.cache_resource(max_entries=8, show_spinner=False)
def _outcome(path: str, stamp: int, _run: Run, _examples: EvaluationSet) -> Outcome | None:
    return load_outcome(_run, _examples, Path(path))
