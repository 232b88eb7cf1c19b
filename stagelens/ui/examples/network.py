"""Where in the network a stage's effect sits: a map of blocks, and what each of them changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

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
from stagelens.charts.network import network_map
from stagelens.contracts import Behaviour
from stagelens.estimators import registry
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.pieces.pinning import About, pinnable
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import jobs, settings
from stagelens.wording.sentences import Part, Sentence, slice_parts

from .network_block import LOOKS, mean, one_block
from .shown_stage import shown_stage, shown_words

_READING = "reading"
"""Key of a control, also in links."""
_UNASKED = 1 << 30
"""Largest product of the final model's bytes and examples that is measured without being asked."""

_component = st.components.v2.component(
    "stagelens_network",
    html="<div class='place'></div>",
    css=".place{color:var(--st-text-color);font-family:var(--st-font);padding:3px}",
    js="""
const PARTS = ".net, .layer, .box, .ends";

// Part by part, so that a box which has the focus keeps it; anew where there are other boxes.
function update(place, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  const now = [...place.querySelectorAll(PARTS)];
  const next = [...made.content.querySelectorAll(PARTS)];
  const tags = (all) => all.map((one) => one.tagName).join();
  if (!now.length || tags(now) !== tags(next)) {
    place.replaceChildren(made.content);
    return;
  }
  now.forEach((one, at) => {
    for (const { name, value } of next[at].attributes) one.setAttribute(name, value);
    if (!one.matches(".net")) one.innerHTML = next[at].innerHTML;
  });
}

export default function ({ parentElement, data, setTriggerValue }) {
  const place = parentElement.querySelector(".place");
  if (place.dataset.drawn !== data.html) {
    update(place, data.html);
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
    bar = workspace.bar
    name, by, group = bar.behaviour.name, bar.by, bar.group
    chosen = _chosen(workspace, by, group)
    about = slice_parts(workspace.noun, by if group is not None else None, group)
    where = "".join(part.text for part in about)
    stage = _stage(workspace, effects, name, _ids(workspace, chosen), f"on {where}")
    reading = _pick_reading()
    found = _found(workspace, effects, stage)
    if found is None:
        return
    behaviour = effects.behaviours[name]
    if name not in found.behaviours:
        st.info(components.plain(f"{name} was not measured by block."), icon=":material/info:")
        return
    total = mean(found.total(name)[chosen])
    shared = block_table.sources_of(loaders.with_sources(workspace.at, workspace.examples.name))
    rows = network_rows(found, name, chosen, reading, shared)
    carried = rows if reading == "carried" else network_rows(found, name, chosen, clusters=shared)
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
        one_block(workspace, found, behaviour, place, chosen, reading)
    _how(found, reading)


def network_of_example(
    workspace: Workspace, effects: Effects, behaviour: Behaviour, example_id: str
) -> None:
    """The map of one example: which blocks carry a stage's effect on it."""
    stage = _stage(workspace, effects, behaviour.name, {example_id}, "of this example")
    reading = _pick_reading()
    found = _found(workspace, effects, stage)
    if found is None:
        return
    name = behaviour.name
    if name not in found.behaviours or example_id not in found.ids:
        components.text_block(f"{behaviour.name} was not measured by block.")
        return
    one = np.asarray([each == example_id for each in found.ids])
    rows, total = network_rows(found, name, one, reading), mean(found.total(name)[one])
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


def _stage(
    workspace: Workspace, effects: Effects, behaviour: str, ids: Collection[str], where: str
) -> str:
    """The chosen stage, or without a choice the strongest, which is said; blame before credit."""
    if workspace.bar.stage is not None:
        return workspace.bar.stage
    stage, why = _strongest(workspace, effects, behaviour, ids)
    said = shown_words(stage, why, effects.behaviours[behaviour], where)
    components.text_block(said, muted=True)
    return stage


def _strongest(
    workspace: Workspace, effects: Effects, behaviour: str, ids: Collection[str]
) -> tuple[str, str]:
    """The stage most to blame for a behaviour of these examples, or if none is, of most credit."""
    means = []
    for rows in effects.parts(behaviour, ("example_id", "stage", "effect")):
        own = rows[rows["example_id"].isin(ids)]
        means.append(own.groupby("stage", observed=True)["effect"].mean())
    gains = (effects.behaviours[behaviour].sign * pd.concat(means)).dropna()
    return shown_stage(gains, workspace.stages)


def _pick_reading() -> Reading:
    picked = st.selectbox(
        "What is shown",
        list(LOOKS),
        key=_READING,
        bind="query-params",
        width=220,
        help=" ".join(f"{look}: {READINGS[way]}." for look, way in LOOKS.items()),
    )
    return LOOKS[picked]


def _put_block() -> None:
    """Keep the block that was clicked, and put it into the address."""
    clicked = st.session_state["network-map"].get("block")
    if isinstance(clicked, int | float):
        st.query_params[state.BLOCK] = str(int(clicked))


def _block(count: int, rows: pd.DataFrame) -> int | None:
    """The block that is looked at: the one that was clicked or linked, else the strongest."""
    linked = st.query_params.get(state.BLOCK, "")
    place = int(linked) if linked.isascii() and linked.isdigit() and len(linked) < 6 else -1
    return place if 0 <= place < count else strongest_block(rows)


def _chosen(workspace: Workspace, by: str | None, group: str | None) -> np.ndarray:
    table = loaders.examples(workspace.at, workspace.examples.name)
    if group is None or by is None:
        return np.ones(len(table), dtype=bool)
    return (table[by].astype(object).map(str, na_action="ignore") == group).to_numpy(bool)


def _ids(workspace: Workspace, chosen: np.ndarray) -> set[str]:
    table = loaders.examples(workspace.at, workspace.examples.name)
    return set(table["example_id"][chosen])


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
            *("network", *workspace.at.words, "--set", name, "--stage", stage),
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
    if job_progress.job_state(arguments, "Try again"):
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
