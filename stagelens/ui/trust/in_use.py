"""How the Trust page begins: which estimate the other pages show, and what is known of it."""

from __future__ import annotations

import streamlit as st

from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, state
from stagelens.ui.reading import loaders, scored
from stagelens.wording.folding import listed
from stagelens.wording.numbers import phrase
from stagelens.wording.trust_words import MARKS, trust_explanation, trust_label, trust_word


def estimate_in_use(workspace: Workspace) -> str | None:
    """The estimate whose effects the other pages show; None without any."""
    at, name = workspace.at, workspace.examples.name
    stored = loaders.available(at, name) or scored.estimates(at, name)
    asked = state.chosen("estimator")
    return asked if asked in stored else stored[0] if stored else None


def numbers_in_use(workspace: Workspace) -> None:
    """The trust of every stage's effects, as Overview, Examples and the report show them."""
    name, estimate = workspace.examples.name, estimate_in_use(workspace)
    if estimate is None:
        return
    effects = loaders.effects(workspace.at, name, estimate)
    if effects is None:
        return
    behaviour = workspace.bar.behaviour.name
    # Scores have models of their own, and what is known of them.
    effects = effects.about(behaviour)
    used = dict.fromkeys(effects.sources[stage] for stage in effects.trust)
    st.header("The numbers in use", anchor=False)
    components.text_block(
        f"The other pages show effects by {listed(list(used))}. What is known of those on "
        f"{phrase(workspace.bar.behaviour)}, set {name}:"
    )
    alike: dict[str, list[str]] = {}
    for stage in workspace.stages:
        if (trust := effects.trust.get(stage)) is not None:
            word, label = trust_word(trust, behaviour), trust_label(trust, behaviour)
            said = f"{label}. {trust_explanation(trust, behaviour)}"
            alike.setdefault(f"{MARKS[word]}\0{said}", []).append(stage)
    for said, names in alike.items():
        mark, _, words = said.partition("\0")
        components.text_block(f"{mark} {listed(names)}: {words}")
