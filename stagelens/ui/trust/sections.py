"""The sections of the Trust page: how far each stage's numbers can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from stagelens.analyses.slices.saved import Slice
from stagelens.contracts import Behaviour
from stagelens.effects.results import Result
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.schema import canonical_json
from stagelens.trust.noise import load_noise
from stagelens.trust.verification import compare, load_verification
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Source


@dataclass(frozen=True)
class TrustView:
    """What the page shows.

    Attributes:
        estimate: Name of the estimate that is compared with replay.
        behaviour: On which behaviour.
        result: The estimate's table, of that behaviour.
        truth: The same by replay; None if replay has not run.
        rows: Stage to its row of figures; no entry if there is no replay to compare with.
        only: The slice that the figures are about; None for all examples.
    """

    estimate: str
    behaviour: Behaviour
    result: Result
    truth: Result | None
    rows: Mapping[str, Mapping[str, Any]]
    only: Slice | None = None


def heading(workspace: Workspace) -> None:
    """What the page is for."""
    components.text_block(
        "Estimates propose, replay decides: it runs the recorded steps again, and is the ground "
        "truth. First the numbers in use on the other pages, then all estimates of this run on set "
        f"{workspace.examples.name} against replay, and last what promises of estimates are worth."
    )


def against_replay(view: TrustView, note: str = "") -> None:
    """What the points of the scatter plots are.

    Args:
        view: What the page shows.
        note: Why it is that behaviour.
    """
    st.header("Estimates against replay", anchor=False)
    components.text_block(
        f"Each point is one example: its stage effect on the {view.behaviour.name} by "
        f"{view.estimate} against the effect by replay. {note}".rstrip()
    )


def choose(workspace: Workspace) -> TrustView | None:
    """The estimate, behaviour and slice that the page shows; None if no estimate is stored."""
    at, name = workspace.at, workspace.examples.name
    proposed = [e for e in loaders.available(at, name) if e != REPLAY]
    if not proposed:
        return None
    slices = workspace.slices
    left, right = st.columns(2)
    with left:
        estimate = st.selectbox(
            "Estimate",
            proposed,
            key="estimate",
            bind="query-params",
            help="What is compared with replay; a fraction is the budget of coarse-replay, as a "
            "share of replay's cost.",
        )
    facts = loaders.facts(at, name, estimate)
    if facts is None:
        return None
    measured = [each.name for each in facts.behaviours]
    chosen = workspace.bar.behaviour.name
    # Accuracy is no more than right or wrong for one example.
    kind = chosen if chosen in measured else "margin" if "margin" in measured else measured[0]
    only = _choose_slice(right, slices) if slices else None
    rows = figures(at, name, estimate, kind, only.name if only else None)
    result, truth = (loaders.result(at, name, which, kind) for which in (estimate, REPLAY))
    if result is None:
        return None
    return TrustView(estimate, result.behaviours[kind], result, truth, rows, only)


def _choose_slice(place: DeltaGenerator, slices: Sequence[Slice]) -> Slice | None:
    by_name = {one.name: one for one in slices}
    chosen = place.selectbox(
        "Slice",
        list(by_name),
        index=None,
        placeholder="All examples",
        key="trusted-slice",
        bind="query-params",
        help="Compares the estimate with replay on the examples of one saved slice only. The "
        "verdicts in the badges are for all examples.",
    )
    return None if chosen is None else by_name[chosen]


@st.cache_data(max_entries=128, show_spinner="Comparing with replay")
def figures(
    at: Source, set_name: str, estimate: str, behaviour: str, only: str | None = None
) -> dict[str, dict[str, Any]]:
    """Stage to its row of a verification table: the stored one, or one made from stored tables.

    Args:
        at: The run folder.
        set_name: One of its sets.
        estimate: Compared with replay.
        behaviour: On which behaviour.
        only: Name of the slice whose examples count; None for all, whose rows may be stored.
    """
    result = loaders.result(at, set_name, estimate, behaviour)
    if result is None:
        return {}
    facts, run = result.facts, loaders.run(at)
    known = load_noise(run, facts.set_digest)
    truth = loaders.result(at, set_name, REPLAY, behaviour)
    if only is not None:
        ids = next(one.example_ids for one in loaders.slices(at, set_name)[0] if one.name == only)
        if truth is None:
            return {}
        return _by_stage(compare(_only(result, ids), _only(truth, ids), known))
    table = load_verification(run)
    table = table[
        (table["set_digest"] == facts.set_digest)
        & (table["behaviour"] == behaviour)
        & (table["estimator"] == facts.estimator)
        & (table["settings"] == canonical_json(facts.settings))
    ]
    stored = _by_stage(table)
    if truth is None:
        return stored
    # Stored rows are out of date where the noise, or a further stage, was computed after them.
    floors = [np.isfinite(row["noise_floor_r"]) for row in stored.values()]
    if set(stored) >= set(result.trust) and (known is None or any(floors)):
        return stored
    return _by_stage(compare(result, truth, known))


def _by_stage(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(row["stage"]): row for row in rows.to_dict("records")}


def _only(result: Result, ids: Sequence[str]) -> Result:
    """A result restricted to these examples."""
    return Result(result.facts, result.table[result.table["example_id"].isin(ids)])


# ---------------------------------------------------------------------------------- per stage
