"""Cached measurements of edited models: where they are stored, and how they are obtained.

Small work is done at once in this process, anything longer in a child process whose result is a
file. Measurements are cached under keys of strings, see ``loaders``; arguments whose names begin
with an underscore are no part of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses.removal import comparison, measurements
from stagelens.analyses.removal.comparison import Preview
from stagelens.analyses.removal.measurements import Measurement
from stagelens.analyses.removal.parts import validation_part
from stagelens.analyses.removal.spec import Edit
from stagelens.contracts import ACCURACY
from stagelens.effects.groups import GroupMetrics
from stagelens.estimators import registry
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.ui.server import forward_passes, settings
from stagelens.wording.trust_words import signs_known, trust_word

ALL = "all examples"
"""Listed among the groups; stands for every example."""

_ITEMS = {"float64": 8, "bfloat16": 2, "float16": 2}
"""Bytes per parameter, by dtype."""

_AT_ONCE = 2 * 10**9
"""Most parameters times examples, over all models, that a page measures itself without a job."""


@dataclass(frozen=True)
class RemovalView:
    """What is edited, and what its figures are measured on.

    Attributes:
        workspace: The open run and set.
        estimator: How counterfactuals are obtained.
        settings: Of the estimator.
        effects: Its effect table.
        by: Column of the groups; None without one.
        held_back: Whether figures are of the report part only, because the page chose the edit on
            the other part; else they are of the whole set.
    """

    workspace: Workspace
    estimator: str
    settings: dict[str, object]
    effects: Effects
    by: str | None
    held_back: bool = False

    @classmethod
    def of(cls, workspace: Workspace, effects: Effects) -> RemovalView:
        """The view of what is chosen on top of the page."""
        stored = loaders.stored_estimates(workspace.at, workspace.examples.name)[effects.estimator]
        return cls(workspace, stored.estimator, dict(stored.settings), effects, workspace.by)

    @property
    def key(self) -> tuple[str, str, str]:
        """Run, recording with its slices, and set, for cache keys."""
        at = self.workspace.at
        # Without the stamp of results: a measurement has one of its own, see find().
        return at.path, f"{at.recorded} {at.slices} {at.leaf}", self.workspace.examples.name

    @property
    def rows(self) -> np.ndarray:
        """(N,) bool, the examples whose figures are shown."""
        rows = report_rows(self.workspace.at, self.workspace.examples.name, self.by)
        return rows if self.held_back else np.ones_like(rows)

    @property
    def removable(self) -> list[str]:
        """Stages that have a counterfactual by the chosen estimate, in training order."""
        trust, own = self.effects.trust, self.effects.estimator
        return [
            stage
            for stage, source in self.effects.sources.items()
            if source == own and trust[stage].trust != "refused"
        ]

    @property
    def elsewhere(self) -> list[str]:
        """Stages that the table of the chosen estimate lacks; another one has them."""
        own = self.effects.estimator
        return [stage for stage, source in self.effects.sources.items() if source != own]

    def edit(self, strengths: dict[str, float]) -> Edit:
        """An edit by this estimator."""
        return Edit(estimator=self.estimator, settings=self.settings, strengths=strengths)

    def arguments(self, edit: Edit) -> tuple[str, ...]:
        """The command line that measures an edit without strengths by layer."""
        words = ["remove", *self.workspace.at.words, "--set", self.workspace.examples.name]
        words += ["--estimator", edit.estimator, *registry.options(edit.settings)]
        # In training order: the command is the key of its job, and one edit must have one key.
        for stage in self.workspace.stages:
            if stage in edit.strengths:
                words += ["--stage", stage, "--strength", f"{edit.strengths[stage]:g}"]
        if self.by is not None:
            words += ["--by", self.by]
        return tuple(words)


def about(view: RemovalView, edit: Edit, behaviour: str = ACCURACY.name) -> About:
    """What figures of an edited model rest on, for when they are pinned."""
    return About(
        behaviour=behaviour,
        estimator=view.effects.estimator,
        # The edited model itself is measured, but stands for a counterfactual that is estimated.
        trust=[view.effects.trust[stage] for stage in edit.strengths],
        observed=f"the edited weights: {what_it_is(view, edit)}",
        filters={
            f"strength of {stage}": f"{100 * strength:.0f} %"
            for stage, strength in edit.strengths.items()
        },
    )


def is_counterfactual(view: RemovalView, edit: Edit) -> bool:
    """Whether the edited model is the one that training without the stage really gives."""
    if len(edit.strengths) != 1 or edit.layers:
        return False
    ((stage, strength),) = edit.strengths.items()
    known = view.effects.trust.get(stage)
    exact = known is not None and known.trust == "exact"
    return strength == 1 and (edit.estimator == REPLAY or exact)


def what_it_is(view: RemovalView, edit: Edit) -> str:
    """What an edited model stands for, as the end of a sentence."""
    if not edit.strengths:
        return "the final model, unedited"
    if is_counterfactual(view, edit):
        by = ", by replay" if edit.estimator == REPLAY else ""
        return f"the model that training without {next(iter(edit.strengths))} gives{by}"
    words = [trust_word(view.effects.trust[stage]) for stage in edit.strengths]
    if all(word in ("exact", "on recorded samples") for word in words):
        return (
            "an edit between models that were really trained, and not itself the model that "
            "training without the stage would have given"
        )
    return (
        "an edit guided by an estimate, and not the model that training without the stage would "
        "have given"
    )


@dataclass(frozen=True)
class Wanted:
    """The edit that the controls ask for.

    Attributes:
        edit: What is taken out.
        arguments: The command line that measures it, and saves it with ``--out``.
        by_hand: Whether each strength is that of a whole stage, so a preview can be interpolated.
    """

    edit: Edit
    arguments: tuple[str, ...]
    by_hand: bool


def at_once(run: Run, examples: int, models: int) -> bool:
    """Whether this many forward passes may run inside the dashboard."""
    end, model = run.last.facts.end, run.file.task.config.get("model")
    dtype = model.get("dtype") if isinstance(model, dict) else None
    # Models of tasks that name no dtype are in float32, nearly always.
    size = 0 if end is None else sum(file.bytes for file in end.shards) // _ITEMS.get(str(dtype), 4)
    return size * examples * models <= _AT_ONCE


def find(view: RemovalView, edit: Edit) -> Measurement | None:
    """A stored measurement; None if it has yet to be made."""
    run, examples = view.workspace.run, view.workspace.examples
    path = measurements.path(run, examples, edit)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return None
    # With the time of the file in the key, a measurement that was made again is read again.
    return _stored(*view.key, edit.model_dump_json(), stamp, run)


@st.cache_resource(max_entries=128, show_spinner=False)
def _stored(
    path: str, recorded: str, set_name: str, edit: str, stamp: int, _run: Run
) -> Measurement | None:
    spec = Edit.model_validate_json(edit)
    return measurements.load_measurement(_run, _run.evaluation_set(set_name), spec)


def measure_now(view: RemovalView, edits: Sequence[Edit]) -> list[Measurement]:
    """Measure in this process; the results are stored where possible, and found again."""
    run, examples = view.workspace.run, view.workspace.examples
    with forward_passes.alone():
        try:
            return measurements.measure_edits(run, examples, edits, keep=not settings.read_only())
        except OSError:  # the folder is not writable: the figures are shown all the same
            return measurements.measure_edits(run, examples, edits, keep=False)


def grid(view: RemovalView) -> list[Measurement] | None:
    """Every stage alone at the preview's strengths; None while any of them is missing."""
    edits = measurements.grid(view.estimator, view.settings, view.removable)
    found = [find(view, edit) for edit in edits]
    kept = [one for one in found if one is not None]
    return kept if len(kept) == len(edits) else None


