"""A block of the network: its facts, and the examples that a stage's change in it changes most."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import streamlit as st

from stagelens.analyses.network.block_table import READINGS, Network, Reading
from stagelens.charts.effect_bars import marked
from stagelens.charts.style import ZERO, see_through
from stagelens.contracts import Behaviour
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs, state
from stagelens.ui.reading import loaders
from stagelens.wording.numbers import count_text, signed_text
from stagelens.wording.trust_words import percent

LOOKS: dict[str, Reading] = {
    "Carried": "carried",
    "Undone there": "undone",
    "Only there": "alone",
}
"""What is shown, by what it is called on the page."""
_SHOWN = 6
"""Examples that are shown of a block."""


def mean(values: np.ndarray) -> float:
    """The mean of what is known; NaN of nothing."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def one_block(
    workspace: Workspace,
    found: Network,
    behaviour: Behaviour,
    place: int,
    chosen: np.ndarray,
    reading: Reading,
) -> None:
    """A block's facts, and the examples that it changes most."""
    block = found.facts.blocks[place]
    st.subheader(components.plain(f"What {block.name} changes"), anchor=False)
    means = {way: mean(found.effects(behaviour.name, way)[chosen, place]) for way in READINGS}
    told = ", ".join(
        f"{look if way == 'carried' else look.lower()} {signed_text(means[way], behaviour)}"
        for look, way in LOOKS.items()
    )
    final, undone = found.answers()[chosen], found.answers(place)[chosen]
    other = int((final != undone).sum())
    far = "unchanged" if not block.moved else f"moved by {percent(block.moved)} of its size"
    components.text_block(
        f"{told}. With its change alone undone, {other:,} of "
        f"{count_text(int(chosen.sum()), workspace.noun)} are answered otherwise. "
        f"{count_text(block.size, 'parameter')}, {far}."
    )
    effects = found.effects(behaviour.name, reading)[:, place]
    effects = np.where(chosen & np.isfinite(effects), effects, 0.0)
    largest = np.argsort(-np.abs(effects), kind="stable")[:_SHOWN].tolist()
    order = [each for each in largest if effects[each]]
    if order:
        st.html(_gallery(workspace, found, behaviour, place, effects, order))


def _gallery(
    workspace: Workspace,
    found: Network,
    behaviour: Behaviour,
    place: int,
    effects: np.ndarray,
    order: Sequence[int],
) -> str:
    ids = [found.ids[each] for each in order]
    final, undone = found.answers(), found.answers(place)
    name, block = workspace.examples.name, found.facts.blocks[place].name
    cards = []
    if workspace.noun == "image":
        shown = [
            inputs.image_html(loaders.picture(workspace.at, name, each, 160), f"Example {each}")
            for each in ids
        ]
    else:
        texts = loaders.texts(workspace.at, name, ids)
        shown = [
            "<div style='display:-webkit-box;-webkit-line-clamp:4;-webkit-box-orient:vertical;"
            f"overflow:hidden'>{components.shown(' '.join(filter(None, own.values())))}</div>"
            for own in texts
        ]
    for each, example_id, content in zip(order, ids, shown, strict=True):
        turns = final[each] != undone[each]
        told = f"says {final[each]}; with {block} undone: {undone[each]}"
        amount = marked(behaviour.sign * effects[each], behaviour)
        weight = "600" if turns else "400"
        cards.append(
            f"<a href='{html.escape(_link(found, example_id))}' target='_self' "
            f"style='color:inherit;text-decoration:none;border:1px solid {see_through(ZERO, 0.5)};"
            "border-radius:.5rem;padding:.5rem;overflow:hidden;overflow-wrap:anywhere;"
            f"font-size:.85rem;line-height:1.35'>{content}"
            f"<div style='font-weight:600;margin-top:.3rem'>{components.shown(amount)}</div>"
            f"<div style='font-weight:{weight}'>{components.shown(told)}</div>"
            f"<div style='opacity:.75'><bdi>{components.shown(example_id)}</bdi></div></a>"
        )
    width = "7.2rem" if workspace.noun == "image" else "15rem"
    return (
        f"<div style='display:grid;gap:.6rem;grid-template-columns:repeat(auto-fill,"
        f"minmax({width},1fr))'>{''.join(cards)}</div>"
    )


def _link(found: Network, example_id: str) -> str:
    """A link to one example's own map."""
    query = {"stage": found.facts.stage, state.EXAMPLE: example_id, state.LOOK: state.NETWORK}
    return components.address("Examples", **query)
