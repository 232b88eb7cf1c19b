"""What every page looks at: an open run, one of its sets, an estimator, and the groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from .. import summary
from ..contracts import StageLensError
from ..runs.evaluation_sets import EvaluationSet
from ..runs.run import Run
from . import components, loaders, progressive
from .loaders import Effects, Source

_ESTIMATOR_HELP = (
    "An estimator is a way to obtain a counterfactual: the model as it would be had a stage's "
    "updates not happened, all later stages run as they were. Replay runs the recorded steps "
    "again and is the ground truth; coarse-replay does so cheaply, within a budget; task-vector "
    "is free and approximate. The page Trust holds them against each other."
)


@dataclass(frozen=True)
class Workspace:
    """An open run and what of it is looked at.

    Attributes:
        at: The run folder as it is now.
        run: The run.
        examples: The chosen evaluation set.
        effects: The chosen estimator's table; None where nothing has been measured yet.
        by: The column that groups come from; None where there is none.
        groups: Its values, as text, sorted.
    """

    at: Source
    run: Run
    examples: EvaluationSet
    effects: Effects | None
    by: str | None
    groups: tuple[str, ...]

    @property
    def stages(self) -> list[str]:
        """Stage names in training order."""
        return [stage.name for stage in self.run.stages]

    @property
    def noun(self) -> str:
        """What an example is called."""
        return self.examples.kind


def open_workspace(title: str, effects: bool = True) -> Workspace | None:
    """Draw a page's frame and open what it looks at; None after showing what to do instead.

    Args:
        title: Of the page.
        effects: Whether the page shows the effects of one estimate and of groups, so that these
            are chosen in the sidebar, and better ones are computed in the background.
    """
    components.start_page(title)
    path = components.current_run()
    if path is None:
        return None
    try:
        return _open(path, effects)
    except StageLensError as error:
        components.error_state(str(error))
        return None


def _open(path: Path, with_effects: bool) -> Workspace | None:
    at = loaders.source(path)
    try:
        run = loaders.run(at)
    except StageLensError:
        components.run_in_sidebar(path.name)
        raise
    components.run_in_sidebar(run.name)
    for problem in run.problems:
        st.warning(components.plain(problem), icon=":material/warning:")
    if not run.stages:
        components.error_state("No stage of this run is finished yet, so there is no final model.")
        return None
    names = sorted(run.set_names, key=lambda name: (name != "test", name))
    if not names:
        components.error_state(
            "This run has no evaluation set, so there is nothing to measure its stages on. Add "
            f"one with: stagelens add-set {path} FILE --name test"
        )
        return None
    with st.sidebar:
        chosen = st.selectbox(
            "Evaluation set",
            names,
            key="set",
            bind="query-params",
            help="The examples that behaviours are measured on.",
        )
        examples = loaders.evaluation_set(at, chosen)
        if not with_effects:
            return Workspace(at, run, examples, None, None, ())
        effects = _choose_estimator(at, chosen)
        by, groups = _choose_groups(at, chosen, examples)
        if effects is not None:
            progressive.better(progressive.Ladder.of(at, chosen))
    return Workspace(at, run, examples, effects, by, groups)


def _choose_estimator(at: Source, set_name: str) -> Effects | None:
    available = loaders.available(at, set_name)
    if not available:
        return None
    progressive.follow(at, set_name, available)
    name = st.selectbox(
        "Estimator", available, key="estimator", bind="query-params", help=_ESTIMATOR_HELP
    )
    progressive.offer_best(available, name)
    return loaders.effects(at, set_name, name)


def _choose_groups(
    at: Source, set_name: str, examples: EvaluationSet
) -> tuple[str | None, tuple[str, ...]]:
    table = loaders.examples(at, set_name)
    columns = summary.group_columns(table, (*examples.columns, "label"))
    if not columns:
        return None, ()
    by = st.selectbox(
        "Groups by",
        columns,
        key="by",
        bind="query-params",
        help="Examples that share a value of this column form a group.",
    )
    return by, tuple(sorted(table[by].dropna().astype(str).unique()))


def nothing_measured(workspace: Workspace) -> None:
    """In the place of numbers where there are none yet: the free ones start by themselves."""
    st.info(
        "No stage effect has been measured on this set yet. The task vector is free and takes "
        "seconds; better numbers follow by themselves.",
        icon=":material/hourglass_empty:",
    )
    progressive.first(progressive.Ladder.of(workspace.at, workspace.examples.name))