def grid_arguments(view: RemovalView, estimator: str | None = None) -> tuple[str, ...]:
    """The command line that measures the grid."""
    # Settings, such as a budget, belong to the estimator that they were chosen for.
    settings = view.settings if estimator in (None, view.estimator) else {}
    full = Edit(
        estimator=estimator or view.estimator,
        settings=settings,
        strengths=dict.fromkeys(view.removable, 1.0),
    )
    return (*view.arguments(full), "--preview")


@st.cache_resource(max_entries=16, show_spinner=False)
def report_rows(at: Source, set_name: str, by: str | None) -> np.ndarray:
    """(N,) bool, the report part: presets and targeted edits are chosen on the others."""
    table = loaders.examples(at, set_name)
    return ~validation_part(table, [by] if by else [])


@st.cache_resource(max_entries=16, show_spinner=False)
def preview(
    path: str,
    recorded: str,
    set_name: str,
    estimate: str,
    by: str | None,
    held_back: bool,
    _view: RemovalView,
    _grid: list[Measurement],
) -> Preview:
    """What the grid says of strengths in between; computed once per estimate and grouping."""
    table = loaders.examples(_view.workspace.at, set_name)
    return comparison.preview(_grid, table, _view.rows, by)


@dataclass(frozen=True)
class Compared:
    """Models on the examples of a view.

    Attributes:
        answers: Name to answers beside labels and columns; the final model first.
        metrics: Accuracy by group.
        flipped: From the final to the edited model.
    """

    answers: dict[str, pd.DataFrame]
    metrics: GroupMetrics
    flipped: pd.DataFrame

    def rows(self, by: str | None) -> pd.DataFrame:
        """Rows of ``metrics.groups``: all examples as :data:`ALL`, then the groups of ``by``."""
        table = self.metrics.groups
        table = table[table["group"].isna()] if by is None else table
        return table.assign(group=table["group"].fillna(ALL))


