"""The question that *When* and *Which data* share, about examples and a stage, and its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import (
    Question,
    Stored,
    asked_digest,
    contributions_path,
    left_open,
    load_contributions,
    opposite,
)
from stagelens.analyses.contributions.durations import contributions_seconds
from stagelens.contracts import Behaviour
from stagelens.derivatives.curvature_kinds import USUAL, Curvature, by_curvature
from stagelens.estimators.durations import paces
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.reading.browse import Chosen, effect_column
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import settings
from stagelens.wording.numbers import count_text, phrase
from stagelens.wording.signs import gain_text, side
from stagelens.wording.trust_words import FIRST_ORDER, MARKS, samples_sentence, trust_word

from .shown_stage import shown_stage, shown_words

_ABOUT = "asked-about"
ONE, SHOWN = "This example", "Mean of the examples shown"
"""Key of the control that chooses whose behaviour is asked about, and its options."""

_CHOSEN, _CONTROL = "chosen-curvature", "curvature"
"""What is chosen on this visit, and the key of its control, which tabs without it forget."""

_KINDS: dict[Curvature, str] = {
    "exact": "exact (products with the Hessian)",
    "gauss-newton": "Gauss-Newton",
    "empirical-fisher": "empirical Fisher",
    "none": "none (the loss as if linear)",
}

_MOST = 500
"""Most examples that can be named by id, each an argument of the command; groups have no limit."""


@dataclass(frozen=True)
class Asked:
    """A question about contributions.

    Attributes:
        ids: Ids of the examples whose mean behaviour is asked about.
        behaviour: The behaviour.
        stage: The stage whose steps and training data are asked about.
        effect: Its effect on these examples, by the chosen estimator; NaN where it has no number.
        trust: What is known of that effect.
        question: The same examples, as the command line names them.
    """

    ids: tuple[str, ...]
    behaviour: Behaviour
    stage: str
    effect: float
    trust: StageTrust | None
    question: Question

    @property
    def about(self) -> str:
        """The examples, for titles."""
        if len(self.ids) == 1:
            return f"example {self.ids[0]}"
        return f"the mean of {len(self.ids):,} examples"

    @property
    def filters(self) -> Mapping[str, str] | None:
        """For findings: the one example; None, so what the URL says, where there are several."""
        return {"example": self.ids[0]} if len(self.ids) == 1 else None

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the command line that name the examples."""
        groups = [f"--group={column}={value}" for column, value in self.question.groups.items()]
        return (*groups, *(f"--example={name}" for name in self.question.ids))


