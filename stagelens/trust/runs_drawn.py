"""Several recorded runs of one recipe taken as its draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from stagelens.contracts import Progress, ProgressCallback, Refused, RunError
from stagelens.effects.computing import attribute
from stagelens.effects.draws import COLUMNS, DrawnEffects
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import with_accuracy
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.replaying.draws import passes_over_examples
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .drawing import left_out
from .draws import DrawFacts, draws_path

_MUCH = 1.25
"""Runs of one recipe differ less in how often they saw their examples: by rows drawn at random, or
by when training was stopped."""


def runs_as_draws(
    run: Run,
    set_name: str,
    others: Sequence[Run],
    progress: ProgressCallback,
    stages: Sequence[str] | None = None,
) -> DrawnEffects:
    """Several recorded runs of one recipe as draws: real seeds; stored with the first run.

    Args:
        run: The run, itself a draw.
        set_name: One of its sets; the others have it too, whatever they call it.
        others: The further runs.
        progress: Called for replays that are not stored yet.
        stages: Names of those to leave out; None for all.

    Raises:
        RunError: A run has other stages, saw its examples another number of times, lacks the set,
            or is given twice.
        Refused: The effects of one cannot be computed by replay.
    """
    examples = run.evaluation_set(set_name)
    chosen = [stage.name for stage in left_out(run, stages, "runs")]
    every, seen = [run, *others], set[str]()
    sets = []
    for each in every:
        sets.append(set_of_repeat(each, run, examples))
        if each.digest in seen:
            raise RunError(
                f"{each.path} is the same recording as another of the runs; give it once"
            )
        seen.add(each.digest)
    told = _told_of_passes(every)
    overall, blocks = Progress(progress), []
    replays: dict[str, StageTrust] = {}
    for number, (each, name) in enumerate(zip(every, sets, strict=True)):
        part = overall.piece(number, len(every))
        result = attribute(each, name, REPLAY, chosen, part)
        refused = [trust for trust in result.facts.stages if trust.trust == "refused"]
        if refused:
            raise Refused(f"{each.path}, stage {refused[0].stage!r}: {refused[0].reason}")
        for trust in result.facts.stages:
            replays[trust.stage] = _less_known(replays.get(trust.stage), trust)
        table = with_accuracy(result.table).assign(draw=number)
        blocks.append(table[list(COLUMNS)].astype({"behaviour": str, "stage": str}))
    facts = DrawFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        kind="runs",
        behaviours=[BehaviourFacts.of(each) for each in run.task.behaviour_kinds],
        runs=[str(each.path.name) for each in every],
        told=told,
        replays=replays,
    )
    table = pd.concat(blocks, ignore_index=True)
    fact_tables.write(draws_path(run, examples.digest, "runs"), table, facts)
    return DrawnEffects(table, "runs")


def _told_of_passes(every: Sequence[Run]) -> str:
    """How often runs saw the examples of their stages, where that differs a little.

    Raises:
        RunError: A run saw those of a stage so much more or less often than the first run that its
            recipe is another.
    """
    first, *others = every
    told = []
    for stage in first.stages:
        own = passes_over_examples(first.task, stage)
        for other in others:
            theirs = passes_over_examples(other.task, other.stage(stage.name))
            # Where the examples of a batch cannot be told, nothing can be compared.
            if own is None or theirs is None or round(own, 1) == round(theirs, 1):
                continue
            seen = (
                f"in stage {stage.name!r} each example was seen {theirs:.1f} times on average, and "
                f"{own:.1f} times in {first.path.name}"
            )
            if max(own, theirs) > _MUCH * min(own, theirs):
                raise RunError(
                    f"{other.path} is no run of this recipe: {seen}. Give runs that trained for "
                    "equally long"
                )
            told.append(f" In {other.path.name}, {seen}.")
    return "".join(told)


def _less_known(one: StageTrust | None, other: StageTrust) -> StageTrust:
    """The replay of which less is known; the first where both are known alike."""

    def error(trust: StageTrust) -> float:
        unknown = math.inf if trust.expected_error is None else trust.expected_error
        return -1.0 if trust.trust == "exact" else unknown

    return other if one is None or error(other) > error(one) else one


def set_of_repeat(other: Run, run: Run, examples: EvaluationSet) -> str:
    """The set of another run that has the content of this one.

    Raises:
        RunError: The run is none of this recipe, or lacks the set.
    """
    names, own = [s.name for s in other.stages], [s.name for s in run.stages]
    if names != own:
        raise RunError(
            f"{other.path} is no run of this recipe: its stages are {', '.join(names)}, and not "
            f"{', '.join(own)}"
        )
    for stage, known in zip(other.stages, run.stages, strict=True):
        theirs, ours = _recipe(stage), _recipe(known)
        for what in ours:
            if theirs.get(what) != ours[what]:
                raise RunError(
                    f"{other.path} is no run of this recipe: in stage {stage.name!r} {what} is "
                    f"{theirs.get(what)}, and not {ours[what]}"
                )
    for name in other.set_names:
        if other.evaluation_set(name).digest == examples.digest:
            return name
    raise RunError(
        f"{other.path} has no evaluation set with the content of set {examples.name!r}; add it "
        f"with: stagelens add-set {other.path} FILE --name {examples.name}"
    )


def _recipe(stage: Stage) -> dict[str, Any]:
    """What runs of one recipe have in common in a stage: the settings of its training."""
    facts = stage.facts
    found: dict[str, Any] = {
        "the clipping": facts.clip_norm,
        "accumulation": facts.accumulation,
        "the number of processes": facts.processes,
    }
    if facts.objective is not None:
        found["the objective"] = facts.objective.name
    if facts.optimizer is None:
        return found
    found["the optimiser"] = facts.optimizer.name
    for number, group in enumerate(facts.optimizer.groups):
        where = "" if len(facts.optimizer.groups) == 1 else f" of group {number + 1}"
        # What a carried optimiser begins with is what the run came to.
        known = group.hyperparameters if facts.boundary.optimizer == "new" else {}
        found |= {f"{name}{where}": value for name, value in known.items()}
    return found
