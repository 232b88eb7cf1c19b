"""Before and after an edit: an instant preview, the exact figures, both models side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.removal import comparison, measurements
from stagelens.analyses.removal.comparison import AFTER, BEFORE, Preview
from stagelens.analyses.removal.measurements import Measurement
from stagelens.analyses.removal.spec import Edit
from stagelens.charts.removal import (
    accuracy_rows,
    calibration_curve,
    confusion_map,
    group_accuracy,
)
from stagelens.ui.pieces import components, drawing, job_progress, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_badge
from stagelens.ui.reading import loaders, scored
from stagelens.ui.server import jobs
from stagelens.wording.numbers import count_text

from . import changed_answers, edited_models, saving
from .edited_models import ALL, Compared, RemovalView, Wanted

_MANY_CLASSES = 30
_JOB = state.session_key("removal-job")


def figures(view: RemovalView, wanted: Wanted) -> None:
    """Everything below the controls: a preview at once, followed by the exact figures."""
    edit, nothing = wanted.edit, view.edit({})
    grid = None
    if wanted.by_hand and view.workspace.labelled:  # a preview is one of accuracy
        grid = _grid(view)
        if grid is None:
            return
    # Preview and exact figures share one place: the second replaces the first without a jump.
    headline = st.empty()
    before, after = edited_models.find(view, nothing), edited_models.find(view, edit)
    rows = None
    if grid is not None and after is None:
        guess = edited_models.preview(
            *(*view.key, view.effects.estimator, view.by, view.held_back), view, grid
        )
        rows = _interpolated(view, guess, edit)
        with headline.container():
            st.badge(
                "rough: a preview, interpolated between computed strengths; exact figures follow",
                icon=":material/hourglass_top:",
                color="orange",
            )
            _metrics(rows, "≈ ")
    if before is None or after is None:
        if not edited_models.at_once(view.workspace.run, view.workspace.examples.count, 2):
            if rows is not None:
                # Interpolated, so neither measured nor as well known as the counterfactuals.
                about = replace(edited_models.about(view, edit), observed="", trust=())
                _chart(view, rows, about, AFTER)
            _measure_in_background(wanted)
            return
        # Until these are there, the chart of the previous strength stays on the page.
        before, after = edited_models.measure_now(view, [nothing, edit])
    compared = edited_models.compare(view, {BEFORE: before, AFTER: after})
    rows = compared.rows(view.by)
    # A group without labels has no accuracy.
    rows = rows[rows["accuracy"].notna()]
    with headline.container():
        weights = "edited weights" if edit.strengths else "weights as they are"
        with st.container(horizontal=True, gap="small"):
            st.badge(f"exact: measured on the {weights}", icon=":material/check:", color="green")
            # What the edited weights stand for is as uncertain as what they were made with.
            for stage in edit.strengths:
                trust_badge(view.effects.trust[stage], None, f"without {stage}")
        _metrics(rows)
        _on_all(view, {BEFORE: before, AFTER: after})
    _chart(view, rows, edited_models.about(view, edit))
    if edit.strengths:
        if compared.answers[BEFORE]["label"].notna().any():
            _side_by_side(view, compared, edit)
        changed_answers.table(view, compared, edit)
        changed_answers.control(view, compared, edit)
        saving.check(view, wanted)
        saving.save(view, wanted)


def _grid(view: RemovalView) -> list[Measurement] | None:
    found = edited_models.grid(view)
    if found is not None:
        return found
    # The final model, and every stage alone at measurements.STRENGTHS.
    models = 1 + 4 * len(view.removable)
    if edited_models.at_once(view.workspace.run, view.workspace.examples.count, models):
        with st.spinner("Measuring every stage at four strengths"):
            edits = measurements.grid(view.estimator, view.settings, view.removable)
            return edited_models.measure_now(view, edits)
    if components.only_shown():
        return None
    arguments = edited_models.grid_arguments(view)
    job = jobs.find(arguments)
    if job is None:
        jobs.start(arguments, "Measuring every stage at four strengths")
    job_progress.job_state(arguments, "Try again")
    st.caption("Every stage is measured at four strengths once, so that sliders answer at once.")
    return None


def _measure_in_background(wanted: Wanted) -> None:
    """Where the exact figures take longer: one job at a time, for the edit on display."""
    if components.only_shown():
        return
    before = st.session_state.get(_JOB)
    # A slider that is dragged would otherwise queue a job for every strength that it passes.
    if before not in (None, wanted.arguments):
        jobs.leave(before)
    st.session_state[_JOB] = wanted.arguments
    if jobs.find(wanted.arguments) is None:
        jobs.start(wanted.arguments, "The exact figures")
    job_progress.job_state(wanted.arguments, "Try again")


# -------------------------------------------------------------------------------------- headline


def _interpolated(view: RemovalView, guess: Preview, edit: Edit) -> pd.DataFrame:
    """Accuracies by model and group as ``Compared.rows`` gives them, without intervals."""
    groups = [ALL if name is None else name for name in guess.groups]
    counts = _counts(view)
    rows = [
        {
            "model": model,
            "group": group,
            "n": counts[group],
            "accuracy": accuracy,
            "accuracy_low": float("nan"),
            "accuracy_high": float("nan"),
        }
        for model, own in ((BEFORE, guess.final), (AFTER, guess.at(edit.strengths)))
        for group, accuracy in zip(groups, own, strict=True)
    ]
    table = pd.DataFrame(rows)
    return table[table["accuracy"].notna()]


def _counts(view: RemovalView) -> dict[str, int]:
    at, name = view.workspace.at, view.workspace.examples.name
    table = loaders.examples(at, name)[view.rows]
    table = table[table["label"].notna()]
    counts = {} if view.by is None else table[view.by].astype(str).value_counts().to_dict()
    return {ALL: len(table), **counts}


def _chart(
    view: RemovalView, rows: pd.DataFrame, about: About, approximate: str | None = None
) -> None:
    """Accuracy over the groups that have labels."""
    if rows.empty:
        said = "None of these examples has a label, so no accuracy against labels."
        if scored.scores(view.workspace.at, view.workspace.examples.name):
            said += " Scores of answers are on the Overview."
        st.info(said, icon=":material/label_off:")
        return
    components.drawn(
        accuracy_rows(rows, approximate),
        "remove-accuracy",
        lambda: drawing.chart(group_accuracy, rows, charts.EITHER, approximate),
        about,
    )


def _metrics(rows: pd.DataFrame, sign: str = "") -> None:
    """Accuracy over all examples and on the worst group, and the gap, each with its change."""
    if rows.empty:
        return
    groups = list(dict.fromkeys(rows["group"]))
    values = {(r["model"], r["group"]): float(r["accuracy"]) for r in rows.to_dict("records")}
    own = [name for name in groups if name != ALL]
    shown = [(ALL, f"Accuracy, {ALL}")]
    if own:
        # Best and worst before the edit: their gap must be that of the same two groups after it.
        worst = min(own, key=lambda name: values[BEFORE, name])
        shown.append((worst, f"Accuracy, {worst} (worst before)"))
    with st.grid(3, min_column_width=200, gap="small"):
        for group, label in shown:
            before, after = values[BEFORE, group], values[AFTER, group]
            st.metric(
                components.plain(label),
                f"{sign}{100 * after:.1f} %",
                **_delta(after - before),
                border=True,
            )
        if len(own) > 1:
            best = max(own, key=lambda name: values[BEFORE, name])
            gaps = [values[model, best] - values[model, worst] for model in (BEFORE, AFTER)]
            st.metric(
                components.plain(f"Gap, {best} to {worst}"),
                f"{sign}{100 * gaps[1]:.1f} points".replace("-", "−"),
                **_delta(gaps[1] - gaps[0], up_is_good=False),
                border=True,
            )


def _on_all(view: RemovalView, models: dict[str, Measurement]) -> None:
    """The same accuracies on the whole set, where the tiles show the report part alone."""
    if not view.held_back:
        return
    whole = edited_models.compare(replace(view, held_back=False), models)
    shown, every = int(view.rows.sum()), len(view.rows)
    rows = whole.rows(view.by)
    table = rows[rows["accuracy"].notna()].pivot(index="group", columns="model", values="accuracy")
    said = "; ".join(
        f"{group} {100 * before:.1f} % before, {100 * after:.1f} % after"
        for group, before, after in table[[BEFORE, AFTER]].itertuples()
    )
    components.text_block(
        f"Above: on the {count_text(shown, f'held-back {view.workspace.noun}')}. On all {every:,}, "
        f"some of which the edit was chosen on: {said}.",
        muted=True,
    )


def _delta(difference: float, up_is_good: bool = True) -> dict[str, Any]:
    """The difference below a figure; one that is printed as zero is neither good nor bad."""
    # Half of the last digit that is printed.
    zero = abs(100 * difference) < 0.05
    return {
        "delta": _points(difference),
        "delta_color": "off" if zero else "green" if (difference > 0) == up_is_good else "red",
        "delta_arrow": "off" if zero else "up" if difference > 0 else "down",
    }


def _points(difference: float) -> str:
    text = f"{100 * difference:+.1f} points"
    return text.replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "−")


# ---------------------------------------------------------------------------------- side by side


def _side_by_side(view: RemovalView, compared: Compared, edit: Edit) -> None:
    st.header("Before and after", anchor=False)
    names = [BEFORE, AFTER]
    about = edited_models.about(view, edit)
    classes = _classes(view, compared)
    with st.grid(2, min_column_width=330, gap="medium"):
        for name in names:
            with st.container():
                st.markdown(f"**{name.capitalize()}**: answers by label")
                if len(classes) > _MANY_CLASSES:
                    st.caption(f"There are too many classes to draw ({len(classes)}).")
                    continue
                counts = comparison.confusion(compared.answers[name], classes)
                chart = drawing.chart(confusion_map, counts, name, charts.EITHER)
                components.show(chart, f"remove-{name}", about)
    bins = {name: comparison.calibration(compared.answers[name]) for name in names}
    with st.grid(2, min_column_width=330, gap="medium"):
        with st.container():
            st.markdown("**Calibration**: is it right as often as it is sure?")
            chart = drawing.chart(calibration_curve, bins, charts.EITHER)
            components.show(chart, "remove-calibration", about)
        with st.container():
            st.markdown("**In figures**, with 95 % intervals over examples")
            _table(compared.rows(view.by), bins, about)


def _classes(view: RemovalView, compared: Compared) -> list[str]:
    classes = view.workspace.run.file.task.config.get("classes")
    if isinstance(classes, list):
        return [str(name) for name in classes]
    # Those of all models: an edited one may give an answer that the final one never gives.
    columns = [a[name] for a in compared.answers.values() for name in ("label", "prediction")]
    return sorted({str(name) for column in columns for name in column.dropna()})


def _table(rows: pd.DataFrame, bins: dict[str, pd.DataFrame], about: About) -> None:
    cells: dict[str, dict[str, str]] = {}
    for row in rows.to_dict("records"):
        low, high = row["accuracy_low"], row["accuracy_high"]
        # NaN, where an accuracy has no interval, is not equal to itself.
        between = "" if low != low else f" ({100 * low:.1f} to {100 * high:.1f})"
        label = f"accuracy, {row['group']}"
        cells.setdefault(label, {})[row["model"]] = f"{100 * row['accuracy']:.1f} %{between}"
    for name, own in bins.items():
        error = comparison.calibration_error(own)
        cells.setdefault("calibration error", {})[name] = f"{100 * error:.1f} points"
    table = pd.DataFrame.from_dict(cells, orient="index").fillna("").reset_index(names="figure")
    said = "Accuracy by group and calibration error before and after, with 95 % intervals."
    components.table(table, "remove-figures", said, about, height="content")
