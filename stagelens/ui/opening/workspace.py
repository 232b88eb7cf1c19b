"""What every page looks at: an open run, one of its sets, an estimator, and the groups."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import streamlit as st

from stagelens.analyses.slices.saved import Slice
from stagelens.charts.style import short
from stagelens.contracts import StageLensError, TaskTraits
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.tasks import traits, why_missing
from stagelens.ui.pieces import components, pinning, state
from stagelens.ui.pieces.pinning import Scene
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text

from . import progressive, start

_ESTIMATOR_HELP = (
    "An estimator is a way to obtain a counterfactual: the model as it would be had a stage's "
    "updates not happened, all later stages run as they were. Replay runs the recorded steps "
    "again and is the ground truth; coarse-replay does so cheaply, within a budget; task-vector "
    "is free and approximate. The Trust page compares them. A stage that the chosen one has not "
    "come to is shown by the best of the others."
)

_BY_OUTCOME = (
    ":material/filter_alt: This slice was chosen by effects or answers: what sets it apart there "
    "follows from the choice, and is not a finding."
)

_NO_SUCH_SET = state.session_key("no-such-set")
"""The set that a link named but the run lacks, until another one is chosen."""


@dataclass(frozen=True)
class Workspace:
    """An open run, and what is looked at in it.

    Attributes:
        at: The run folder as it is now.
        run: The run.
        examples: The chosen evaluation set.
        effects: The chosen estimator's table; None where nothing has been measured yet.
        by: The column that groups come from, also a slice's; None where there are no groups.
        groups: Its values, as text, sorted.
        computable: Whether models of the run can be built here, so that numbers can be computed.
    """

    at: Source
    run: Run
    examples: EvaluationSet
    effects: Effects | None
    by: str | None
    groups: tuple[str, ...]
    computable: bool = True

    @property
    def stages(self) -> list[str]:
        """Stage names in training order."""
        return [stage.name for stage in self.run.stages]

    @property
    def noun(self) -> str:
        """What an example is called."""
        return self.examples.kind

    @cached_property
    def labelled(self) -> bool:
        """Whether any example of the set has a label."""
        return loaders.labelled(self.at, self.examples.name)

    @property
    def slices(self) -> list[Slice]:
        """The saved slices of the set."""
        return loaders.slices(self.at, self.examples.name)[0]

    def pick_group(self, help: str) -> tuple[str | None, str | None]:
        """A control for one group or saved slice: its column and its value; None for all."""
        of_slices = {one.column: one.name for one in self.slices}
        # No two options may be the same: a group takes precedence over a slice of its name.
        options = [*self.groups, *(name for name in of_slices if name not in self.groups)]
        if not options:
            return None, None
        # A column called group would make it "Group of group", and a slice is no column of the set.
        column = self.by is not None and self.by not in ("group", *of_slices)
        picked = st.selectbox(
            f"Group of {self.by}" if column else "Group or slice" if of_slices else "Group",
            options,
            index=None,
            placeholder="All groups",
            key="group",
            bind="query-params",
            help=help,
        )
        if picked is None or picked in self.groups:
            return self.by, picked
        if self.chosen_by_outcome(picked):
            st.caption(_BY_OUTCOME)
        return picked, of_slices[picked]

    def chosen_by_outcome(self, column: str | None) -> bool:
        """Whether a column stands for a slice that was chosen by what is measured."""
        return any(one.column == column and one.by_outcome for one in self.slices)

    @property
    def traits(self) -> TaskTraits | None:
        """What is known of the run's task; None where it does not come with StageLens."""
        return traits(self.run.file.task.name)

    @property
    def continues_text(self) -> bool:
        """Whether an answer is the most probable next token, which is neither right nor wrong."""
        return self.traits is not None and self.traits.continues_text


def open_workspace(title: str, effects: bool = True) -> Workspace | None:
    """Draw a page's frame and open what it looks at; None after showing what to do instead.

    Args:
        title: Of the page.
        effects: Whether the page shows the effects of one estimate and of groups, so that these
            are chosen in the sidebar, and better ones are computed in the background.
    """
    components.start_page(title)
    path = start.current_run()
    if path is None:
        return None
    try:
        workspace = _open(path, effects)
    except StageLensError as error:
        components.error_state(str(error))
        return None
    if workspace is not None:
        shown = workspace.effects
        estimate = None if shown is None else shown.estimator
        name = workspace.examples.name
        pinning.enter(Scene(title, workspace.at, name, workspace.noun, estimate))
    return workspace


def _open(path: Path, with_effects: bool) -> Workspace | None:
    at = loaders.source(path)
    try:
        run = loaders.run(at)
    except StageLensError:
        # A run that cannot be read still needs the button that leads to another one.
        components.run_in_sidebar(path.name)
        raise
    components.run_in_sidebar(run.name)
    for problem in run.problems:
        st.warning(components.plain(problem), icon=":material/warning:")
    if not run.stages:
        components.error_state(_no_stage(run))
        return None
    # The first is shown until another is chosen: a set called test is what people look for.
    names = sorted(run.set_names, key=lambda name: (name != "test", name))
    if not names:
        components.error_state(
            "This run has no evaluation set, so there is nothing to measure its stages on. Add "
            f"one with: stagelens add-set {path} FILE --name test"
        )
        return None
    buildable = _buildable(run, names[0])
    with st.sidebar:
        chosen = _choose_set(names)
        examples = loaders.evaluation_set(at, chosen)
        _show_left_out(examples)
        computable = buildable and _fits(run, examples)
        if not with_effects:
            return Workspace(at, run, examples, None, None, (), computable)
        effects = _choose_estimator(at, chosen)
        by, groups = _choose_groups(at, chosen)
        if effects is not None and computable:
            progressive.better(progressive.Computable.of(at, chosen))
    return Workspace(at, run, examples, effects, by, groups, computable)


