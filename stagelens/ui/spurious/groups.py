"""Group gaps on the *Spurious features* page: groups with and without each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from stagelens.analyses.spurious.gaps import (
    FINAL,
    Gaps,
    findings,
    gap_notes,
    gap_sentences,
    model_words,
    rows_of,
    without,
)
from stagelens.analyses.spurious.gaps import group_gaps as measure_gaps
from stagelens.charts import EITHER
from stagelens.charts.group_rows import gap_rows
from stagelens.charts.groups import class_errors, group_gaps
from stagelens.contracts import ACCURACY, Behaviour, is_score
from stagelens.effects.groups import MINIMUM
from stagelens.report.provenance import RECORDED
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_badges
from stagelens.ui.reading import drawn, loaders, scored
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.wording.folding import MOST, listed
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import MARKS, TrustWord

_ERRORS = {
    "Missed": ("missed", "Percentage of each class that the model answers wrongly."),
    "False alarms": (
        "false",
        "Percentage of the other classes that the model wrongly answers with this class.",
    ),
}
_GAPS_IN = (ACCURACY.name, "margin")
_MOST_CELLS = 600
"""Most cells in a picture of errors by class; with more, there is none."""


@st.cache_resource(max_entries=16, show_spinner="Comparing groups")
def _gaps(
    at: Source, set_name: str, estimate: str, by: tuple[str, ...], behaviour: str
) -> Gaps | None:
    found = loaders.effects(at, set_name, estimate)
    if found is None:
        return None
    stages = [stage.name for stage in loaders.run(at).stages]
    kind = found.behaviours[behaviour]
    orders, draws = loaders.orders(at, set_name), drawn.draws(at, set_name)
    return measure_gaps(rows_of(found, by), stages, by, kind, orders, found.trust, draws)


def group_gaps_tab(workspace: Workspace, effects: Effects | None) -> None:
    """Controls, sentences, chart, and errors by class."""
    if effects is None or ACCURACY.name not in effects.behaviours:
        said = "The examples of this set have no labels, so no accuracy against labels."
        if scored.scores(workspace.at, workspace.examples.name):
            said += " Scores of answers are on the Overview."
        if is_score(workspace.bar.behaviour):
            said += (
                " Effects on them by group are there, too; which words of prompts go with them, "
                "the next tab finds."
            )
        st.info(said, icon=":material/label_off:")
        return
    if workspace.by is None:
        st.info(
            "This set has no column that could form groups: one with 2 to 12 different values. "
            "The next tab finds features that no column records.",
            icon=":material/category:",
        )
        return
    by, behaviour = _controls(workspace, workspace.by)
    gaps = _gaps(workspace.at, workspace.examples.name, effects.estimator, by, behaviour.name)
    if gaps is None:
        return
    stages = [name for name in workspace.stages if name in effects.trust]
    _sentences(workspace, effects, gaps, stages)
    _picture(workspace, effects, gaps, stages, crossed=len(by) > 1)
    words = model_words(gaps, stages, effects.trust)
    _tables(gaps, words)
    if workspace.by != "label":
        parts = (workspace.at, workspace.examples.name, effects.estimator)
        # Errors by class cross groups with labels anyway, so the groups must not be crossed yet.
        each = gaps if len(by) == 1 else _gaps(*parts, by[:1], behaviour.name)
        if each is not None:
            _errors(each, stages, words)


def _controls(workspace: Workspace, by: str) -> tuple[tuple[str, ...], Behaviour]:
    chosen = workspace.bar.behaviour
    behaviour = chosen if chosen.name in _GAPS_IN else ACCURACY
    if behaviour is not chosen:
        components.text_block(
            f"Gaps are of accuracy or margin, not of the {chosen.name}: accuracy is shown.",
            muted=True,
        )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        crossing = by != "label" and st.toggle(
            f"Cross {by} with the label" if len(by) < 24 else "Cross with the label",
            key="crossed",
            bind="query-params",
            help="One group for every combination of value and label. The column itself is chosen "
            "above, under *Groups by*.",
        )
    return ((by, "label") if crossing else (by,)), behaviour


def _sentences(workspace: Workspace, effects: Effects, gaps: Gaps, stages: Sequence[str]) -> None:
    with st.container(border=True):
        said = gap_sentences(gaps, stages, effects.trust, workspace.noun)
        if not said:
            st.markdown(
                f"Fewer than two groups have {MINIMUM} labelled examples: no gap is reported."
            )
        components.sentences(said, size="1.15rem")
        noise = (
            "so does its interval over draws of the recipe"
            if gaps.over_draws
            else "and beyond training noise"
            if gaps.within_noise
            else "training noise is not known (the Trust page measures it)"
        )
        components.text_block(
            "A stage is named where the 95 % interval of its effect on the gap, over "
            "examples and, where it is known, with the error of the estimate, excludes zero; "
            f"{noise}. The gap is the one between the final model's "
            f"best and worst group of at least {count_text(MINIMUM, workspace.noun)}.",
            muted=True,
        )


def _picture(
    workspace: Workspace, effects: Effects, gaps: Gaps, stages: Sequence[str], crossed: bool
) -> None:
    notes = gap_notes(gaps, stages, effects.trust)
    parts = (gaps.metrics, gaps.behaviour, notes)
    about = About(
        behaviour=gaps.behaviour.name,
        sentences=lambda: gap_sentences(gaps, stages, effects.trust, workspace.noun),
    )
    # Where groups are crossed with labels, a point is neither the one nor the other.
    opens = None if crossed else lambda group: components.address("Examples", group=group)
    components.drawn(
        gap_rows(*parts, opens),
        "group-gaps",
        lambda: drawing.chart(group_gaps, *parts, EITHER),
        about,
    )
    trust_badges([effects.trust[s] for s in stages], gaps.behaviour.name)
    said = [
        "Lines are 95 % intervals over examples. A gap in brackets, without a bar, may "
        "be none: its interval includes zero."
    ]
    if len(stages) > MOST:
        said.append(
            f"Drawn are the {MOST} of {len(stages):,} stages that change the gap most; the table "
            "below has all of them."
        )
    sharing = loaders.clusters(workspace.at, workspace.examples.name)
    if sharing is not None:
        said.append(sharing.words(count_text(workspace.examples.count, workspace.noun)))
    if gaps.metrics.unlabelled:
        said.append(f"{count_text(gaps.metrics.unlabelled)} without a label left out.")
    noisy = [stage for stage, within in gaps.within_noise.items() if within]
    unclear = [stage for stage in noisy if stage in gaps.over_draws]
    noisy = [stage for stage in noisy if stage not in gaps.over_draws]
    if unclear:
        said.append(
            "≈ The interval over draws of the recipe holds zero, so no finding: the effect of "
            f"{listed(unclear)} on the gap."
        )
    if noisy:
        said.append(
            f"≈ Within training noise, so not a finding: the effect of {listed(noisy)} on the gap."
        )
    elif not gaps.within_noise:
        said.append("Training noise not known.")
    components.text_block(" ".join(said), muted=True)


def _errors(gaps: Gaps, stages: Sequence[str], words: Mapping[str, TrustWord]) -> None:
    """Errors by class for the final model, and beside it for the model without one stage."""
    classes = gaps.metrics.classes
    cells = classes["group"].nunique() * classes["label"].nunique()
    if not stages:
        return
    st.header("Errors by class", anchor=False)
    if cells > _MOST_CELLS:
        st.caption(f"There are too many groups and classes to draw ({cells:,} cells).")
        _error_table(classes, words)
        return
    when_opened(
        "errors-by-class",
        "Errors by class, of the final model and without a stage",
        lambda: _error_pictures(gaps, stages, words),
    )


def _error_pictures(gaps: Gaps, stages: Sequence[str], words: Mapping[str, TrustWord]) -> None:
    classes, found = gaps.metrics.classes, findings(gaps, stages)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        kind = st.segmented_control(
            "Errors",
            list(_ERRORS),
            default="Missed",
            required=True,
            key="errors",
            bind="query-params",
            help=" ".join(f"**{name}**: {said}" for name, (_, said) in _ERRORS.items()),
        )
        stage = st.selectbox(
            "Compare with the model without",
            stages,
            index=stages.index(found[0]) if found else 0,
            key="left-out",
            bind="query-params",
            width=260,
            help="Its errors are shown beside those of the final model.",
        )
    measured, meaning = _ERRORS[kind or "Missed"]
    with st.grid(2, min_column_width=330, gap="medium") as grid:
        for model in (FINAL, without(stage)):
            with grid.cell():
                known = "" if model == FINAL else f": {MARKS[words[model]]} {words[model]}"
                components.text_block(f"{model}{known}")
                chart = drawing.chart(class_errors, classes, model, measured, EITHER)
                about = About(behaviour=ACCURACY.name, observed=RECORDED if model == FINAL else "")
                components.show(chart, f"errors-{model == FINAL}", about)
    components.text_block(meaning, muted=True)
    _error_table(classes, words)


def _error_table(classes: pd.DataFrame, words: Mapping[str, TrustWord]) -> None:
    said = "Errors by group and class under every model, with 95 % intervals."
    about = About(behaviour=ACCURACY.name)
    when_opened(
        "errors-table",
        "The same errors as a table",
        lambda: components.table(_readable(classes, words), "errors-by-class", said, about),
    )


def _tables(gaps: Gaps, words: Mapping[str, TrustWord]) -> None:
    said = "Accuracy and margin of every group under every model, with 95 % intervals."
    rows, about = gaps.metrics.groups, About(behaviour=gaps.behaviour.name)
    when_opened(
        "groups-table",
        "The same numbers as a table",
        lambda: components.table(_readable(rows, words), "groups-table", said, about),
    )


def _readable(table: pd.DataFrame, words: Mapping[str, TrustWord]) -> pd.DataFrame:
    """Shares in percent, the trust of every model, and the row over all examples named as such."""
    shares = [c for c in table if c.split("_")[0] in ("accuracy", "missed", "false")]
    shown = table.assign(**{c: 100 * table[c] for c in shares})
    # As objects: a categorical takes no value, such as "all", that is not among its categories.
    shown["group"] = shown["group"].astype(object).where(shown["group"].notna(), "all")
    names = {c: f"{c} %".replace("_", " ") for c in shares} | {
        c: c.replace("_", " ") for c in table if c not in shares
    }
    shown.insert(1, "trust", shown["model"].map(words))
    return shown.rename(columns=names).round(2)
