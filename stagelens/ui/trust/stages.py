"""Each stage on the Trust page: what is known of its numbers, and the points behind that."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.charts.agreement_picture import agreement_picture
from stagelens.charts.effect_scatter import drawn_of
from stagelens.charts.style import MUTED
from stagelens.charts.trust import agreement
from stagelens.effects.headlines import FEWEST
from stagelens.effects.results import Result
from stagelens.estimators.stage_trust import StageTrust, is_ground_truth
from stagelens.trust.noise import RECORDED
from stagelens.trust.recipe import two_errors
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, state
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_badge, trust_legend
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Source
from stagelens.wording.folding import MOST, listed
from stagelens.wording.numbers import count_text, number, signed_text
from stagelens.wording.trust_words import MARKS, decimal, percent, promised_word, trust_explanation

from .draws import in_place_of_orders
from .in_use import estimate_in_use
from .sections import TrustView

FIGURES = {
    "r": ("Pearson r", "1: the estimate rises and falls with replay over the examples."),
    "rho": ("Spearman rho", "The same for ranks, so that a few large effects do not decide it."),
    "slope": ("Slope", "Replay on estimate, through the origin: 1 is right, below 1 overstates."),
    "relative_error": ("Relative error", "Size of the error over the size of the true effects."),
    "sign_agreement": (
        "Sign agreement",
        "Share of examples whose sign is right: credit as credit, blame as blame.",
    ),
}
"""Column of a verification table to its title and its meaning."""

_AS_PERCENT = ("relative_error", "sign_agreement")


def each_stage(workspace: Workspace, view: TrustView) -> None:
    """One card per stage: the verdict, the scatter, and all figures together."""
    if view.truth is None:
        st.info(
            "Nothing has been compared with a replay on this set yet: none is stored that can be "
            f"read, so these are the estimates' own promises. {_way_to_know(workspace)}",
            icon=":material/science:",
        )
    elif view.truth.trust and any(t.trust != "exact" for t in view.truth.trust.values()):
        reasons = dict.fromkeys(t.reason for t in view.truth.trust.values() if t.trust != "exact")
        st.caption(components.plain(" ".join(reasons)))
    used = estimate_in_use(workspace)
    if used != view.estimate:
        components.text_block(
            f"{view.estimate} is not in use: the other pages show effects by {used}. What is said "
            f"here of {view.estimate} says nothing against those."
        )
    if view.truth is not None:
        _legend(any(_of(view.truth, s)["within_noise"].eq(True).any() for s in workspace.stages))
    if view.only is not None:
        count = len(view.only.example_ids)
        few = f" Fewer than {FEWEST} examples prove nothing." if count < FEWEST else ""
        components.text_block(
            f"Points and figures are those of slice {view.only.name}, "
            f"{count_text(count, workspace.noun)}; verdicts are for all examples.{few}"
        )
    # What is exact has no points to scatter, and gets a line below the cards.
    open_stages = [s for s in workspace.stages if _trust(view, s).trust != "exact"]
    shown, number = open_stages, 1
    if len(open_stages) > MOST:
        pages = -(-len(open_stages) // MOST)
        number = st.pagination(pages, key="trust-page", max_visible_pages=5)
        shown = open_stages[(number - 1) * MOST : number * MOST]
    with st.grid(3, min_column_width=255, gap="small"):
        for stage in shown:
            with st.container(border=True, height="stretch", gap="small"):
                _stage(workspace, view, stage, used != view.estimate)
    exact: dict[str, list[str]] = {}
    for stage in workspace.stages:
        if stage not in open_stages:
            exact.setdefault(_trust(view, stage).reason, []).append(stage)
    for reason, names in exact.items():
        components.text_block(f"{MARKS['exact']} {listed(names)}: exact. {reason}")
    trust_legend()


def _legend(noisy: bool) -> None:
    noise_mark = f"<span><b style='color:{MUTED}'>+</b> within training noise</span>"
    st.html(
        "<div style='display:flex;flex-wrap:wrap;gap:.2em 1.3em;font-size:.875rem'>"
        f"<span><b style='color:{charts.CREDIT}'>▲</b> credit</span>"
        f"<span><b style='color:{charts.BLAME}'>▼</b> blame, by replay</span>"
        f"{noise_mark if noisy else ''}"
        "<span>— estimate equals replay</span>"
        "<span><b>- -</b> slope through the origin</span>"
        "<span style='opacity:.75'>Figures with 95 % intervals over examples.</span></div>"
    )


def _trust(view: TrustView, stage: str) -> StageTrust:
    known = view.result.trust.get(stage)
    if known is not None:
        return known
    # A stage that was replayed has no estimate where nothing asked for one.
    settled = None if view.truth is None else view.truth.trust.get(stage)
    if settled is not None and is_ground_truth(settled):
        return settled
    reason = "Not estimated for this stage, and not replayed."
    return StageTrust(stage=stage, estimator=view.estimate, trust="refused", reason=reason)


def _stage(workspace: Workspace, view: TrustView, stage: str, quiet: bool) -> None:
    trust = _trust(view, stage)
    row = view.rows.get(stage)
    color = charts.stage_color(workspace.stages.index(stage))
    st.html(
        "<div style='display:flex;align-items:center;gap:.5em'>"
        f"<span style='width:.8em;height:.8em;border-radius:.2em;background:{color}'></span>"
        "<h2 style='margin:0;padding:0;font-size:1.1rem;overflow-wrap:anywhere'>"
        f"{html.escape(stage)}</h2></div>",
    )
    trust_badge(trust, view.behaviour.name, quiet=quiet)
    said = html.escape(trust_explanation(trust, view.behaviour.name)).replace(" %", "&nbsp;%")
    room = "6em" if row is not None and trust.trust != "refused" else "0"  # so that charts line up
    st.html(
        f"<p style='margin:0;min-height:{room};line-height:1.5;overflow-wrap:anywhere'>{said}</p>"
    )
    if trust.trust == "refused":
        return
    points = _points(workspace, view).get(stage)
    if points is not None and row is not None:
        parts = (points, view.behaviour, stage, view.estimate, float(row["slope"]))

        def chart() -> charts.Chart:
            return drawing.chart(agreement, *parts, charts.EITHER)

        about = About(behaviour=view.behaviour.name, estimator=view.estimate, trust=[trust])
        number = workspace.stages.index(stage)
        picture = drawing.chart(agreement_picture, *parts)
        components.drawn(picture, f"agreement-{number}", chart, about)
        when_opened(
            f"points-{number}",
            "Points to click",
            lambda: components.show(
                chart(), f"points-{number}", about, lambda one: {"stage": stage, state.EXAMPLE: one}
            ),
        )
        if left_out := drawn_of(len(points)):
            components.text_block(left_out, muted=True)
    _figures(view, trust, row)


def _points(workspace: Workspace, view: TrustView) -> Mapping[str, pd.DataFrame]:
    """Stage to its points; no entry without a replay to compare with."""
    if view.truth is None:
        return {}
    slice_name = None if view.only is None else view.only.name
    parts = (workspace.at, workspace.examples.name, view.estimate, view.behaviour.name)
    return _points_of(*parts, slice_name, view)


@st.cache_resource(max_entries=32, show_spinner=False)
def _points_of(
    at: Source, set_name: str, estimate: str, behaviour: str, only: str | None, _view: TrustView
) -> Mapping[str, pd.DataFrame]:
    truth = _view.truth
    if truth is None:
        return {}
    shared = [stage for stage in _view.result.trust if stage in truth.trust]
    return {stage: _paired(_view, truth, stage) for stage in shared}


def _paired(view: TrustView, truth: Result, stage: str) -> pd.DataFrame:
    own, true = (_of(table, stage) for table in (view.result, truth))
    if view.only is not None:
        true = true[true["example_id"].isin(view.only.example_ids)]
    return (
        own[["example_id", "effect"]]
        .rename(columns={"effect": "estimate"})
        # Paired by id: slices and refusals leave the two tables with different rows.
        .merge(
            true[["example_id", "effect", "within_noise"]].rename(columns={"effect": "replay"}),
            on="example_id",
        )
    )


def _of(result: Result, stage: str) -> pd.DataFrame:
    return result.table[result.table["stage"] == stage]


def _figures(view: TrustView, trust: StageTrust, row: Mapping[str, Any] | None) -> None:
    lines = []
    for name, (title, meaning) in FIGURES.items() if row is not None else ():
        assert row is not None
        low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
        between = f"{_text(name, low)} to {_text(name, high)}" if np.isfinite(low) else ""
        lines.append((title, _text(name, row[name]), between, meaning))
    lines.append(
        (
            "Error up to" if row is None else "Promised: up to",
            "not known" if trust.expected_error is None else percent(trust.expected_error),
            "" if trust.expected_error is None else promised_word(trust),
            "Relative error that nine of ten such estimates stay within, found without a replay.",
        )
    )
    if trust.typical_error is not None:
        meaning = (
            "The median: half of such estimates are off by less, half by more. What nine of ten "
            "stay within is the line above."
        )
        lines.append(("Typically", percent(trust.typical_error), "", meaning))
    floor = np.nan if row is None else row["noise_floor_r"]
    lines.append(
        (
            "Noise-floor r",
            number(floor) if np.isfinite(floor) else "noise not known",
            "",
            "Replay with the batches in another order, against replay: no estimate needs to do "
            "better.",
        )
    )
    if np.isfinite(floor):
        assert row is not None
        sd = signed_text(float(row["noise_sd"]), view.behaviour).lstrip("+")
        meaning = "How much an example's effect varies with the order of the batches."
        lines.append(("Noise sd", sd, "", meaning))
    cells = "".join(
        f"<tr title='{html.escape(meaning, quote=True)}'>"
        f"<th scope='row' style='{_CELL};text-align:left;font-weight:400;opacity:.8'>{title}</th>"
        + (
            f"<td style='{_CELL};text-align:right;font-weight:600'>{value}</td>"
            f"<td style='{_CELL};width:99%;opacity:.75;font-size:.92em'>{more}</td></tr>"
            if not value.endswith("not known")
            else f"<td colspan='2' style='{_CELL}'>{value}</td></tr>"
        )
        for title, value, more, meaning in lines
    )
    st.html(f"<table style='{_TABLE};font-size:.875rem'><tbody>{cells}</tbody></table>")


_CELL = "border:0;padding:.14em .5em .14em 0;vertical-align:baseline;white-space:nowrap"
_TABLE = "border-collapse:collapse;border:0;width:100%;margin:0;font-variant-numeric:tabular-nums"


def _text(name: str, value: float) -> str:
    return percent(value) if name in _AS_PERCENT else decimal(value)


# -------------------------------------------------------------------------------------- noise


def _way_to_know(workspace: Workspace) -> str:
    """What shows how far the numbers are off, or why nothing can."""
    why = next((stage.no_replay for stage in workspace.run.stages[1:] if stage.no_replay), "")
    if why:
        return f"Some cannot be compared: {components.plain(why)}."
    return "**Verify by replay**, below, shows how far each number is off."


def noise(workspace: Workspace, view: TrustView) -> None:
    """How much of the effects is no more than the order of the batches."""
    st.header("Training noise", anchor=False)
    orders = loaders.orders(workspace.at, workspace.examples.name)
    if orders is None:
        components.text_block(
            in_place_of_orders(workspace, view)
            or "Noise not known: no other order of the recorded batches has been replayed. Verify "
            "with at least one other order to learn which effects are no more than chance."
        )
        return
    known = orders.loc[orders["order"] != RECORDED, "order"].nunique()
    effects = view.truth or view.result
    said = []
    for stage in workspace.stages[:-1]:
        marks = _of(effects, stage)["within_noise"].dropna()
        if len(marks):
            said.append(f"{stage} {percent(float(marks.astype(bool).mean()))}")
    components.text_block(
        f"Measured by replays in {count_text(known, 'other order')} of the recorded batches, "
        "given the earlier stages as recorded. An "
        "effect of less than two noise sd is within training noise, and not a finding. Of the "
        f"effects on the {view.behaviour.name}, within training noise: "
        f"{', '.join(said) or 'not known'}."
    )
    _about_the_recipe(workspace, view, orders)


def _about_the_recipe(workspace: Workspace, view: TrustView, orders: pd.DataFrame) -> None:
    """Whether the estimate is nearer to the effects of this run or to those of its recipe."""
    own = orders[orders["behaviour"] == view.behaviour.name]
    known = {
        stage: found
        for stage in workspace.stages[:-1]
        if not is_ground_truth(_trust(view, stage))
        and (found := two_errors(_of(view.result, stage), own[own["stage"] == stage]))
    }
    if not known:
        return
    count = max(found.orders for found in known.values())
    said = [
        f"{stage} {percent(found.of_run)} of this run, {percent(found.of_recipe)} of the recipe"
        for stage, found in known.items()
    ]
    components.text_block(
        "An effect by replay is that of this run, with its batches in their order; the mean over "
        "all orders is that of the recipe, given the earlier stages as recorded. Promises are "
        "about this run. Error of "
        f"{view.estimate} (the recipe known from {count_text(count, 'other order')}): "
        f"{'; '.join(said)}."
    )
