"""What to train on next: the examples of a stage that help a target most, asked for and chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from stagelens.analyses.contributions.contribution_table import Question, asked_digest
from stagelens.analyses.selection.durations import selection_seconds
from stagelens.analyses.selection.outcomes import (
    PROOF,
    Outcome,
    Wanted,
    outcome_path,
    stored_outcomes,
    usual_horizons,
)
from stagelens.analyses.selection.sentences import cost
from stagelens.contracts import ACCURACY, Behaviour, is_score
from stagelens.estimators.durations import paces
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress
from stagelens.ui.pieces.pinning import About
from stagelens.ui.reading import replay_loaders
from stagelens.ui.server import settings
from stagelens.wording.numbers import phrase, value_text

from . import chosen_examples
from .contributions import Asked, no_sweep
from .left_out import no_replay

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
_DRAWS = (4, PROOF, 16)


def what_to_train_on_next(
    workspace: Workspace, asked: Asked, compared: bool, columns: Sequence[str] = ()
) -> None:
    """Choose the examples of a stage that help a target most; what replays say of the choice.

    Args:
        workspace: What is open.
        asked: The question of the tab, of which the stage is taken.
        compared: Whether the stage's examples can be told to be nearly the same.
        columns: What they can be grouped by, besides their labels.
    """
    if settings.read_only():
        _stored_alone(workspace, asked.stage)
        return
    _heading(asked.stage)
    kinds = _behaviours(workspace)
    if not kinds:
        components.text_block("Nothing that was measured here can be differentiated.", muted=True)
        return
    wanted = _choose(workspace, asked.stage, kinds, compared, columns)
    examples = workspace.run.evaluation_set(wanted.set_name)
    path = outcome_path(workspace.run, examples, wanted)
    outcome = _stored(workspace, examples, path)
    if outcome is None:
        _offer(workspace, asked, wanted)
    else:
        chosen_examples.shown(workspace, outcome)
    _every(workspace, examples, asked.stage, path)


def _heading(stage: str) -> None:
    st.html(components.heading_html("What to train on next"))
    components.text_block(
        f"Which training examples of {stage} to keep: first order ranks them by how much each "
        "helps a target some steps later (the horizon), and replays show what the choice is worth.",
        muted=True,
    )


def _stored_alone(workspace: Workspace, stage: str) -> None:
    """Where nothing is computed: one of the choices that are stored, the latest at first."""
    examples = workspace.examples
    every = [
        found
        for path in stored_outcomes(workspace.run, examples, stage)
        if (found := _stored(workspace, examples, path)) is not None
    ]
    if not every:
        return
    _heading(stage)
    names = [
        ", ".join(f"{name}: {said}" for name, said in chosen_examples.asked_of(one.facts).items())
        + f", on the {phrase(one.behaviour)}, {one.facts.wanted.draws} draws"
        for one in every
    ]
    number = 0
    if len(every) > 1:
        number = st.selectbox(
            "Choice", range(len(every)), format_func=names.__getitem__, key="next-stored"
        )
    chosen_examples.shown(workspace, every[number])


def _behaviours(workspace: Workspace) -> dict[str, Behaviour]:
    """What has a derivative, the loss first: a margin grows without bound where it is large."""
    effects = workspace.effects
    known = {} if effects is None else effects.behaviours
    own = [k for k in known.values() if k.name != ACCURACY.name and not is_score(k)]
    return {kind.name: kind for kind in sorted(own, key=lambda kind: kind.name != "loss")}


def _choose(
    workspace: Workspace,
    stage: str,
    kinds: dict[str, Behaviour],
    compared: bool,
    columns: Sequence[str],
) -> Wanted:
    """The controls."""
    targets = _targets(workspace)
    horizons = usual_horizons(workspace.run.stage(stage).steps)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        target = st.selectbox(
            "Target",
            list(targets),
            key="next-target",
            bind="query-params",
            width=220,
            help="The evaluation examples to do better on. Half of them rank the training "
            "examples; the other half judges the choice.",
        )
        behaviour = st.selectbox(
            "To improve",
            list(kinds),
            format_func=lambda name: phrase(kinds[name]),
            key="next-behaviour",
            bind="query-params",
            width=190,
        )
        set_name, question, slice_name = targets[target]
        # What was computed last is what a page that is opened again shows, and not an empty offer.
        last = _last(workspace, stage, set_name, question, behaviour, horizons)
        shares = sorted({*_SHARES, last.keep})
        keep = st.selectbox(
            "Keep",
            shares,
            index=shares.index(last.keep),
            format_func=lambda share: f"{100 * share:.0f} %",
            key="next-keep",
            bind="query-params",
            width=100,
        )
        every = sorted({*_DRAWS, last.draws})
        draws = st.selectbox(
            "Draws of the proof",
            every,
            index=every.index(last.draws),
            key="next-draws",
            bind="query-params",
            width=130,
            help="Each draw replays the stage and all later ones on the chosen examples, on as "
            "many random ones of each label, on the worst, and on all, with the same order of "
            "batches.",
        )
        by = ""
        if columns or last.by:
            ways = ["", *dict.fromkeys([*columns, *([last.by] if last.by else [])])]
            by = st.selectbox(
                "Value examples by",
                ways,
                index=ways.index(last.by),
                format_func=lambda column: column or "themselves",
                key="next-by",
                bind="query-params",
                width=170,
                help="By a column, every example counts as the mean of its group: what a single "
                "one is worth is mostly chance where the target is small.",
            )
        distinct = compared and st.toggle(
            "No near duplicates",
            value=last.distinct,
            key="next-distinct",
            bind="query-params",
            help="Of training examples that are nearly the same, keep only the best.",
        )
    return Wanted(
        stage=stage,
        set_name=set_name,
        question=question,
        slice_name=slice_name,
        behaviour=behaviour,
        horizons=horizons,
        keep=keep,
        by=by,
        distinct=distinct,
        draws=draws,
    )


def _last(
    workspace: Workspace,
    stage: str,
    set_name: str,
    question: Question,
    behaviour: str,
    horizons: tuple[int, ...],
) -> Wanted:
    """What was asked last of a stage, a target and a behaviour with a proof; else the usual."""
    usual = Wanted(
        stage=stage,
        set_name=set_name,
        question=question,
        behaviour=behaviour,
        horizons=horizons,
        draws=PROOF,
    )
    examples = workspace.run.evaluation_set(set_name)
    ids = asked_digest(question.of(examples))
    for path, facts in stored_outcomes(workspace.run, examples, stage).items():
        asked, same = facts.wanted, ("behaviour", "horizons", "curvature", "per_label")
        alike = all(getattr(asked, name) == getattr(usual, name) for name in same)
        alike = alike and asked_digest(asked.question.of(examples)) == ids
        if alike and asked.draws and _stored(workspace, examples, path) is not None:
            return asked
    return usual


def _targets(workspace: Workspace) -> dict[str, tuple[str, Question, str]]:
    """Name to the examples, and the slice that they are, if any.

    First the group or slice of the bar, then every set, the bar's first, and last its slices.
    """
    name, found = workspace.examples.name, {}
    slices = {f"slice {one.name}": one for one in workspace.slices}
    by, group = workspace.bar.by, workspace.bar.group
    if group is not None and by in (*workspace.examples.columns, "label"):
        found[f"{group} of {name}"] = name, Question(groups={str(by): group}), ""
    for each in sorted(workspace.run.set_names, key=lambda other: other != name):
        found[f"all of {each}"] = each, Question(), ""
    ordered = sorted(slices.items(), key=lambda each: each[1].column != by)
    of_slices = {said: (name, Question(ids=one.example_ids), one.name) for said, one in ordered}
    if ordered and ordered[0][1].column == by:
        return of_slices | found
    return found | of_slices


def _offer(workspace: Workspace, asked: Asked, wanted: Wanted) -> None:
    """What it costs, and the button; or why it cannot be done."""
    why = no_sweep(workspace, asked.stage) or no_replay(workspace, asked.stage)
    if len(wanted.question.of(workspace.run.evaluation_set(wanted.set_name))) < 2:
        why = why or "A single example cannot both choose and judge: take a larger target."
    if why:
        st.info(components.plain(why), icon=":material/info:")
        return
    arguments = (
        *("select", *workspace.at.words, "--stage", wanted.stage, "--target", wanted.set_name),
        *(f"--group={column}={value}" for column, value in wanted.question.groups.items()),
        *(("--slice", wanted.slice_name) if wanted.slice_name else ()),
        *("--behaviour", wanted.behaviour, "--keep", f"{wanted.keep:g}"),
        *(("--by", wanted.by) if wanted.by else ()),
        *("--prove", str(wanted.draws), *(["--distinct"] if wanted.distinct else [])),
    )
    with st.container(border=True):
        if job_progress.job_state(arguments, "Try again"):
            return
        known = paces(workspace.run)
        later = known.stages[workspace.stages.index(wanted.stage) :]
        took = job_progress.predicted(known, selection_seconds(wanted, later))
        components.text_block(
            f"{cost(workspace.run, wanted)}{took} Each replay is kept, so work that was cancelled "
            "goes on where it stopped."
        )
        st.button(
            "Choose and prove by replay",
            disabled=settings.read_only(),
            icon=":material/checklist:",
            key="train-next",
            on_click=job_progress.begin,
            args=(arguments, "Choosing what to train on next"),
            help=settings.READ_ONLY
            if settings.read_only()
            else "Runs in the background: python -m stagelens select.",
        )


def _stored(workspace: Workspace, examples: EvaluationSet, path: Path) -> Outcome | None:
    return replay_loaders.outcome(workspace.run, examples, path)


def _every(workspace: Workspace, examples: EvaluationSet, stage: str, own: Path) -> None:
    """What else was chosen of this stage for this set."""
    every = stored_outcomes(workspace.run, examples, stage)
    rows = []
    for path, facts in every.items():
        found = None if path == own else _stored(workspace, examples, path)
        if found is None:
            continue
        kind = found.behaviour
        measured = {part: mean.mean for part, _, mean in found.measured(kind.name)}
        rows.append(
            {
                **chosen_examples.asked_of(facts),
                "kept": f"{len(found.kept):,} of {facts.of:,}",
                "horizon": facts.ranking.horizon,
                "on": phrase(kind),
                **{
                    part: value_text(measured[part], kind) if part in measured else "not replayed"
                    for part in ("all", "chosen", "random", "worst")
                },
            }
        )
    if rows:
        with st.expander(f"Chosen before ({len(rows)})"):
            said = f"Choices among the training examples of {stage}, by replay, the latest first."
            about = About(behaviour="", estimator=REPLAY, trust=())
            components.table(pd.DataFrame(rows).fillna(""), "train-next-before", said, about)
