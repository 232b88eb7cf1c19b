"""Draws of a run's recipe, trained and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import pandas as pd

from stagelens.compute.helpers import Item
from stagelens.contracts import Progress, ProgressCallback, Refused, RunError
from stagelens.effects.draws import DrawnEffects, Kind, draws_for_width
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.scoring_again import keys_by_set
from stagelens.estimators.durations import paces
from stagelens.estimators.held_fixed import held_fixed
from stagelens.estimators.replay_check import check_given
from stagelens.estimators.sharing_out import share_pieces
from stagelens.replaying.draw_plan import passes_needed, pool_size
from stagelens.replaying.draws import check_drawable, not_drawn, times_seen
from stagelens.runs import fact_tables
from stagelens.runs.claims import claim
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest

from . import one_draw
from .draws import DrawFacts, as_stored, draws_path, load, with_names

Scores: TypeAlias = Mapping[str, Sequence[str]]
"""Set name to the keys of the scores that models of draws are given too."""


def measure_on_sets(
    run: Run,
    set_names: Sequence[str],
    number: int,
    progress: ProgressCallback,
    stages: Sequence[str] | None = None,
    kind: Kind = "recipe",
    pilot: int | None = None,
    answers: bool = False,
) -> dict[str, DrawnEffects]:
    """Train draws with and without stages, and measure the effects on sets; stored draw by draw.

    Each draw is trained once for all sets. Draws that are stored already are not made again, also
    of a command that was killed, or of another one that runs now.

    Args:
        run: The run.
        set_names: Evaluation sets.
        number: How many draws.
        progress: Called for every step.
        stages: Names of those to leave out; None for all, or for all but the last where only what
            comes after a stage is drawn.
        kind: What is drawn; not ``"runs"``.
        pilot: How many draws have settled the number; None where it was given.
        answers: Whether every model answers prompts too, of sets that have scores, and is scored as
            those of the run were, see ``scoring_again.own_scores``. Models of draws are not kept,
            so draws that were made without are trained once more.

    Returns:
        Set name to its effects over draws.

    Raises:
        Refused: The recipe cannot be drawn again; names the stage and what is in the way.
    """
    chosen = [stage.name for stage in left_out(run, stages, kind)]
    before = {name: load(run, run.measurable_set(name).digest, kind) for name in set_names}
    scores = keys_by_set(run, set_names) if answers else {}
    found, lacking = {}, []
    for name, one in before.items():
        whole = not any(_left(run, name, kind, chosen, number, scores).values())
        if one is not None and whole and (pilot or one[0].pilot) == one[0].pilot:
            found[name] = one[1]  # even where the recipe can no longer be drawn
        else:
            lacking.append(name)
    if not lacking:
        return found
    check(run, kind)
    told: dict[str, int] | None = None
    overall = Progress(progress)
    together: dict[str, tuple[dict[str, int], list[str]]] = {}
    for name in lacking:
        one = before[name]
        seen = one[0].seen if one is not None else {}
        if kind == "recipe" and not seen:
            told = told_times_seen(run) if told is None else told
            seen = told
        # Draws that differ in how often examples were seen are other draws.
        together.setdefault(digest(seen), (seen, []))[1].append(name)
    for place, (seen, names) in enumerate(together.values()):
        part = overall.piece(place, len(together))
        found |= _measure(run, names, number, chosen, kind, seen, pilot, scores, part)
    return {name: found[name] for name in set_names}


def _left(
    run: Run,
    set_name: str,
    kind: Kind,
    stages: Sequence[str],
    number: int,
    scores: Scores = MappingProxyType({}),
) -> dict[int, list[str]]:
    """Draw to the stages that it has not been left out in yet, or not with these scores."""
    stored = as_stored(run, run.evaluation_set(set_name).digest, kind)
    there = set() if stored is None else one_draw.there_in(stored[1])
    keys = scores.get(set_name, ())
    return {
        n: [name for name in stages if not one_draw.is_among(there, n, [name], keys)]
        for n in range(number)
    }


def told_times_seen(run: Run) -> dict[str, int]:
    """Stage to how often it saw each example; those of which it cannot be told are not there."""
    told = {stage.name: times_seen(run.task, stage) for stage in run.stages}
    return {name: times for name, times in told.items() if times is not None}


def _measure(
    run: Run,
    names: Sequence[str],
    number: int,
    chosen: Sequence[str],
    kind: Kind,
    seen: dict[str, int],
    pilot: int | None,
    scores: Scores,
    progress: ProgressCallback,
) -> dict[str, DrawnEffects]:
    """Make the draws that are not stored, of sets that share all that a draw is made from."""
    items = draws_to_make(run, names, number, chosen, kind, seen, scores)
    part = Progress(progress).part(0.0, 0.99)
    share_pieces(run, run.stages, items, partial(one_draw.do, run), part)
    for item in items:
        # What a helper could not do, or another command was about to; else it is there.
        one_draw.make(run, item.message, progress, wait=True)
    facts = DrawFacts(
        run_digest=run.digest,
        set_digest="",  # each set has its own
        kind=kind,
        behaviours=[BehaviourFacts.of(each) for each in run.task.behaviour_kinds],
        pilot=pilot,
        batches=pools(run, seen) if kind == "recipe" else None,
        kept=kept_as_recorded(run, kind, seen),
        seen=seen,
    )
    found = {name: _stored_with(run, name, items, facts) for name in names}
    for item in items:
        one_draw.drop(run, item.message)
    return found


def draws_to_make(
    run: Run,
    names: Sequence[str],
    number: int,
    chosen: Sequence[str],
    kind: Kind,
    seen: dict[str, int],
    scores: Scores = MappingProxyType({}),
) -> list[Item]:
    """The draws to make, each with the stages and the sets that it lacks."""
    left = {name: _left(run, name, kind, chosen, number, scores) for name in names}
    pace = {each.stage: each.seconds or 1.0 for each in paces(run).stages}
    items = []
    for n in range(number):
        sets = [name for name in names if left[name][n]]
        stages = [stage for stage in chosen if any(stage in left[name][n] for name in sets)]
        if not stages:
            continue
        message: dict[str, Any] = {
            "draw": n,
            "kind": kind,
            "sets": sets,
            "stages": stages,
            "seen": seen,
        }
        if of_sets := {name: list(scores[name]) for name in sets if name in scores}:
            message["scores"] = of_sets
        items.append(Item(message, sum(pace[s.name] for s in _work(run, stages, kind))))
    return items


def _stored_with(run: Run, set_name: str, items: Sequence[Item], facts: DrawFacts) -> DrawnEffects:
    """Add the draws that were made to those stored, and read all."""
    examples = run.evaluation_set(set_name)
    path = draws_path(run, examples.digest, facts.kind)
    # Another process may store draws of its own at the same time.
    with claim(path.with_name(".draws.lock")):
        now = as_stored(run, examples.digest, facts.kind)
        if now is not None and now[0].seen != facts.seen:
            now = None  # other draws
        blocks = [] if now is None else [now[1]]
        there = set() if now is None else one_draw.there_in(now[1])
        for item in items:
            message = item.message
            keys = message.get("scores", {}).get(set_name, ())
            if set_name not in message["sets"] or one_draw.is_among(
                there, message["draw"], message["stages"], keys
            ):
                continue
            made = one_draw.kept(run, set_name, message)
            parts = zip(made["draw"], made["stage"], made["behaviour"], strict=True)
            blocks.append(made[[each not in there for each in parts]])
        table = pd.concat(blocks).sort_values("draw", kind="stable", ignore_index=True)
        known = None if now is None else now[0].pilot
        update = {"set_digest": examples.digest, "pilot": facts.pilot or known}
        own = facts.model_copy(update=update)
        fact_tables.write(path, table, own)
    named = with_names(run, examples.digest, table)
    return DrawnEffects(named, own.kind, own.pilot, own.batches)


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
        pools(run, {})  # how often examples were seen is not known yet


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


def pools(run: Run, seen: Mapping[str, int]) -> int:
    """The fewest batches that are drawn with replacement in a stage.

    Raises:
        Refused: It is a single one.
    """
    sizes = {s: pool_size(s.steps, seen.get(s.name, 1)) for s in run.stages}
    fewest = min(sizes, key=lambda stage: sizes[stage])
    if sizes[fewest] < 2:
        raise Refused(
            f"stage {fewest.name!r} saw all of its examples in one batch, so none can be drawn "
            "with replacement; add --same-data to draw everything else anew"
        )
    return sizes[fewest]


def kept_as_recorded(run: Run, kind: Kind, seen: Mapping[str, int]) -> list[str]:
    """What every draw has as recorded, in words."""
    return [*not_drawn(run), *held_fixed(run.stages), *_unseen(run, kind, seen)]


def _unseen(run: Run, kind: Kind, seen: Mapping[str, int]) -> list[str]:
    unknown = [s.name for s in run.stages if s.name not in seen]
    if kind != "recipe" or not unknown:
        return []
    return [
        f"how often {', '.join(unknown)} saw each example is not known, and is taken to be once, "
        "so spreads may be too small"
    ]


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
