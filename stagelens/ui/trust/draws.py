"""Draws of the recipe on the Trust page: what was drawn, and how much effects vary."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.contracts import is_score
from stagelens.effects.draws import (
    FEWEST,
    NAMES,
    DrawInterval,
    DrawnEffects,
    example_sd,
    intervals_of_means,
)
from stagelens.trust.draws import DrawFacts, sentence
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import drawn
from stagelens.ui.reading.loaders import Source
from stagelens.wording.folding import listed
from stagelens.wording.numbers import axis_unit, is_share, phrase
from stagelens.wording.signs import POSITIVE_IS

from .sections import TrustView

_CLEAR, _HOLDS_ZERO = "yes", "interval holds zero"
"""Whether a mean effect is a finding, in the table."""


def draws(workspace: Workspace, view: TrustView) -> None:
    """Whether the effects would come again, of every kind of draw that is stored."""
    st.header("Would it happen again?", anchor=False)
    found = drawn.every(workspace.at, workspace.examples.name)
    if not found:
        command = ("stagelens", "draws", *workspace.at.words, "--all-sets")
        components.text_block(
            "One run: not known. Draws train the recipe again with its chance drawn anew, with and "
            "without each stage. What they cost is told before they begin:"
        )
        st.code(shlex.join(command), language=None, wrap_lines=True)
        return
    for facts, one in found:
        _kind(workspace, view, facts, one)


def in_place_of_orders(workspace: Workspace, view: TrustView) -> str:
    """What draws say of the training noise where no other order was replayed; empty without any.

    Every draw trains on batches in another order, among other things that it draws anew.
    """
    for facts, found in drawn.every(workspace.at, workspace.examples.name):
        # So few give no interval; recorded runs may have had their batches in one order.
        if found.count < FEWEST or found.kind == "runs":
            continue
        view = _as_asked(workspace, view, found)
        rows = _of_kind(workspace, view, facts, found)
        if rows.empty:
            continue
        names = {
            known: rows.loc[rows["finding"] == known, "stage"].tolist()
            for known in (_CLEAR, _HOLDS_ZERO)
        }
        said = [
            f"{told}: {listed(names[known])}"
            for told, known in (
                ("beyond the noise", _CLEAR),
                ("within it, so not a finding", _HOLDS_ZERO),
            )
            if names[known]
        ]
        return (
            "No other order of the recorded batches has been replayed. In its place stand the "
            f"intervals over {found.words} {NAMES[found.kind]}, below, each of which trained on "
            f"batches in another order too. Mean effects on the {phrase(view.behaviour)} "
            f"{'; '.join(said) or 'that are known: none'}. How much the effect on one example "
            "varies is there as well."
        )
    return ""


def _kind(workspace: Workspace, view: TrustView, facts: DrawFacts, found: DrawnEffects) -> None:
    said = sentence(facts, found)
    few = found.count < FEWEST
    about = f"all {workspace.noun}s" if view.only is None else f"the slice {view.only.name}"
    components.text_block(
        f"{said[:1].upper()}{said[1:]}"
        + (f" Fewer than {FEWEST} give no interval." if few else "")
        + f" The table is of {about}."
    )
    view = _as_asked(workspace, view, found)
    rows = _of_kind(workspace, view, facts, found)
    asked = workspace.bar.behaviour
    if is_score(asked) and view.behaviour.name != asked.name:
        components.text_block(
            f"The models of these draws were not asked the prompts of {asked.name}: shown is the "
            f"{view.behaviour.name}. They are where draws are made with --answers."
        )
    share = is_share(view.behaviour)
    unit = "percent points" if share else axis_unit(view.behaviour) or "its unit"
    number = st.column_config.NumberColumn
    digits = "%.1f" if share else "%.3f"
    helps = {
        "mean over draws": f"The mean over draws of the mean effect over examples. {POSITIVE_IS}",
        "95 % low": "Lower end of its interval over draws (95 %).",
        "95 % high": "Upper end of its interval over draws (95 %).",
        "sd over draws": "Standard deviation of the mean effect over draws.",
        "sd of an example": "Standard deviation over draws of the effect on one example: the mean "
        "of it over examples.",
    }
    components.table(
        rows,
        f"draws-{facts.kind}",
        f"Stage effects on the {view.behaviour.name} of {about}, over {found.words} "
        f"{NAMES[found.kind]}, in {unit}.",
        About(behaviour=view.behaviour.name),
        column_config={
            name: number(name, format=digits, help=f"{words} In {unit}.")
            for name, words in helps.items()
        },
    )


def _as_asked(workspace: Workspace, view: TrustView, found: DrawnEffects) -> TrustView:
    """The behaviour that all pages show, where draws have it: they need no estimate that does."""
    asked = workspace.bar.behaviour
    # A comparison, because going through a column of strings takes seconds.
    known = bool((found.table["behaviour"] == asked.name).any())
    return replace(view, behaviour=asked) if known else view


def _of_kind(
    workspace: Workspace, view: TrustView, facts: DrawFacts, found: DrawnEffects
) -> pd.DataFrame:
    only = None if view.only is None else view.only.name
    parts = (workspace.at, workspace.examples.name, facts.kind, view.behaviour.name, only)
    return _rows(*parts, workspace, view, found)


@st.cache_resource(max_entries=32, show_spinner=False)
def _rows(
    at: Source,
    set_name: str,
    kind: str,
    behaviour: str,
    only: str | None,
    _workspace: Workspace,
    _view: TrustView,
    _found: DrawnEffects,
) -> pd.DataFrame:
    workspace, view, found = _workspace, _view, _found
    scale, name = (100 if is_share(view.behaviour) else 1), view.behaviour.name
    gain = scale * view.behaviour.sign
    table = found.table
    if view.only is not None:
        table = table[table["example_id"].isin(view.only.example_ids)]
    own = replace(found, table=table)
    one = table[(table["behaviour"] == name) & (table["draw"] == table["draw"].min())]
    means = intervals_of_means(own, one, view.behaviour, ["stage"])
    spread = example_sd(own)
    made = []
    for stage in workspace.stages:
        if (mean := means.get((stage,))) is None:
            continue
        low, high = sorted((gain * mean.low, gain * mean.high))
        made.append(
            {
                "stage": stage,
                "mean over draws": gain * mean.mean,
                "95 % low": low,
                "95 % high": high,
                "sd over draws": scale * mean.sd,
                "sd of an example": scale * float(spread[stage, name].mean()),
                "finding": _finding(mean),
            }
        )
    shown = pd.DataFrame(made)
    return shown.drop(columns="finding") if found.count < FEWEST and len(shown) else shown


def _finding(mean: DrawInterval) -> str:
    if not np.isfinite(mean.low):
        return "the same in each draw" if mean.sd == 0 else "not known"
    return _CLEAR if mean.is_clear else _HOLDS_ZERO