def choose(workspace: Workspace, effects: Effects, chosen: Chosen, example_id: str) -> Asked:
    """The controls: about this example or the mean of those shown, and in which stage."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        # Not bound to the address: that forgets what is chosen on another tab's copy of a control.
        state.prepare(_ABOUT, SHOWN if state.asked_about() == SHOWN else ONE)
        about = st.segmented_control(
            "Asked about",
            [ONE, SHOWN],
            key=_ABOUT,
            on_change=_ask,
            required=True,
            help=f"The behaviour of this example, or its mean over the "
            f"{count_text(len(chosen), workspace.noun)} that pass the filters.",
        )
        mean = about == SHOWN and len(chosen) > 0
        rows = chosen.rows if mean else chosen.every.frame.iloc[[chosen.every.places[example_id]]]
        columns = [effect_column(stage) for stage in workspace.stages]
        means = dict(zip(workspace.stages, rows[columns].mean().tolist(), strict=True))
    ids = tuple(rows["example_id"])
    stage = workspace.bar.stage
    if stage is None:
        gains = chosen.behaviour.sign * pd.Series(means).dropna()
        stage, why = shown_stage(gains, workspace.stages)
        of = "of this example" if len(ids) == 1 else "on average"
        components.text_block(shown_words(stage, why, chosen.behaviour, of), muted=True)
    question = _question(workspace, chosen, ids) if mean else Question(ids=ids)
    trust = effects.trust.get(stage)
    return Asked(ids, chosen.behaviour, stage, means[stage], trust, question)


def asks_about_shown(chosen: Chosen) -> bool:
    """Whether the open tab answers about the mean of the examples shown, and not about one."""
    # The control of the tabs comes later on the page: on a first visit only the address knows.
    look = st.session_state.get(state.LOOK) or st.query_params.get(state.LOOK)
    asked = look in (state.WHEN, state.DATA) and state.asked_about() == SHOWN
    return asked and len(chosen) > 0


def _ask() -> None:
    state.ask_about(SHOWN if st.session_state[_ABOUT] == SHOWN else None)


def _question(workspace: Workspace, chosen: Chosen, ids: tuple[str, ...]) -> Question:
    """The examples shown, named by their group where the filters ask for nothing else."""
    filters, groups = chosen.filters, {}
    if filters.by in workspace.examples.columns and filters.group is not None:
        groups[filters.by] = filters.group
    if filters.label is not None:
        groups["label"] = filters.label
    question = Question(groups=groups)
    # A search or a strength narrows the group further; then only ids say what is left.
    if asked_digest(question.of(workspace.examples)) == asked_digest(ids):
        return question
    return Question(ids=ids)


def curvature_control() -> None:
    """What stands for second derivatives of the loss, in an expander: the usual one at first."""
    kept = _curvature()
    with st.expander(f"Curvature along the path: {_KINDS[kept]}"):
        state.prepare(_CONTROL, kept)
        st.selectbox(
            "Second derivatives of the loss",
            list(_KINDS),
            key=_CONTROL,
            format_func=lambda kind: _KINDS[kind],
            on_change=_choose_curvature,
            help="A contribution is carried back through all later steps, whose gradients depend "
            "on the weights by the loss's second derivatives. Exact ones predicted replays best of "
            "these wherever it was measured, and took at most 11 % longer than the empirical "
            "Fisher. Each kind has an answer of its own.",
        )


def _curvature() -> Curvature:
    chosen: Curvature = st.session_state.get(_CHOSEN, USUAL)
    return chosen


def _choose_curvature() -> None:
    st.session_state[_CHOSEN] = st.session_state[_CONTROL]


def answer(workspace: Workspace, asked: Asked, by_kind: bool = False) -> Stored | None:
    """The stored answer; without one, None after showing how to get it.

    Args:
        workspace: The run.
        asked: The question.
        by_kind: Whether the tab lets the kind of curvature be chosen; else it is the usual one.
    """
    kind = _curvature() if by_kind else USUAL
    found = _stored(workspace, asked, kind)
    if found is None:
        _offer(workspace, asked, kind, by_kind)
    return found


def known(workspace: Workspace, asked: Asked) -> bool:
    """Whether contributions are stored, or cannot be had: nothing has to be computed first."""
    return _stored(workspace, asked, USUAL) is not None or bool(impossible(workspace, asked))


def _stored(workspace: Workspace, asked: Asked, kind: Curvature) -> Stored | None:
    reach = workspace.stages[: workspace.stages.index(asked.stage) + 1]
    for since in reversed(reach):  # an answer from further back holds this stage too
        path = contributions_path(
            workspace.run, workspace.examples, asked.behaviour.name, asked.ids, since, kind
        )
        if path.exists():
            stamp = path.stat().st_mtime_ns
            found = _load(str(path), stamp, workspace, asked.behaviour.name, asked.ids, since, kind)
            if found is not None:
                return found
    return None


@st.cache_resource(max_entries=32, show_spinner=False)
def _load(
    path: str,
    stamp: int,
    _workspace: Workspace,
    _behaviour: str,
    _ids: Sequence[str],
    _since: str,
    _kind: Curvature,
) -> Stored | None:
    # The path says what was asked. A file that is written again is read again, by its stamp.
    return load_contributions(_workspace.run, _workspace.examples, _behaviour, _ids, _since, _kind)


def _offer(workspace: Workspace, asked: Asked, kind: Curvature, by_kind: bool) -> None:
    why = impossible(workspace, asked)
    if why is not None:
        st.info(components.plain(why), icon=":material/info:")
        return
    arguments = _command(workspace, asked, kind)
    known = paces(workspace.run)
    since = known.stages[workspace.stages.index(asked.stage) :]
    about = "this example" if len(asked.ids) == 1 else f"these {len(asked.ids):,} examples"
    with st.container(border=True):
        if job_progress.job_state(arguments, "Try again"):
            return
        took = job_progress.predicted(known, contributions_seconds(since))
        components.text_block(
            f"How much each training example of {asked.stage}, and each step, helped or hurt the "
            f"{phrase(asked.behaviour)} of {about}: estimated to first order, by one backward "
            f"sweep through the {sum(stage.steps for stage in since):,} recorded steps from the "
            f"final model to the start of {asked.stage}.{took} The result is kept."
        )
        if by_kind:
            curvature_control()
        st.button(
            "Compute the contributions",
            type="primary",
            disabled=settings.read_only(),
            icon=":material/timeline:",
            key="contribute",
            on_click=job_progress.begin,
            args=(arguments, "The sweep for contributions"),
            help=settings.READ_ONLY
            if settings.read_only()
            else "Runs in the background: python -m stagelens contributions.",
        )


def _command(workspace: Workspace, asked: Asked, kind: Curvature) -> tuple[str, ...]:
    return (
        *("contributions", *workspace.at.words, "--set", workspace.examples.name),
        *("--behaviour", asked.behaviour.name, "--since", asked.stage, *asked.options),
        *(() if kind == USUAL else (f"--curvature={kind}",)),
    )


def leaving_out(workspace: Workspace, asked: Asked, found: Stored) -> None:
    """What the answer does not know of leaving training examples out, and a way to it."""
    if why := found.facts.no_rest.get(asked.stage):
        components.text_block(
            "To first order, leaving training examples out is known with losses divided as "
            f"before, not with their mean over the rest: {why}.",
            muted=True,
        )
    if found.complete or settings.read_only() or impossible(workspace, asked) is not None:
        return
    arguments = _command(workspace, asked, found.facts.curvature)
    if job_progress.job_state(arguments, "Try again"):
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        components.text_block(
            "An earlier version stored this; it lacks what predicts leaving training examples out.",
            muted=True,
        )
        st.button(
            "Compute it again",
            icon=":material/timeline:",
            key="contribute-again",
            on_click=job_progress.begin,
            args=(arguments, "The sweep for contributions"),
        )


def impossible(workspace: Workspace, asked: Asked) -> str | None:
    """Why nothing can be computed; None where it can."""
    if (why := no_sweep(workspace, asked.stage)) is not None:
        return why
    if len(asked.question.ids) > _MOST:
        return (
            f"{len(asked.ids):,} examples are shown; ask about a whole group or label, or narrow "
            f"the filters to at most {_MOST} examples."
        )
    return None


def no_sweep(workspace: Workspace, since: str) -> str | None:
    """Why no sweep can go back from the final model to a stage; None where one can."""
    if not workspace.computable:
        return "Nothing can be computed here without the run's task."
    for stage in workspace.run.stages[workspace.stages.index(since) :]:
        if stage.facts.origin == "assembled":
            return (
                "What steps contributed is not known: this run was assembled from checkpoints, and "
                f"no steps of stage {stage.name} were recorded."
            )
        if stage.facts.problem is not None:
            return f"What steps contributed is not known: {stage.facts.problem}"
        if stage.no_data_set:
            return f"What steps contributed is not known: {stage.no_data_set}."
        if not stage.replayable:
            return (
                f"What steps contributed is not known: the batches of stage {stage.name} were not "
                'all kept. Record it with keep_batches="all".'
            )
    return None


def tiles(
    asked: Asked, steps: int, total: float, kind: Curvature = USUAL
) -> list[tuple[str, str, str]]:
    """Name, number on the credit scale, and note: the effect, its steps together, and the rest.

    Args:
        asked: The question.
        steps: How many the stage has.
        total: What they contributed together.
        kind: What stands for second derivatives.
    """
    behaviour, first = asked.behaviour, f"{MARKS[FIRST_ORDER]} {FIRST_ORDER}"
    mark = ""
    if asked.trust is not None:
        word = trust_word(asked.trust, behaviour.name)
        mark = f"{MARKS[word]} {word}, by {asked.trust.estimator}"
    summed = "" if opposite(asked.effect, total) else side(total, behaviour)
    # The rest is a difference of two numbers, and neither credit nor blame.
    return [
        (name, gain_text(value, behaviour), ", ".join(filter(None, notes)))
        for name, value, notes in (
            (f"effect of {asked.stage}", asked.effect, (side(asked.effect, behaviour), mark)),
            (
                f"its {count_text(steps, 'step')} together",
                total,
                (summed, first, f"first order{by_curvature(kind)}"),
            ),
            ("not explained to first order", asked.effect - total, (first, "effect minus steps")),
        )
    ]


def says_nothing(found: Stored, asked: Asked) -> bool:
    """Whether first order points the other way than the stage's effect; said on the page then.

    What it says of single training examples is as wrong as their sum, so none is shown.
    """
    if not opposite(asked.effect, found.linearised(asked.stage)):
        return False
    components.text_block(
        "So no training example is said to have helped or hurt here. To learn what some of them "
        "did, replay the training without them."
    )
    return True


def first_order(found: Stored, asked: Asked) -> None:
    """The stage's effect, the sum of its steps' contributions, and the rest."""
    total = found.linearised(asked.stage)
    show_tiles(tiles(asked, found.facts.steps[asked.stage], total, found.facts.curvature))
    if said := left_open(asked.stage, asked.effect, total):
        st.warning(components.plain(said), icon=":material/warning:")
    if found.facts.on_samples:
        components.text_block(samples_sentence(found.facts.on_samples), muted=True)


def show_tiles(named: Sequence[tuple[str, str, str]]) -> None:
    """Numbers side by side, each with its name above and a note below."""
    cells = "".join(
        f"<div><div style='opacity:.75;font-size:.875rem'>{components.shown(name)}</div>"
        f"<div style='font-size:1.4rem;font-weight:600;white-space:nowrap'>"
        f"{components.shown(number)}</div>"
        f"<div style='opacity:.75;font-size:.8rem'>{components.shown(note)}</div></div>"
        for name, number, note in named
    )
    st.html(
        "<div style='display:grid;grid-template-columns:repeat(auto-fit,minmax(min(8em,100%),1fr));"
        f"gap:.5em 1.5em;overflow-wrap:anywhere'>{cells}</div>"
    )
