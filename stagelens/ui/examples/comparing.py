"""The tab *Comparison*: two estimators, two behaviours, or two runs, on the same examples.

It is a tab of the Examples page because its result is a list of examples to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.charts import EITHER
from stagelens.charts.comparison import effect_against_effect
from stagelens.charts.effect_scatter import drawn_of
from stagelens.contracts import ACCURACY, Behaviour, StageLensError
from stagelens.trust.comparing import (
    Comparison,
    Side,
    comparable_set,
    compare_effects,
    comparison_sentence,
)
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_badge
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.ui.server import settings
from stagelens.wording.numbers import amount_text, axis_unit, signed_text
from stagelens.wording.signs import POSITIVE_IS
from stagelens.wording.trust_words import decimal, percent

ESTIMATORS, BEHAVIOURS, RUNS = "Two estimators", "Two behaviours", "Two runs"
_SHOWN = 12
"""Rows of the table of largest disagreements."""
_TABLE = state.session_key("disagreements")
_ONE_RECORDING = "Both run folders hold the same recorded training."
_TWO_TRAININGS = (
    "The two runs were trained separately. Their effects differ by chance too (first weights, "
    "order of the batches), so a difference on single examples is not an error of either estimate."
)


_PAIRED = ("example_id", "effect")


@dataclass(frozen=True)
class _Wanted:
    """What is compared: one stage, and for each side its effects and the behaviour.

    The note says what else may explain a difference.
    """

    stage: str
    names: tuple[str, str]
    effects: tuple[Effects, Effects]
    behaviours: tuple[Behaviour, Behaviour]
    note: str = ""

    def sides(self) -> tuple[Side, Side]:
        """Both sides, with the effects of the stage alone."""
        first, second = (
            Side(
                name,
                kind,
                found.of_stage(kind.name, self.stage, _PAIRED)[list(_PAIRED)],
                found.trust[self.stage],
            )
            for name, found, kind in zip(self.names, self.effects, self.behaviours, strict=True)
        )
        return first, second


def comparison_tab(workspace: Workspace, effects: Effects) -> None:
    """Controls, the sentence, the scatter, the figures, and the largest disagreements."""
    with st.container(border=True):
        kind = st.segmented_control(
            "Compare",
            (ESTIMATORS, BEHAVIOURS, RUNS),
            default=ESTIMATORS,
            required=True,
            key="compared",
            bind="query-params",
            help="The same examples and the same stage on both axes: two estimators, two "
            "behaviours, or two runs of one task.",
        )
        choose = {ESTIMATORS: _estimators, BEHAVIOURS: _behaviours, RUNS: _runs}
        try:
            wanted = choose[kind or ESTIMATORS](workspace, effects)
        except StageLensError as error:
            components.error_state(str(error))
            return
    if wanted is not None:
        _result(workspace, wanted)


# ------------------------------------------------------------------------------------- controls


def _estimators(workspace: Workspace, effects: Effects) -> _Wanted | None:
    available = loaders.available(workspace.at, workspace.examples.name)
    if len(available) < 2:
        st.info(
            f"Only {components.plain(available[0])} is stored for this set. Compute another "
            "estimator in the sidebar, or with stagelens attribute.",
            icon=":material/info:",
        )
        return None
    with st.grid(4, min_column_width=150):
        # Listed best first: initially the second best is compared with the best.
        first = _pick("First estimator", available, "compared-first", 1)
        second = _pick("Second estimator", available, "compared-second", 0)
        own, other = (
            loaders.effects(workspace.at, workspace.examples.name, name) for name in (first, second)
        )
        if own is None or other is None:
            return None
        # A table that lacks a stage shows another one's numbers of it: there is nothing to compare.
        pair = ((own, first), (other, second))
        both = [s for s in workspace.stages if all(one.sources.get(s) == n for one, n in pair)]
        stage = _stage(workspace.bar.stage, both or workspace.stages, own, other)
        behaviour = _behaviour(effects, "Behaviour", "compared-behaviour", 0)
    return _Wanted(stage, (first, second), (own, other), (behaviour, behaviour))


def _behaviours(workspace: Workspace, effects: Effects) -> _Wanted | None:
    if len(_kinds(effects)) < 2:
        st.info("This task has one behaviour only.", icon=":material/info:")
        return None
    with st.grid(3, min_column_width=150):
        stage = _stage(workspace.bar.stage, workspace.stages, effects)
        first = _behaviour(effects, "First behaviour", "compared-first-behaviour", 0)
        second = _behaviour(effects, "Second behaviour", "compared-second-behaviour", 1)
    return _Wanted(stage, (first.name, second.name), (effects, effects), (first, second))


def _runs(workspace: Workspace, effects: Effects) -> _Wanted | None:
    # One folder can have several references, so what they resolve to is compared.
    others = [name for name in _known() if settings.resolve(name) != workspace.run.path.resolve()]
    if not others:
        st.info(
            "There is no other run on this server to compare with. Runs in the same folder as "
            "this one are found automatically.",
            icon=":material/info:",
        )
        return None
    with st.grid(4, min_column_width=150):
        name = _pick("Other run", others, "compared-run", 0)
        at = loaders.source(settings.resolve(name))
        other = loaders.run(at)
        set_name = comparable_set(workspace.run, workspace.examples.name, other)
        found = _same_estimate(at, set_name, effects.estimator)
        if found is None:
            st.info(
                f"Run {components.plain(other.name)} has no stage effects on this set yet; open "
                "it, or run stagelens attribute.",
                icon=":material/info:",
            )
            return None
        shared = [stage for stage in workspace.stages if stage in found.trust]
        if not shared:
            st.info("The two runs have no stage of the same name.", icon=":material/info:")
            return None
        stage = _stage(workspace.bar.stage, shared, effects, found)
        behaviour = _behaviour(effects, "Behaviour", "compared-behaviour", 0)
    names = _apart(workspace, effects, name, other.name, found)
    same = other.recording == workspace.run.recording  # as copies of a run folder have it
    note = _ONE_RECORDING if same else _TWO_TRAININGS
    return _Wanted(stage, names, (effects, found), (behaviour, behaviour), note)


def _known() -> list[str]:
    demo = [settings.DEMO] if settings.demo_built() else []
    return [*demo, *settings.known_runs()]


def _same_estimate(at: Source, set_name: str, estimate: str) -> Effects | None:
    """Effects by the same estimate where it is stored, otherwise by the best one."""
    available = loaders.available(at, set_name)
    if not available:
        return None
    return loaders.effects(at, set_name, estimate if estimate in available else available[0])


def _apart(
    workspace: Workspace, effects: Effects, reference: str, name: str, found: Effects
) -> tuple[str, str]:
    """Names that tell two runs apart, with their estimates where these differ."""
    own = workspace.run.name
    other = name if name != own else f"{name} ({reference})"
    if effects.estimator != found.estimator:
        return f"{own} by {effects.estimator}", f"{other} by {found.estimator}"
    return own, other


def _stage(chosen: str | None, stages: Sequence[str], *found: Effects) -> str:
    """The stage that is compared; at first the one in the bar, or one that both sides have."""
    known = [
        number
        for number, stage in enumerate(stages)
        if all(stage in one.trust and one.trust[stage].trust != "refused" for one in found)
    ]
    start = stages.index(chosen) if chosen in stages else known[0] if known else 0
    return _pick("Stage", stages, "compared-stage", start)


def _kinds(effects: Effects) -> list[str]:
    """Behaviours, loss first as in the other tab; accuracy, 0 or 1 per example, is left out."""
    kinds = [name for name in effects.behaviours if name != ACCURACY.name]
    return sorted(kinds, key=lambda name: name != "loss")


def _behaviour(effects: Effects, title: str, key: str, start: int) -> Behaviour:
    return effects.behaviours[_pick(title, _kinds(effects), key, start)]


def _pick(title: str, options: Sequence[str], key: str, start: int) -> str:
    return st.selectbox(
        title, options, index=start, key=key, bind="query-params", help=_HELP.get(title)
    )


_HELP: Mapping[str, str] = {
    "Stage": "The stage whose effects are compared.",
    "Behaviour": "One number per example measured on a model; stage effects are about it.",
    "First estimator": "On the horizontal axis.",
    "Second estimator": "On the vertical axis.",
    "First behaviour": "On the horizontal axis.",
    "Second behaviour": "On the vertical axis.",
    "Other run": "A run of the same task, measured on the same set; shown on the vertical axis.",
}

# --------------------------------------------------------------------------------------- result


def _result(workspace: Workspace, wanted: _Wanted) -> None:
    refused = [
        f"{name}: {found.trust[wanted.stage].reason}"
        for name, found in zip(wanted.names, wanted.effects, strict=True)
        if found.trust[wanted.stage].trust == "refused"
    ]
    if refused:
        st.warning(
            components.plain(f"The effect of {wanted.stage} is not known. {' '.join(refused)}"),
            icon=":material/block:",
        )
        return
    found = compare_effects(*wanted.sides())
    said = comparison_sentence(found, wanted.stage)
    about = About(
        behaviour=found.second.behaviour.name,
        sentences=lambda: [said],
        # Both sides may be by one estimator, which is then named once.
        estimator=" and ".join(dict.fromkeys(each.estimator for each in wanted.effects)),
        trust=(found.first.trust, found.second.trust),
        filters={"stage": wanted.stage},
    )
    with st.container(border=True):
        components.sentences([said], size="1.15rem")
        with st.container(horizontal=True, gap="small"):
            for side in (found.first, found.second):
                trust_badge(side.trust, side.behaviour.name, side.name)
        if wanted.note:
            components.text_block(wanted.note, muted=True)
    with st.grid(5, min_column_width=140, gap="medium") as grid:
        with grid.cell(column_span=3):
            chart = drawing.chart(effect_against_effect, found, wanted.stage, EITHER)
            components.show(chart, "comparison", about, _opens)
            components.text_block(
                f"One point per {workspace.noun}; both axes point towards credit. In the shaded "
                "corners one side has credit and the other blame"
                + ("; the solid line is equality" if found.one_unit else "")
                + f", the dashed one the slope. {drawn_of(len(found.points))}",
                muted=True,
            )
        with grid.cell(column_span=2):
            _figures(found, about)
    _disagreements(workspace, found, about)


def _opens(example_id: str) -> dict[str, str]:
    return {state.EXAMPLE: example_id, state.VIEW: state.OF_THE_SET}


def _figures(found: Comparison, about: About) -> None:
    rows = [
        ("Pearson r", "r", decimal),
        ("Spearman rho", "rho", decimal),
        ("Slope, second on first", "slope", decimal),
        ("Relative difference", "relative_error", percent),
        ("Same sign", "sign_agreement", percent),
    ]
    lines = [
        {
            "figure": title,
            "value": text(found.figures[name]),
            "95 % interval": " to ".join(text(end) for end in found.intervals[name])
            if np.isfinite(found.intervals[name]).all()
            else "",
        }
        for title, name, text in rows
        if name != "relative_error" or found.one_unit
    ]
    names = f"{found.first.name} against {found.second.name}"
    components.table(
        pd.DataFrame(lines), "comparison-figures", f"{names}: figures.", about, height="content"
    )
    said = f"Over {len(found.points):,} examples, with intervals from resampling them."
    if not found.one_unit:
        said += " They are different behaviours, so there is no relative difference."
    components.text_block(said, muted=True)


def _disagreements(workspace: Workspace, found: Comparison, about: About) -> None:
    """The examples on which the two differ most; a click opens one."""
    st.header("Largest disagreements", anchor=False)
    top = found.points.head(_SHOWN)
    ids = top["example_id"].tolist()
    sides = (found.first, found.second)
    kinds = [side.behaviour for side in sides]
    columns = {
        f"{side.name}{f' ({axis_unit(kind)})' if axis_unit(kind) else ''}": [
            signed_text(gain, kind, unit=False) for gain in top[place]
        ]
        for side, kind, place in zip(sides, kinds, ("first", "second"), strict=True)
    }
    apart = [amount_text(value, kinds[1], unit=False) for value in top["apart"]]
    shown = pd.DataFrame({"id": ids, **columns, "apart": apart})
    if workspace.noun == "image":
        pictures = loaders.pictures(workspace.at, workspace.examples.name, ids, 40)
        shown.insert(0, "image", pictures)

    def opened() -> None:
        rows = st.session_state[_TABLE]["selection"]["rows"]
        # A selection holds positions and outlives a change of the table, which may be shorter.
        if rows and rows[0] < len(ids):
            state.choose(ids[rows[0]])
            st.session_state[state.VIEW] = state.OF_THE_SET

    components.table(
        shown,
        _TABLE,
        f"The {len(top)} examples on which {found.first.name} and {found.second.name} differ most.",
        about,
        row_height=46,
        height="content",
        on_select=opened,
        selection_mode="single-row",
        column_config={
            "image": st.column_config.ImageColumn("image", width=50),
            "apart": st.column_config.TextColumn(
                "apart",
                help="Size of the second minus the first."
                if found.one_unit
                else "Size of the second minus the slope times the first.",
            ),
        },
    )
    components.text_block(
        f"Showing {len(top):,} of {len(found.points):,}. {POSITIVE_IS} Click a row, or "
        "a point, to look at the example.",
        muted=True,
    )
