"""What the start page shows of a run before it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from stagelens.contracts import ACCURACY, StageLensError
from stagelens.effects.summary import group_columns
from stagelens.wording.sentences import Sentence

from . import loaders
from .loaders import MEASURED, Source

_LARGEST_SET = 20_000
"""Most examples of a set whose headline is worth the time that a card has."""


@dataclass(frozen=True)
class RunCard:
    """A run in a few words.

    Attributes:
        name: The run.
        task: What the model does.
        stages: Names in training order.
        changed: When it was last recorded into.
        headline: Its strongest mean effect; None where nothing was measured, or nothing stands out.
        leaves: How many models its stages lead to.
        problem: Why it cannot be read; empty if it can.
    """

    name: str
    task: str = ""
    stages: tuple[str, ...] = ()
    changed: datetime | None = None
    headline: Sentence | None = None
    problem: str = ""
    leaves: int = 1


def run_card(path: Path) -> RunCard:
    """The card of a run folder; one that cannot be read says why."""
    return _card(loaders.source(path))


@st.cache_resource(max_entries=64, show_spinner=False, hash_funcs=MEASURED)
def _card(at: Source) -> RunCard:
    path = Path(at.path)
    try:
        run = loaders.run(at)
        changed = datetime.fromtimestamp((path / "run.json").stat().st_mtime, UTC)
        headline = _headline(at) if run.stages and run.set_names else None
    except (StageLensError, OSError) as error:
        return RunCard(path.name, problem=str(error))
    stages = tuple(run.lineage.finished)
    task = run.file.task.name.replace("-", " ")
    return RunCard(run.name, task, stages, changed, headline, leaves=len(run.lineage.leaves))


def _headline(at: Source) -> Sentence | None:
    run = loaders.run(at)
    name = "test" if "test" in run.set_names else run.set_names[0]
    examples = loaders.evaluation_set(at, name)
    available = loaders.available(at, name)
    if not available or examples.count > _LARGEST_SET:
        return None
    effects = loaders.effects(at, name, available[0])
    if effects is None:
        return None
    known = effects.behaviours
    behaviour = ACCURACY.name if ACCURACY.name in known else next(iter(known))
    groups = group_columns(loaders.examples(at, name), (*examples.columns, "label"))
    found = loaders.headlines(
        *(at, name, effects.estimator, behaviour),
        by=groups[0] if groups else None,
        group=None,
        noun=examples.kind,
    )
    return found[0] if found else None