def _no_stage(run: Run) -> str:
    """Why there is no final model, and what to do."""
    if run.unfinished:
        name = run.unfinished[0].name
        return (
            f"The first stage, {name}, is not finished, so there is no final model to look at yet. "
            "If it is still being recorded, come back when it is done; if recording was stopped, "
            "continue with stagelens.Recorder(path, resume=True)."
        )
    return (
        "Nothing has been recorded into this run yet. Record its stages with stagelens.Recorder, "
        "or open another run."
    )


def _fits(run: Run, examples: EvaluationSet) -> bool:
    """Whether the run's models take the inputs of a set; where not, says what to do."""
    known = traits(run.file.task.name)
    if known is None or known.input_kind == examples.kind:
        return True
    st.warning(
        components.plain(
            f"Set {examples.name} holds {examples.kind}s, but the models of this run take "
            f"{known.input_kind}s: nothing new can be computed on it. Choose another set."
        ),
        icon=":material/extension_off:",
    )
    return False


def _buildable(run: Run, set_name: str) -> bool:
    """Whether models of the run can be built here; where not, says what to do."""
    task = run.file.task
    why = why_missing(task.name, task.config)
    if why is None:
        return True
    st.warning(
        components.plain(
            f"What has been computed for this run is shown, but nothing new can be computed here: "
            f"its task {why}. Install the package that registers the task and start the dashboard "
            "again; or compute on the command line, with the task given:"
        ),
        icon=":material/extension_off:",
    )
    command = f"stagelens attribute {shlex.quote(str(run.path))} --set {shlex.quote(set_name)}"
    st.code(f"{command} --task package.module:Class", language=None, wrap_lines=True)
    return False


def _show_left_out(examples: EvaluationSet) -> None:
    """What the file of a set held beside it, such as columns that could not be kept."""
    if left_out := examples.facts.left_out:
        with st.expander("Left out when this set was added", icon=":material/filter_alt_off:"):
            for each in left_out:
                components.text_block(each, muted=True)


def _choose_set(names: Sequence[str]) -> str:
    """The evaluation set; says so where a link names one that is not there."""

    def forget() -> None:
        st.session_state.pop(_NO_SUCH_SET, None)

    # Kept beyond this rerun, because Streamlit takes values without an option out of the URL.
    asked = st.query_params.get("set")
    if asked is not None and asked not in names:
        st.session_state[_NO_SUCH_SET] = asked
    chosen = st.selectbox(
        "Evaluation set",
        names,
        key="set",
        bind="query-params",
        on_change=forget,
        help="The examples that behaviours are measured on.",
    )
    if (missing := st.session_state.get(_NO_SUCH_SET)) is not None:
        st.warning(
            components.plain(
                f"The link names the set {short(missing, 60)}, which this run does not have; "
                f"{chosen} is shown instead."
            ),
            icon=":material/link_off:",
        )
    return chosen


def _choose_estimator(at: Source, set_name: str) -> Effects | None:
    available = loaders.available(at, set_name)
    if not available:
        return None
    # First, because the state of a control can be set only before it is drawn.
    progressive.follow(at, set_name, available)
    name = st.selectbox(
        "Estimator", available, key="estimator", bind="query-params", help=_ESTIMATOR_HELP
    )
    progressive.offer_best(available, name)
    effects = loaders.effects(at, set_name, name)
    if effects is not None:
        others = {source for source in effects.sources.values() if source != name}
        if others:
            own = sum(source == name for source in effects.sources.values())
            count = count_text(len(effects.sources), "stage")
            st.caption(
                components.plain(
                    f"{name}: {own} of {count}; the others by {listed(sorted(others))}."
                )
            )
    return effects


def _choose_groups(at: Source, set_name: str) -> tuple[str | None, tuple[str, ...]]:
    slices, problems = loaders.slices(at, set_name)
    for problem in problems:
        st.warning(components.plain(problem), icon=":material/warning:")
    groups = loaders.groups(at, set_name)
    if not groups:
        return None, ()
    by = st.selectbox(
        "Groups by",
        list(groups),
        key="by",
        bind="query-params",
        help="Examples that share a value of this column form a group. A saved slice divides the "
        "set in two: its examples, and the others.",
    )
    if any(one.column == by and one.by_outcome for one in slices):
        st.caption(_BY_OUTCOME)
    return by, groups[by]


def nothing_measured(workspace: Workspace) -> None:
    """Stands in for numbers that are not there yet: the free ones start on their own."""
    if not workspace.computable:
        st.info("No stage effect has been measured on this set yet.", icon=":material/info:")
        return
    st.info(
        "No stage effect has been measured on this set yet. The task vector is free and takes "
        "seconds; exact numbers follow, stage by stage.",
        icon=":material/hourglass_empty:",
    )
    progressive.first(progressive.Computable.of(workspace.at, workspace.examples.name))
