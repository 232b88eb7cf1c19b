"""Where in the network a stage's effect sits: a map of blocks, and what each of them changes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses.network import block_table
from stagelens.analyses.network.block_table import (
    READINGS,
    Network,
    Reading,
    network_path,
    network_rows,
    strongest_block,
)
from stagelens.analyses.network.sentences import INTERVENTION, network_sentence, notes
from stagelens.charts.effect_bars import marked
from stagelens.charts.network import network_map
from stagelens.contracts import Behaviour
from stagelens.estimators import registry
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, inputs, state
from stagelens.ui.pieces.pinning import About, pinnable
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import jobs, settings
from stagelens.wording.numbers import count_text, signed_text
from stagelens.wording.sentences import Part, Sentence, slice_parts
from stagelens.wording.trust_words import percent

_STAGE, _READING, _BLOCK = "of-stage", "reading", "block"
"""Keys of the controls, also in links."""
_SHOWN = 6
"""Examples that are shown of a block."""
_LOOKS: dict[str, Reading] = {
    "Carried": "carried",
    "Undone there": "undone",
    "Only there": "alone",
}
_UNASKED = 1 << 30
"""Largest product of the final model's bytes and examples that is measured without being asked."""

_component = st.components.v2.component(
    "stagelens_network",
    html="<div class='place'></div>",
    css=".place{color:var(--st-text-color);font-family:var(--st-font);padding:3px}",
    js="""
export default function ({ parentElement, data, setTriggerValue }) {
  const place = parentElement.querySelector(".place");
  if (place.dataset.drawn !== data.html) {
    place.innerHTML = data.html;
    place.dataset.drawn = data.html;
  }
  place.onclick = (event) => {
    const box = event.target.closest("[data-block]");
    if (box) setTriggerValue("block", Number(box.dataset.block));
  };
}
""",
)


def network_of_set(workspace: Workspace, effects: Effects) -> None:
    """The map over a group or all examples, and the examples that a block changes most."""
    components.text_block(
        "Which blocks of the network carry a stage's effect: its change is undone in one block at "
        "a time, and the models in between are asked the same examples."
    )
    with st.container(border=True), st.grid(4, min_column_width=170):
        stage = _pick_stage(workspace, effects)
        name = st.selectbox(
            "Behaviour",
            list(effects.behaviours),
            key="behaviour",
            bind="query-params",
            help="What is measured: one number per example.",
        )
        by, group = workspace.pick_group("Only the examples of one group or one saved slice.")
        reading = _pick_reading()
    found = _found(workspace, effects, stage)
    if found is None:
        return
    behaviour = effects.behaviours[name]
    if name not in found.behaviours:
        st.info(components.plain(f"{name} was not measured by block."), icon=":material/info:")
        return
    chosen = _chosen(workspace, by, group)
    about = slice_parts(workspace.noun, by if group is not None else None, group)
    total = _mean(found.total(name)[chosen])
    shared = block_table.sources_of(loaders.with_sources(workspace.at, workspace.examples.name))
    rows = network_rows(found, name, chosen, reading, shared)
    carried = rows if reading == "carried" else network_rows(found, name, chosen)
    known = effects.trust.get(stage)
    said = network_sentence(carried, total, stage, behaviour, known, about)
    components.sentences([said], "1.15rem")
    place = _block(len(found.facts.blocks), rows)
    drawn = network_map(rows, total, stage, behaviour, known, place, clickable=True)
    title = f"Where in the network {stage} has its effect"
    trust = None if known is None else [known]
    about_it = About(title, name, lambda: [said], trust=trust)
    with pinnable("network", rows.drop(columns=["kind"]), drawn.alt, about_it):
        _component(key="network-map", data={"html": drawn.html}, on_block_change=_put_block)
    if place is not None:
        _one_block(workspace, found, behaviour, place, chosen, reading)
    _how(found, reading)


