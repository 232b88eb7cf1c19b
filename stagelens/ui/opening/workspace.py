"""What every page looks at: an open run, and what is chosen in the bar on top of the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import streamlit as st

from stagelens.analyses.slices.saved import Slice
from stagelens.contracts import ACCURACY, SCORE, Behaviour, StageLensError, TaskTraits, is_score
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.tasks import traits, why_missing
from stagelens.ui.pieces import components, pinning, state
from stagelens.ui.pieces.pinning import Scene
from stagelens.ui.reading import loaders, scored
from stagelens.ui.reading.loaders import Effects, Source
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text

from . import bar, data_sets, progressive, start
from .bar import Bar

_BY_OUTCOME = (
    ":material/filter_alt: This slice was chosen by effects or answers: what sets it apart there "
    "follows from the choice, and is not a finding."
)

_NOTHING: Mapping[str, str] = MappingProxyType({})


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
        bar: What is chosen on top of the page. Where ``bar.group`` is a saved slice, ``bar.by`` is
            the slice's column, and another one than ``by``.
        computable: Whether models of the run can be built here, so that numbers can be computed.
    """

    at: Source
    run: Run
    examples: EvaluationSet
    effects: Effects | None
    by: str | None
    groups: tuple[str, ...]
    bar: Bar
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

    def of_one(self, effects: Effects) -> Behaviour:
        """The behaviour that numbers of single examples are about.

        It is the chosen one, and the margin in the place of accuracy, which is no more than right
        or wrong for one example.
        """
        known = [each for name, each in effects.behaviours.items() if name != ACCURACY.name]
        if self.bar.behaviour.name in {each.name for each in known}:
            return effects.behaviours[self.bar.behaviour.name]
        return next((each for each in known if each.name == "margin"), known[0])

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


def open_workspace(
    title: str,
    effects: bool = True,
    unused: Mapping[str, str] | None = _NOTHING,
    scores: bool = False,
) -> Workspace | None:
    """Draw a page's frame and open what it looks at; None after showing what to do instead.

    Args:
        title: Of the page.
        effects: Whether the page shows the effects of one estimate, so that better ones are
            computed in the background.
        unused: Control of the bar to the reason why the page does not look at it; None where it
            looks at none of them but the set.
        scores: Whether the page shows scores of answers too, as behaviours of the bar.
    """
    components.start_page(title)
    path = start.current_run()
    if path is None:
        return None
    try:
        workspace = _open(path, title, effects, unused, scores)
    except StageLensError as error:
        components.error_state(str(error))
        return None
    if workspace is not None:
        shown = workspace.effects
        estimate = None if shown is None else shown.estimator
        name = workspace.examples.name
        pinning.enter(Scene(title, workspace.at, name, workspace.noun, estimate))
    return workspace


def _open(
    path: Path, title: str, with_effects: bool, unused: Mapping[str, str] | None, with_scores: bool
) -> Workspace | None:
    at = loaders.source(path)
    try:
        ends = loaders.ends(at)
        asked = state.chosen(bar.LEAF)
        if len(ends) > 1:
            at = replace(at, leaf=asked if asked in ends else ends[0])
        run = loaders.run(at)
    except StageLensError:
        # A run that cannot be read still needs the button that leads to another one.
        components.run_in_sidebar(path.name)
        raise
    components.run_in_sidebar(run.name)
    # The first is shown until another is chosen: a set called test is what people look for.
    names = sorted(run.set_names, key=lambda name: (name != "test", name))
    if not run.stages or not names:
        _problems(run)
        components.error_state(_no_stage(run) if not run.stages else _no_set(path))
        return None
    with bar.top(run.name if title == bar.OVERVIEW else title, unused) as row:
        if len(ends) > 1 or asked:
            row.place(*[bar.LEAF][: len(ends) > 1])
            row.pick(bar.LEAF, ends, "This run has no leaf {asked}")
        examples = _choose_set(at, row, names)
        row.facts = _facts(run, examples, title)
        chosen, effects, by, groups = _fill(at, run, examples, row, with_effects, with_scores)
    _problems(run)
    computable = _buildable(at, run, names[0]) and _fits(run, examples)
    workspace = Workspace(at, run, examples, effects, by, groups, chosen, computable)
    if any(workspace.chosen_by_outcome(each) for each in {by, chosen.by}):
        st.caption(_BY_OUTCOME)
    with st.sidebar:
        _show_left_out(examples)
        if computable:
            data_sets.ask(at, run)
        if effects is not None:
            _sources(at, examples.name, effects)
            if computable:
                progressive.better(progressive.Computable.of(at, examples.name))
    return workspace


def _problems(run: Run) -> None:
    for problem in run.problems:
        st.warning(components.plain(problem), icon=":material/warning:")


def _no_set(path: Path) -> str:
    return (
        "This run has no evaluation set, so there is nothing to measure its stages on. Add "
        f"one with: stagelens add-set {path} FILE --name test"
    )


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


def _buildable(at: Source, run: Run, set_name: str) -> bool:
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
    words = ("stagelens", "attribute", *at.words, "--set", set_name)
    st.code(f"{shlex.join(words)} --task package.module:Class", language=None, wrap_lines=True)
    return False


