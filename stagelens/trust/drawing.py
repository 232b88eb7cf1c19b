"""Draws of a run's recipe, trained and measured; and several recorded runs taken as draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stagelens.compute.helpers import Item
from stagelens.contracts import ACCURACY, Progress, ProgressCallback, Refused, RunError
from stagelens.effects.computing import attribute
from stagelens.effects.draws import COLUMNS, DrawnEffects, Kind, draws_for_width
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import right_answers, with_accuracy
from stagelens.estimators.durations import paces
from stagelens.estimators.held_fixed import held_fixed
from stagelens.estimators.protocol import METHOD
from stagelens.estimators.replay_check import check_given
from stagelens.estimators.sharing_out import share_pieces
from stagelens.estimators.stage_trust import REPLAY, StageTrust
from stagelens.measuring.models import BATCH_SIZE, Measured, empty_model, measure
from stagelens.measuring.partial_results import Shards
from stagelens.replaying.draw_plan import Draw, passes_needed, pool_size
from stagelens.replaying.draws import check_drawable, drawn_models, not_drawn, times_seen
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .draws import VERSION, DrawFacts, draws_path, load

PILOT = 8
"""Draws that settle how many a width needs, by default."""


def measure_draws(
    run: Run,
    set_name: str,
    number: int,
    progress: ProgressCallback,
    stages: Sequence[str] | None = None,
    kind: Kind = "recipe",
    pilot: int | None = None,
) -> DrawnEffects:
    """Train draws with and without stages, and measure the effects; stored draw by draw.

    Draws that are stored already are not made again, also of a command that was killed.

    Args:
        run: The run.
        set_name: An evaluation set.
        number: How many draws.
        progress: Called for every step.
        stages: Names of those to leave out; None for all, or for all but the last where only what
            comes after a stage is drawn.
        kind: What is drawn; not ``"runs"``.
        pilot: How many draws have settled the number; None where it was given.

    Raises:
        Refused: The recipe cannot be drawn again; names the stage and what is in the way.
    """
    examples = run.measurable_set(set_name)
    chosen = left_out(run, stages, kind)
    before = load(run, examples.digest, kind)
    table = before[1].table if before is not None else pd.DataFrame(columns=list(COLUMNS))
    there = set(zip(table["draw"], table["stage"], strict=True))
    missing = {
        n: names
        for n in range(number)
        if (names := [s.name for s in chosen if (n, s.name) not in there])
    }
    if before is not None and not missing and (pilot or before[0].pilot) == before[0].pilot:
        return before[1]  # even where the recipe can no longer be drawn, for want of its loss
    check(run, kind)
    seen = before[0].seen if before is not None else {}
    if kind == "recipe" and not seen:
        told = {s.name: times_seen(run.task, s) for s in run.stages}
        seen = {name: times for name, times in told.items() if times is not None}
    batches = _pools(run, seen) if kind == "recipe" else None
    pace = {each.stage: each.seconds or 1.0 for each in paces(run).stages}
    items = [
        Item(
            {"draw": n, "kind": kind, "set": set_name, "stages": names, "seen": seen},
            sum(pace[s.name] for s in _work(run, names, kind)),
        )
        for n, names in missing.items()
    ]
    share_pieces(run, run.stages, items, partial(do, run), Progress(progress).part(0.0, 0.99))
    found = [table] if len(table) else []
    for item in items:
        do(run, item.message, progress)  # what a helper could not do; else it is there
        found.append(_shards(run, examples, item.message).load(_name(item.message)))
    # Another process may have stored draws without other stages in the meantime.
    if (now := load(run, examples.digest, kind)) is not None and now[0].seen == seen:
        own = {(n, name) for n, names in missing.items() for name in names} | there
        pairs = pd.MultiIndex.from_frame(now[1].table[["draw", "stage"]].astype(object))
        found.append(now[1].table[~pairs.isin(list(own))])
        before = now
    table = pd.concat(found, ignore_index=True)
    known = before[0].pilot if before is not None else None
    facts = DrawFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        kind=kind,
        behaviours=[BehaviourFacts.of(each) for each in run.task.behaviour_kinds],
        pilot=pilot or known,
        batches=batches,
        kept=[*not_drawn(run), *held_fixed(run.stages), *_unseen(run, kind, seen)],
        seen=seen,
    )
    fact_tables.write(draws_path(run, examples.digest, kind), table, facts)
    for item in items[:1]:
        _shards(run, examples, item.message).clear()
    return DrawnEffects(table, kind, facts.pilot, batches)


def check(run: Run, kind: Kind) -> None:
    """Refuse before any work what cannot be drawn; of ``"runs"``, each replay refuses by itself.

    Raises:
        Refused: Names the stage and what is in the way, also where a function that was given for a
            loss is not the recorded one.
    """
    if kind == "runs":
        return
    check_drawable(run)
    check_given(run)
    if kind == "recipe":
        _pools(run, {})  # how often examples were seen is not known yet


def left_out(run: Run, stages: Sequence[str] | None, kind: Kind) -> list[Stage]:
    """The stages that draws leave out, in training order.

    Raises:
        Refused: Nothing comes after the last stage that could be drawn.
        RunError: There is no such stage.
    """
    chosen = {run.stage(name).name for name in stages} if stages is not None else None
    found = [s for s in run.stages if chosen is None or s.name in chosen]
    if kind != "given earlier":
        return found
    last = run.last
    if chosen is not None and last.name in chosen:
        raise Refused(
            f"given the earlier stages as recorded, nothing is left to draw for {last.name!r}, the "
            "last stage; leave out --given-earlier to draw all stages anew"
        )
    return [stage for stage in found if stage is not last]


def _work(run: Run, names: Sequence[str], kind: Kind) -> list[Stage]:
    return passes_needed(run, [run.stage(name) for name in names], kind == "given earlier")


def _pools(run: Run, seen: Mapping[str, int]) -> int:
    """The fewest batches that are drawn with replacement in a stage."""
    sizes = {s: pool_size(s.steps, seen.get(s.name, 1)) for s in run.stages}
    fewest = min(sizes, key=lambda stage: sizes[stage])
    if sizes[fewest] < 2:
        raise Refused(
            f"stage {fewest.name!r} saw all of its examples in one batch, so none can be drawn "
            "with replacement; add --same-data to draw everything else anew"
        )
    return sizes[fewest]


def _unseen(run: Run, kind: Kind, seen: Mapping[str, int]) -> list[str]:
    unknown = [s.name for s in run.stages if s.name not in seen]
    if kind != "recipe" or not unknown:
        return []
    return [
        f"how often {', '.join(unknown)} saw each example is not known, and is taken to be once, "
        "so spreads may be too small"
    ]


def _shards(run: Run, examples: EvaluationSet, message: Mapping[str, Any]) -> Shards:
    what = message["kind"], message["seen"]
    key = digest("draws", VERSION, METHOD, run.digest, examples.digest, *what)
    return Shards(run, key[:32])


def _name(message: Mapping[str, Any]) -> str:
    return f"{message['draw']}-{digest(list(message['stages']))[:12]}"


def do(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
    """One draw, as processes share them: trained, measured, and kept with the run."""
    examples = run.measurable_set(message["set"])
    make = partial(_one_draw, run, examples, message, progress)
    _shards(run, examples, message).keep(_name(message), make)


def _one_draw(
    run: Run, examples: EvaluationSet, message: Mapping[str, Any], progress: ProgressCallback
) -> pd.DataFrame:
    kind, number = message["kind"], int(message["draw"])
    draw = Draw(number, kind == "recipe", kind == "given earlier")
    stages = [run.stage(name) for name in message["stages"]]
    report = Progress(progress).part(0.0, 1.0, f"Draw {number + 1}: ")
    labels = examples.table([])["label"]
    model = empty_model(run)
    measured: dict[tuple[str, bool], dict[str, np.ndarray]] = {}
    for name, there, weights in drawn_models(run, draw, stages, message["seen"], report):
        batches = examples.batches(BATCH_SIZE)
        (one,) = measure(run.task, model, [weights], batches, examples.count)
        measured[name, there] = _values(one, labels)
    ids = examples.table([])["example_id"]
    blocks = []
    for stage in stages:
        final = measured.get((stage.name, True)) or measured["", True]
        without = measured[stage.name, False]
        for behaviour, values in final.items():
            block = {
                "stage": stage.name,
                "behaviour": behaviour,
                "draw": number,
                "example_id": ids,
                "final": values,
                "effect": values - without[behaviour],
            }
            blocks.append(pd.DataFrame(block, columns=list(COLUMNS)))
    return pd.concat(blocks, ignore_index=True)


def _values(measured: Measured, labels: pd.Series) -> dict[str, np.ndarray]:
    values = dict(measured.values)
    if labels.notna().any():
        values[ACCURACY.name] = right_answers(pd.Series(measured.answers), labels).to_numpy()
    return values


def needed_for_width(
    drawn: DrawnEffects, behaviour: str, width: float, pilot: int, stages: Sequence[str]
) -> int:
    """How many draws in all the mean effects over all examples need for intervals of a width.

    Args:
        drawn: At least the pilot.
        behaviour: On which the effects are.
        width: From the lower to the upper end, in the behaviour's unit.
        pilot: How many draws it has: the first ones.
        stages: Those asked about; the one that varies most settles the number.

    Raises:
        RunError: There is no such behaviour.
    """
    own = drawn.table[(drawn.table["behaviour"] == behaviour) & (drawn.table["draw"] < pilot)]
    if own.empty:
        known = ", ".join(drawn.table["behaviour"].unique())
        raise RunError(f"there is no behaviour {behaviour!r}; use one of: {known}")
    means = own.groupby(["draw", "stage"])["effect"].mean().unstack("stage")
    return draws_for_width(means[list(stages)].to_numpy(), width)


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
        RunError: A run has other stages, lacks the set, or is given twice.
        Refused: The effects of one cannot be computed by replay.
    """
    examples = run.evaluation_set(set_name)
    chosen = [stage.name for stage in left_out(run, stages, "runs")]
    every, seen = [run, *others], set[str]()
    sets = []
    for each in every:
        sets.append(_set_of(each, run, examples))
        if each.digest in seen:
            raise RunError(
                f"{each.path} is the same recording as another of the runs; give it once"
            )
        seen.add(each.digest)
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
        replays=replays,
    )
    table = pd.concat(blocks, ignore_index=True)
    fact_tables.write(draws_path(run, examples.digest, "runs"), table, facts)
    return DrawnEffects(table, "runs")


def _less_known(one: StageTrust | None, other: StageTrust) -> StageTrust:
    """The replay of which less is known; the first where both are known alike."""

    def error(trust: StageTrust) -> float:
        unknown = math.inf if trust.expected_error is None else trust.expected_error
        return -1.0 if trust.trust == "exact" else unknown

    return other if one is None or error(other) > error(one) else one


def _set_of(other: Run, run: Run, examples: EvaluationSet) -> str:
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
    found: dict[str, Any] = {"the clipping": facts.clip_norm, "accumulation": facts.accumulation}
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