def network_of_example(
    workspace: Workspace, effects: Effects, behaviour: Behaviour, example_id: str
) -> None:
    """The map of one example: which blocks carry a stage's effect on it."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        stage = _pick_stage(workspace, effects, example_id)
        reading = _pick_reading()
    found = _found(workspace, effects, stage)
    if found is None:
        return
    name = behaviour.name
    if name not in found.behaviours or example_id not in found.ids:
        components.text_block(f"{behaviour.name} was not measured by block.")
        return
    one = np.asarray([each == example_id for each in found.ids])
    rows, total = network_rows(found, name, one, reading), _mean(found.total(name)[one])
    if not np.isfinite(total):
        components.text_block(f"The {behaviour.name} of this example is not known.")
        return
    known = effects.trust.get(stage)
    carried = rows if reading == "carried" else network_rows(found, name, one)
    said = network_sentence(carried, total, stage, behaviour, known, None)
    components.sentences([said, *_turned(found, one, stage)])
    drawn = network_map(rows, total, stage, behaviour, known)
    title = f"Where in the network {stage} has its effect on example {example_id}"
    about = About(title, name, lambda: [said], trust=None if known is None else [known],
                  filters={"example": example_id})  # fmt: skip
    with pinnable("network-one", rows.drop(columns=["kind", "low", "high"]), drawn.alt, about):
        st.html(drawn.html)
    _how(found, reading)


def _turned(found: Network, one: np.ndarray, stage: str) -> list[Sentence]:
    """Which blocks alone turn the answer, as a sentence; empty where none does."""
    final = str(found.answers()[one][0])
    turned = {
        block.name: str(answer)
        for number, block in enumerate(found.facts.blocks)
        if block.moved and (answer := found.answers(number)[one][0]) != final
    }
    if not turned:
        return []
    parts = [Part(f"The answer is {final}; with "), Part(stage, "stage"), Part(" undone in ")]
    for number, (name, answer) in enumerate(turned.items()):
        parts += [Part("; in ")] if number else []
        parts += [Part(name, "group"), Part(" alone it is "), Part(answer, "amount")]
    return [Sentence((*parts, Part(".")))]


# ------------------------------------------------------------------------------------- controls


def _pick_stage(workspace: Workspace, effects: Effects, example_id: str | None = None) -> str:
    stages = workspace.stages
    return st.selectbox(
        "Stage",
        stages,
        index=stages.index(_strongest(workspace, effects, example_id)),
        key=_STAGE,
        bind="query-params",
        width=220 if example_id is not None else "stretch",
        help="Whose change is undone block by block; at first the one most to blame.",
    )


def _strongest(workspace: Workspace, effects: Effects, example_id: str | None) -> str:
    """The stage most to blame, for an example or on average."""
    behaviour = next(iter(effects.behaviours.values()))
    means = []
    for rows in effects.parts(behaviour.name, ("example_id", "stage", "effect")):
        own = rows if example_id is None else rows[rows["example_id"] == example_id]
        means.append(own.groupby("stage", observed=True)["effect"].mean())
    gains = (behaviour.sign * pd.concat(means)).dropna()
    return str(gains.idxmin()) if len(gains) else workspace.stages[0]


def _pick_reading() -> Reading:
    picked = st.selectbox(
        "What is shown",
        list(_LOOKS),
        key=_READING,
        bind="query-params",
        width=220,
        help=" ".join(f"{look}: {READINGS[way]}." for look, way in _LOOKS.items()),
    )
    return _LOOKS[picked]


def _put_block() -> None:
    """Keep the block that was clicked, and put it into the address."""
    clicked = st.session_state["network-map"].get("block")
    if isinstance(clicked, int | float):
        st.query_params[_BLOCK] = str(int(clicked))


def _block(count: int, rows: pd.DataFrame) -> int | None:
    """The block that is looked at: the one that was clicked or linked, else the strongest."""
    linked = st.query_params.get(_BLOCK, "")
    place = int(linked) if linked.isascii() and linked.isdigit() and len(linked) < 6 else -1
    return place if 0 <= place < count else strongest_block(rows)


def _chosen(workspace: Workspace, by: str | None, group: str | None) -> np.ndarray:
    table = loaders.examples(workspace.at, workspace.examples.name)
    if group is None or by is None:
        return np.ones(len(table), dtype=bool)
    return (table[by].astype(object).map(str, na_action="ignore") == group).to_numpy(bool)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


# ------------------------------------------------------------------------------------ computing


def _found(workspace: Workspace, effects: Effects, stage: str) -> Network | None:
    """The measurement of a stage; None after showing why there is none, or that it is made."""
    known = effects.trust.get(stage)
    if known is None or known.trust == "refused":
        reason = "it was not computed" if known is None else known.reason
        st.info(components.plain(f"No map of {stage}: {reason}"), icon=":material/block:")
        return None
    name = workspace.examples.name
    stored = loaders.stored_estimates(workspace.at, name).get(effects.sources[stage])
    if stored is None:
        st.info("This estimate has no model whose blocks could be undone.", icon=":material/info:")
        return None
    path = network_path(workspace.run, workspace.examples, stage, stored.estimator, stored.settings)
    if path.exists():
        found = _load(str(path), path.stat().st_mtime_ns, workspace, stage, stored)
        if found is not None:
            return found
    if not workspace.computable:
        st.info("No map can be made without the run's task.", icon=":material/info:")
        return None
    _job(
        workspace,
        (
            *("network", workspace.at.path, "--set", name, "--stage", stage),
            *("--estimator", stored.estimator, *registry.options(stored.settings)),
        ),
    )
    return None


@st.cache_resource(max_entries=8, show_spinner=False)
def _load(
    path: str, stamp: int, _workspace: Workspace, _stage: str, _stored: Any
) -> Network | None:
    # The path says what was asked. A file that is written again is read again, by its stamp.
    return block_table.load_network(
        _workspace.run, _workspace.examples, _stage, _stored.estimator, _stored.settings
    )


def _job(workspace: Workspace, arguments: tuple[str, ...]) -> None:
    """Measure in a child process; started without being asked where it takes seconds."""
    if components.only_shown():
        return
    end = workspace.run.last.facts.end
    size = sum(file.bytes for file in end.shards) if end is not None else 0
    if jobs.find(arguments) is None and size * workspace.examples.count <= _UNASKED:
        _start(arguments)
    if components.job_state(arguments, "Try again"):
        return
    job = jobs.find(arguments)
    if job is None or job.status().state in ("cancelled", "done"):
        st.button(
            "Undo it block by block",
            icon=":material/account_tree:",
            key="undo-by-block",
            disabled=settings.read_only(),
            on_click=_again,
            args=(arguments,),
            help="Two forward passes over the set for every block, in the background: "
            "python -m stagelens network.",
        )


def _again(arguments: tuple[str, ...]) -> None:
    # A callback, whose errors no page would tell.
    with components.errors_told():
        jobs.forget(arguments)
        _start(arguments)


def _start(arguments: tuple[str, ...]) -> None:
    jobs.start(arguments, "The search in the network")


# -------------------------------------------------------------------------------------- showing


def _one_block(
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
    means = {way: _mean(found.effects(behaviour.name, way)[chosen, place]) for way in READINGS}
    told = ", ".join(
        f"{look if way == 'carried' else look.lower()} {signed_text(means[way], behaviour)}"
        for look, way in _LOOKS.items()
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
            f"<a href='{html.escape(_link(found, behaviour, example_id))}' target='_self' "
            "style='color:inherit;text-decoration:none;border:1px solid rgba(123,135,148,.5);"
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


def _link(found: Network, behaviour: Behaviour, example_id: str) -> str:
    """A link to one example's own map."""
    query = {
        **(components.here() or {}),
        "set": st.query_params.get("set", ""),
        "estimator": st.query_params.get("estimator", ""),
        "behaviour": behaviour.name,
        state.EXAMPLE: example_id,
        state.LOOK: state.NETWORK,
        _STAGE: found.facts.stage,
    }
    kept = {name: value for name, value in query.items() if value}
    return f"Examples?{urlencode(kept, quote_via=quote)}"


def _how(found: Network, reading: Reading) -> None:
    said = READINGS[reading]
    meaning = f"{said[0].upper()}{said[1:]}."
    if reading == "carried":
        meaning = (
            "What a block carries: the mean of what changes when the stage's change is undone "
            "there alone, and when it is present there alone. What two blocks do together counts "
            "half to each; the interaction is what three and more do together."
        )
    facts = [meaning, INTERVENTION, f"Counterfactual by {found.facts.estimator}.", *notes(found)]
    components.text_block(" ".join(facts), muted=True)