def _show_left_out(examples: EvaluationSet) -> None:
    """What the file of a set held beside it, such as columns that could not be kept."""
    if left_out := examples.facts.left_out:
        with st.expander("Left out when this set was added", icon=":material/filter_alt_off:"):
            for each in left_out:
                components.text_block(each, muted=True)


def _facts(run: Run, examples: EvaluationSet, title: str) -> str:
    """What the page looks at, in a line."""
    facts = [f"set {examples.name}: {count_text(examples.count, examples.kind)}"]
    if title == bar.OVERVIEW:
        steps = sum(stage.updates for stage in run.stages)
        facts = [count_text(len(run.stages), "stage"), count_text(steps, "step"), *facts]
    said = " · ".join(facts)
    # A description may end with a full stop of its own.
    return f"{said}. {examples.description}.".replace("..", ".") if examples.description else said


def _choose_set(at: Source, row: bar.Row, names: Sequence[str]) -> EvaluationSet:
    """The evaluation set, which decides what else the bar holds."""
    if len(names) > 1 or state.chosen(bar.SET):
        row.place(bar.SET)
        name = row.pick(bar.SET, names, "The link names the set {asked}, which this run does not "
                        "have")  # fmt: skip
    else:
        name = names[0]
    return loaders.evaluation_set(at, name or names[0])


def _fill(
    at: Source,
    run: Run,
    examples: EvaluationSet,
    row: bar.Row,
    with_effects: bool,
    with_scores: bool,
) -> tuple[Bar, Effects | None, str | None, tuple[str, ...]]:
    """The other controls: what is chosen, the estimator's effects, the groups and their column."""
    name = examples.name
    columns = loaders.groups(at, name)
    slices, problems = loaders.slices(at, name)
    several = (bar.BY,) if len(columns) > 1 or state.chosen(bar.BY) else ()
    row.place(bar.MEASURE, *several, bar.GROUP, bar.STAGE, bar.ESTIMATOR)
    behaviours, effects = _choose_estimator(at, name, row, with_effects, with_scores)
    if not with_scores:
        behaviours = {each: kind for each, kind in behaviours.items() if not is_score(kind)}
    unknown = not with_scores and (state.chosen(bar.MEASURE) or "").startswith(SCORE)
    measure = row.pick(
        bar.MEASURE,
        list(behaviours),
        "This page shows no scores, so not {asked}"
        if unknown
        else f"Set {name} has no behaviour {{asked}}",
        help=bar.behaviours_help(behaviours),
    )
    by = next(iter(columns), None)
    if several:
        by = row.pick(bar.BY, list(columns), f"Set {name} has no groups by {{asked}}")
    groups = columns[by] if by is not None else ()
    of_slices = {one.column: one.name for one in slices}
    # No two options may be the same: a group takes precedence over a slice of its name.
    options = [*groups, *(each for each in of_slices if each not in groups)]
    missing = f"Set {name} has no group {{asked}}" + (f" by {by}" if several else "")
    group = row.pick(bar.GROUP, options, missing, none="Any group" if options else "No groups")
    stage = row.pick(
        bar.STAGE,
        [each.name for each in run.stages],
        "This run has no stage {asked}",
        none="Any stage",
    )
    for problem in problems:
        st.warning(components.plain(problem), icon=":material/warning:")
    of = by
    if group is not None and group not in groups:
        of, group = group, of_slices[group]
    behaviour = ACCURACY if measure is None else behaviours[measure]
    effects = None if effects is None or measure is None else effects.about(measure)
    return Bar(behaviour, of, group, stage), effects, by, groups


def _choose_estimator(
    at: Source, set_name: str, row: bar.Row, with_effects: bool, with_scores: bool
) -> tuple[Mapping[str, Behaviour], Effects | None]:
    """The behaviours that are measured, and the effects by the chosen estimator."""
    available = loaders.available(at, set_name)
    if available and with_effects:
        # First, because the state of a control can be set only before it is drawn.
        progressive.follow(at, set_name, available)
    if not available and with_scores:
        available = scored.estimates(at, set_name)
    name = row.pick(
        bar.ESTIMATOR, available, f"Nothing is stored for set {set_name} by the estimator {{asked}}"
    )
    if name is None:
        return {}, None
    if with_effects:
        effects = loaders.effects(at, set_name, name)
        return {} if effects is None else effects.behaviours, effects
    facts = loaders.facts(at, set_name, name)
    known = {} if facts is None else {each.name: each.behaviour() for each in facts.behaviours}
    if loaders.labelled(at, set_name):
        known = {ACCURACY.name: ACCURACY, **known}
    if with_scores:
        known |= {each: one.behaviour for each, one in scored.scores(at, set_name).items()}
    return known, None


def _sources(at: Source, set_name: str, effects: Effects) -> None:
    """Where the effects are from, and the way to better ones."""
    name = effects.estimator
    if available := loaders.available(at, set_name):
        progressive.offer_best(available, name)
    others = {source for source in effects.sources.values() if source != name}
    if others:
        own = sum(source == name for source in effects.sources.values())
        count = count_text(len(effects.sources), "stage")
        st.caption(
            components.plain(f"{name}: {own} of {count}; the others by {listed(sorted(others))}.")
        )


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
