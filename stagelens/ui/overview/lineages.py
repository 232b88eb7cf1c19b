"""Where a run has several leaves: what differs between two, and what made a merge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.analyses.lineages.soup_table import PARENT
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.merge_words import merge_words
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import lineages, loaders
from stagelens.wording.numbers import signed_text, value_text
from stagelens.wording.trust_words import MARKS, trust_word

from . import share_jobs

OTHER = "other-leaf"
"""Key of the control that chooses the leaf to compare with; also its name in links."""

_ALL = "all"


def sections(workspace: Workspace, behaviour: Behaviour) -> None:
    """Both sections, as far as the run has what they are about."""
    if workspace.run.last.facts.merge is not None:
        _merge(workspace, behaviour)
    others = [name for name in loaders.ends(workspace.at) if name != workspace.at.leaf]
    if workspace.at.leaf and others:
        _two_leaves(workspace, behaviour, others)


def _two_leaves(workspace: Workspace, behaviour: Behaviour, others: list[str]) -> None:
    at, name, leaf = workspace.at, workspace.examples.name, workspace.at.leaf
    st.header("Two leaves", anchor=False)
    with st.container(width=240):
        other = st.selectbox(
            "Compare with",
            others,
            key=OTHER,
            bind="query-params",
            help="Another model of this run: what differs since their histories parted.",
        )
    two = lineages.parted(at, other)
    components.text_block(f"{two.words()}.")
    found = lineages.compared(at, other, name)
    if found is None:
        if not workspace.computable:
            components.text_block("They were not measured on this set.", muted=True)
            return
        asked = ("compare", at.path, "--leaf", leaf, "--leaf", other, "--set", name)
        told = "Both models have to answer the set: forward passes, no training."
        share_jobs.start(asked, told, "comparison")
        return
    kind = found.behaviours.get(behaviour.name) or next(iter(found.behaviours.values()))
    rows = lineages.differences(at, other, name, kind.name, workspace.by)
    shown = pd.DataFrame(
        {
            workspace.noun + "s": [_ALL if _none(g) else f"{g}" for g in rows["group"]],
            "count": [f"{n:,}" for n in rows["n"]],
            leaf: [value_text(value, kind) for value in rows["first"]],
            other: [value_text(value, kind) for value in rows["second"]],
            "difference": [signed_text(value, kind) for value in rows["difference"]],
            "95 %": _intervals(rows, kind),
        }
    )
    about = About(behaviour=kind.name, observed=f"both models measured: {leaf} and {other}")
    title = (
        f"{kind.name} of {leaf} less that of {other}, with paired intervals over {workspace.noun}s."
    )
    components.table(shown, "two-leaves", title, about, height="content")
    effects = lineages.effects_since(at, other, name, kind)
    if effects.empty:
        return
    shown = pd.DataFrame(
        {
            "leaf": effects["leaf"],
            "stage since": effects["stage"],
            "effect": _effects(effects, kind),
            "95 %": _intervals(effects, kind),
            "trust": [_trust(each, kind) for each in effects["trust"]],
        }
    )
    trust = [each for each in effects["trust"] if isinstance(each, StageTrust)]
    about = About(behaviour=kind.name, trust=trust, estimator="the best stored of each stage")
    said = f"What each stage since they parted did to the {kind.name} of its own leaf."
    components.table(shown, "stages-since", said, about, height="content")
    components.text_block(
        "These are effects on two models: they do not add up to the difference between the two. "
        "Where none is stored, open that leaf in the bar on top.",
        muted=True,
    )


def _merge(workspace: Workspace, behaviour: Behaviour) -> None:
    run, name = workspace.run, workspace.examples.name
    merge = run.last.facts.merge
    assert merge is not None  # asked before
    st.header("What the merge was made of", anchor=False)
    components.text_block(f"{merge_words(run.last.name, merge)}.")
    if not merge.exact:
        components.text_block("So nothing of it is credited to its parents.", muted=True)
        return
    found = lineages.soup(workspace.at, name)
    if found is None:
        if workspace.computable:
            asked = ("soup", *workspace.at.words, "--set", name)
            told = "The merge without each parent, and without each stage on the way: no training."
            share_jobs.start(asked, told, "credit of its parents")
        return
    kind = found.behaviours.get(behaviour.name) or next(iter(found.behaviours.values()))
    rows = lineages.given(workspace.at, name, kind)
    if rows is None:
        return
    shown = pd.DataFrame(
        {
            "what": [f"{part} {own}" for part, own in zip(rows["part"], rows["name"], strict=True)],
            "weight": [f"{weight:.3f}".replace("-", "−") for weight in rows["weight"]],
            "effect": _effects(rows, kind),
            "95 %": _intervals(rows, kind),
            "trust": [_trust(each, kind) for each in rows["trust"]],
        }
    )
    about = About(behaviour=kind.name, estimator="soup", trust=list(rows["trust"]))
    said = (
        f"What each parent of {run.last.name}, and each stage on its way, gave to its {kind.name}."
    )
    components.table(shown, "merge-parts", said, about, height="content")
    parents = ", ".join(rows.loc[rows["part"] == PARENT, "name"])
    components.text_block(
        f"No counterfactual of a training. A parent's effect ({parents}): the merge's answers less "
        "those of the merge without it, the weights of the others scaled to the same sum. A "
        "stage's: less those without its change times the weight that it has in the merge (task "
        "vector). No replay can settle them.",
        muted=True,
    )


def _effects(rows: pd.DataFrame, kind: Behaviour) -> list[str]:
    return ["-" if _none(value) else signed_text(value, kind) for value in rows["effect"]]


def _intervals(rows: pd.DataFrame, kind: Behaviour) -> list[str]:
    ends: Iterable[tuple[float, float]] = zip(rows["low"], rows["high"], strict=True)
    return [
        "not known"
        if _none(low) or _none(high)
        else f"{signed_text(low, kind)} to {signed_text(high, kind)}"
        for low, high in ends
    ]


def _trust(trust: Any, kind: Behaviour) -> str:
    if not isinstance(trust, StageTrust):
        return "nothing stored"
    word = trust_word(trust, kind.name)
    return f"{MARKS[word]} {word}"


def _none(value: Any) -> bool:
    return bool(pd.isna(value))
