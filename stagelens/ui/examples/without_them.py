"""Training examples left out of a stage, by replay: the button, and what became of the answer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from stagelens.analyses.without_data.chosen import DRAWN
from stagelens.analyses.without_data.sentences import answers, how, sentence
from stagelens.analyses.without_data.stored import (
    WithoutData,
    load_without_data,
    without_data_path,
)
from stagelens.contracts import StageLensError
from stagelens.estimators.without_rows import LeftOutRows
from stagelens.runs.files import atomic_path
from stagelens.runs.schema import digest
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.pieces.trust_marks import trust_badges
from stagelens.ui.reading.sources import Source
from stagelens.ui.server import settings
from stagelens.wording.numbers import count_text

from .contributions import Asked

FIRST = 20
"""Examples of a list that are left out unless somebody asks for another number."""


def of_the_list(
    workspace: Workspace, asked: Asked, chosen: pd.DataFrame, words: str
) -> tuple[str, ...]:
    """Leave out the first examples of a list, as many as are asked for.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        chosen: The list.
        words: What was asked of it.

    Returns:
        Their ids.
    """
    if chosen.empty:
        return ()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        most = len(chosen)
        count = st.number_input(
            "How many of the list",
            1,
            most,
            min(FIRST, most),
            key=f"without-count-{most}",
            width=150,
            help="From the top, over all pages.",
        )
        ids = tuple(chosen["example_id"].head(int(count)))
        every = int(count) == most
        said = count_text(len(ids), "training example")
        said = f"{said} {words}".strip() if every else f"the first {said} of the list"
        place = st.container()
    button(workspace, asked, ids, said, "without-list", place)
    return ids


def button(
    workspace: Workspace,
    asked: Asked,
    ids: tuple[str, ...],
    words: str,
    key: str,
    place: DeltaGenerator | None = None,
) -> None:
    """Replay the training without these examples; in place of the button, what that gave.

    Args:
        workspace: What is open.
        asked: Whose behaviour, and which stage.
        ids: Of the training examples.
        words: What they are, for the button: ``the first 20 training examples of the list``.
        key: Unique among such buttons of the page.
        place: Where the button itself stands; None for here, as its progress and result do.
    """
    found = _stored(workspace.at, workspace, asked, ids)
    if found is not None:
        _told(workspace, asked, found)
        return
    if why := _impossible(workspace, asked):
        components.text_block(why, muted=True)
        return
    file = _file(workspace, asked.stage, ids)
    arguments = (
        *("without-data", *workspace.at.words, "--stage", asked.stage),
        *("--ids", str(file), "--set", workspace.examples.name),
    )
    if job_progress.job_state(arguments, "Try again"):
        return
    (st.container() if place is None else place).button(
        components.plain(f"Replay without {words}"),
        icon=":material/replay:",
        key=key,
        disabled=settings.read_only(),
        on_click=_begin,
        args=(file, ids, arguments, f"The replay without {words}"),
        help=settings.READ_ONLY
        if settings.read_only()
        else f"{DRAWN} Runs in the background: python -m stagelens without-data.",
    )


def _impossible(workspace: Workspace, asked: Asked) -> str:
    """Why the training cannot be replayed without some of its data; empty where it can be."""
    if not workspace.computable:
        return "Nothing can be replayed here without the run's task."
    for stage in workspace.run.stages[workspace.stages.index(asked.stage) :]:
        if stage.no_replay:
            return f"{stage.no_replay[:1].upper()}{stage.no_replay[1:]}."
    return ""


def _file(workspace: Workspace, stage: str, ids: tuple[str, ...]) -> Path:
    """Where the ids are written for the command; the same for the same examples."""
    name = digest(workspace.run.digest, stage, sorted(ids))[:32]
    return workspace.run.files.inside(f"results/training-data/ids-{name}.txt")


def _begin(file: Path, ids: tuple[str, ...], arguments: tuple[str, ...], title: str) -> None:
    # A callback, whose errors no page would tell.
    with components.errors_told():
        if settings.read_only():
            raise StageLensError(settings.READ_ONLY)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text("\n".join(ids), encoding="utf-8")
    job_progress.begin(arguments, title)


def _stored(
    at: Source, workspace: Workspace, asked: Asked, ids: tuple[str, ...]
) -> WithoutData | None:
    rows = LeftOutRows(asked.stage, ids)
    path = without_data_path(workspace.run, workspace.examples, rows)
    if not path.is_file():
        return None
    return _load(str(path), path.stat().st_mtime_ns, workspace, rows)


@st.cache_resource(max_entries=16, show_spinner=False)
def _load(path: str, stamp: int, _workspace: Workspace, _rows: LeftOutRows) -> WithoutData | None:
    return load_without_data(_workspace.run, _workspace.examples, _rows)


def _told(workspace: Workspace, asked: Asked, found: WithoutData) -> None:
    """What the replay gave: of one example its answers, of several their mean."""
    with st.container(border=True):
        said = sentence(found, asked.behaviour, frozenset(asked.ids))
        became = answers(found, frozenset(asked.ids), workspace.noun)
        # A next token that stays says little of a whole answer.
        if became and not workspace.continues_text:
            components.text_block(became)
        components.sentences([said])
        if found.facts.trust.trust != "exact":  # the sentence has its mark; this says why
            trust_badges([found.facts.trust], asked.behaviour.name)
        components.text_block(f"{how(found.facts)} {DRAWN}", muted=True)
