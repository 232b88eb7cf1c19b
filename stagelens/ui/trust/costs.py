"""What each estimate costs on this run, in time and in replays, and how good it was."""

from __future__ import annotations

import html

import numpy as np
import streamlit as st

from stagelens.charts.style import FAINT_AREA, HAIRLINE
from stagelens.estimators import registry
from stagelens.estimators.durations import paces
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders
from stagelens.ui.server import jobs
from stagelens.wording import numbers
from stagelens.wording.trust_words import MARKS, trust_label, trust_word

from .sections import TrustView

_TABLE = "border-collapse:collapse;border:0;width:100%;margin:0;font-variant-numeric:tabular-nums"
_CELL = (
    f"border:0;border-bottom:1px solid {HAIRLINE};padding:.45em 1em .45em .4em;white-space:nowrap"
)
_WRAPPED = "white-space:normal;min-width:8em"
"""What is known of a stage is longer than figures."""
_NARROW = (
    "<style>@media (max-width:640px){"
    ".sl-costs :is(table,tbody,tr,td){display:block;border:0!important}"
    ".sl-costs thead{display:none}"
    f".sl-costs tr{{border-bottom:1px solid {HAIRLINE}!important;padding:.3em 0}}"
    ".sl-costs td{display:flex!important;gap:1em;padding:.15em .4em!important}"
    ".sl-costs td:empty{display:none!important}"
    ".sl-costs td[data-head]::before{content:attr(data-head);flex:none;width:8em;opacity:.75;"
    "overflow-wrap:anywhere}"
    "}</style>"
)
"""In a narrow window every estimate is a card: no column can be scrolled out of sight."""


def every_estimate(workspace: Workspace, view: TrustView) -> None:
    """One line per estimate: what it took and how good it was, or what it is predicted to take."""
    st.header("What each estimate costs", anchor=False)
    components.text_block(
        "Time that the estimates took on this run for the stages before the last, whose effect "
        "comes free, and the time predicted for this machine, as busy as it is now. Cost in "
        "replays counts the gradients that are computed, whatever else takes time. Errors are "
        f"relative errors on the {view.behaviour.name}.",
        muted=True,
    )
    at, name = workspace.at, workspace.examples.name
    # Without the last stage the model is the state that the stage started from: recorded, exact.
    shown = workspace.stages[:-1]
    stored = loaders.stored_estimates(at, name)
    heads = ["estimate", "time", "predicted", "cost in replays", *shown]
    body = []
    for estimate in loaders.available(at, name):
        known = loaders.facts(at, name, estimate)
        trusts = {t.stage: t for t in (known.stages if known else ()) if t.stage in shown}
        # A stage that was refused half-way has cost something all the same.
        costs = [t.cost for t in trusts.values() if t.trust != "refused" or t.cost]
        cells = [
            numbers.measured_time(sum(t.seconds for t in trusts.values())),
            _predicted(workspace, stored[estimate].estimator, stored[estimate].settings),
            f"{np.mean(costs):.2f}" if costs else "n/a",
            *(_brief(trusts.get(stage), view.behaviour.name) for stage in shown),
        ]
        body.append(_row(heads, estimate, cells, estimate == view.estimate))
    for estimator in (REPLAY, *registry.verifiable()):
        settings = registry.find(estimator).default_settings()
        estimate = registry.estimate_name(estimator, settings)
        if estimate not in stored:
            cells = ["not computed", _predicted(workspace, estimator, settings)]
            body.append(_row(heads, estimate, cells + [""] * (1 + len(shown)), False))
    top = "".join(
        f"<th scope='col' style='{_CELL};text-align:left;opacity:.75;font-weight:400'>"
        f"{html.escape(head)}</th>"
        for head in heads
    )
    st.html(
        f"{_NARROW}<div class='sl-costs' style='overflow-x:auto'>"
        f"<table style='{_TABLE};font-size:.9rem'><thead><tr>{top}"
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _row(heads: list[str], estimate: str, cells: list[str], chosen: bool) -> str:
    mark = f"background:{FAINT_AREA}" if chosen else ""
    name = f"<td style='{_CELL}'><b>{html.escape(estimate)}</b></td>"
    return (
        f"<tr style='{mark}'>{name}"
        + "".join(
            f"<td data-head='{html.escape(head)}' style='{_CELL};{_WRAPPED if place > 2 else ''}'>"
            f"{html.escape(cell)}</td>"
            for place, (head, cell) in enumerate(zip(heads[1:], cells, strict=True))
        )
        + "</tr>"
    )


def _predicted(workspace: Workspace, estimator: str, settings: dict[str, float]) -> str:
    known = paces(workspace.run)
    seconds = registry.estimate_seconds(known.stages, estimator, settings)
    if seconds is None:
        return "not known"
    seconds = known.at_present(seconds, jobs.running())
    # A prediction is not good to the millisecond.
    return "under a second" if seconds < 1 else numbers.measured_time(seconds)


def _brief(trust: StageTrust | None, behaviour: str) -> str:
    if trust is None:
        return "not computed"
    return f"{MARKS[trust_word(trust, behaviour)]} {trust_label(trust, behaviour)}"