def compare(view: RemovalView, models: dict[str, Measurement]) -> Compared:
    """Answers and figures of several models; cached by edits and grouping."""
    named = tuple((name, one.edit.model_dump_json()) for name, one in models.items())
    return _compared(*view.key, view.by, view.held_back, named, view, models)


@st.cache_resource(max_entries=32, show_spinner=False)
def _compared(
    path: str,
    recorded: str,
    set_name: str,
    by: str | None,
    held_back: bool,
    named: tuple[tuple[str, str], ...],
    _view: RemovalView,
    _models: dict[str, Measurement],
) -> Compared:
    at = _view.workspace.at
    table, sharing = loaders.examples(at, set_name), loaders.clusters(at, set_name)
    table = table if sharing is None else sharing.joined(table)
    answers = {name: comparison.answers(one, table, _view.rows) for name, one in _models.items()}
    # More than two where a replay settles the edit; flips are between the first two.
    before, after, *_ = answers.values()
    return Compared(
        answers, comparison.by_groups(answers, by), comparison.changed_answers(before, after)
    )


def asked_group(view: RemovalView) -> str | None:
    """The group of the bar, or else the one that the final model answers worst.

    The latter is judged on the validation part, and is the first where that has none; None where
    there are no groups.
    """
    if view.by is None:
        return None
    if view.workspace.bar.group in view.workspace.groups:
        return view.workspace.bar.group
    worst = _worst_group(*view.key, view.effects.estimator, view.by, view)
    return worst or next(iter(view.workspace.groups), None)


@st.cache_data(max_entries=32, show_spinner=False)
def _worst_group(
    path: str, recorded: str, set_name: str, estimate: str, by: str, _view: RemovalView
) -> str | None:
    rows = _view.effects.first
    # The final model's answers are repeated beside every stage; one stage's rows hold them all.
    rows = rows[rows["stage"] == _view.workspace.stages[0]]
    rows = rows[~report_rows(_view.workspace.at, set_name, by)]
    rows = rows[rows["label"].notna() & rows[by].notna()]
    # As objects: categoricals can be compared only where their categories are the same.
    right = rows["prediction"].astype(object) == rows["label"].astype(object)
    means = right.groupby(rows[by].astype(str)).mean()
    return str(means.idxmin()) if len(means) else None


def judged(view: RemovalView, group: str | None) -> bool:
    """Whether a group has labelled examples in the validation part, on which stages are judged."""
    at, name = view.workspace.at, view.workspace.examples.name
    rows = loaders.examples(at, name)
    if view.by is None or "label" not in rows:
        return False
    own = rows[view.by].astype(object).map(str, na_action="ignore") == group
    return bool((own & rows["label"].notna() & ~report_rows(at, name, view.by)).any())


def worst_stage(view: RemovalView, group: str) -> str | None:
    """The stage to blame most for a group, on the validation part; None if every stage helps."""
    at, name = view.workspace.at, view.workspace.examples.name
    assert view.by is not None, "only groups have a worst stage"
    return comparison.worst_stage(
        view.effects.first,
        ~report_rows(at, name, view.by),
        # An edit changes every behaviour, so none of them may have an uncertain sign.
        [stage for stage in view.removable if signs_known(view.effects.trust.get(stage))],
        loaders.examples(at, name)[view.by],
        group,
    )
