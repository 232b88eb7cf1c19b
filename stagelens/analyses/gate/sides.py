"""The two models of a gate, and what is measured of them and of further trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stagelens.contracts import Behaviour, Progress, Refused, StageLensError
from stagelens.contracts.scorer import SCORE
from stagelens.effects.results import Result
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust.comparing import comparable_set
from stagelens.trust.runs_drawn import set_of_repeat

from .finals import final_scores, recorded, redrawn, scored_alike
from .report import Side


@dataclass
class Compared:
    """One of the two runs, with what was measured of it.

    Attributes:
        given: As people call it.
        run: The run.
        examples: Its set.
        repeats: Further recorded runs of its recipe, with their sets.
        values: Behaviour to (K, N) values, the recorded model first.
        source: What further trainings are.
    """

    given: str
    run: Run
    examples: EvaluationSet
    repeats: list[tuple[Run, EvaluationSet]]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    source: Literal["recorded", "redraws", "recorded runs"] = "recorded"

    def facts(self) -> Side:
        """The same as JSON has it."""
        counts = [len(each) for each in self.values.values()]
        return Side(
            run=self.given,
            name=self.run.name,
            leaf=self.run.leaf,
            digest=self.run.digest,
            trainings=max(counts, default=1),
            source=self.source,
        )


def compared(
    given: str, run: Run, new: Run, examples: EvaluationSet, repeats: Sequence[Run]
) -> Compared:
    """A run as one side of the gate, with the set that it has in common with the new run.

    Args:
        given: As people call it.
        run: The run.
        new: The new run, whose set is meant.
        examples: That set.
        repeats: Further recorded runs of its recipe.

    Raises:
        StageLensError: It lacks the set, or a repeat is none of its recipe.
    """
    _ = run.last  # refuses a run without a finished stage
    own = examples
    if run is not new:
        own = run.evaluation_set(comparable_set(new, examples.name, run))
    sets, seen = [], {run.digest}
    for each in repeats:
        if each.digest in seen:
            raise StageLensError(
                f"{each.path} is the same recording as another of the runs; give it once"
            )
        seen.add(each.digest)
        sets.append((each, each.evaluation_set(set_of_repeat(each, run, own))))
    return Compared(given, run, own, sets)


def measure(
    sides: Sequence[Compared], behaviours: Sequence[str], progress: Progress
) -> tuple[list[Behaviour], dict[str, Result]]:
    """Fill in what the recorded models, and recorded repeats, do; says of which behaviours."""
    kinds: dict[str, Behaviour] = {}
    tables: dict[str, Result] = {}
    wanted = list(dict.fromkeys(behaviours))
    if not wanted or any(not name.startswith(SCORE) for name in wanted):
        models = [(side, *one) for side in sides for one in _runs(side)]
        for number, (side, run, own) in enumerate(models):
            found = recorded(run, own, progress.piece(number, len(models)))
            if not wanted:
                wanted = [next(iter(found.kinds))]
            for name in wanted:
                if name.startswith(SCORE):
                    continue
                if name not in found.kinds:
                    raise StageLensError(
                        f"run {run.path} has no behaviour {name!r} on set {own.name!r}; use one "
                        f"of: {', '.join(found.kinds)}, or score:NAME"
                    )
                kinds[name] = found.kinds[name]
                _add(side, name, found.values[name])
    for name in wanted:
        if name.startswith(SCORE):
            runs = [one for side in sides for one in _runs(side)]
            kinds[name], results = scored_alike(runs, name)
            left = iter(results)
            for side in sides:
                for _run, own in _runs(side):
                    tables[name] = next(left)  # in the end that of the new run, or its repeat
                    _add(side, name, final_scores(tables[name], own))
            tables[name] = results[1 + len(sides[0].repeats)]
    for side in sides:
        side.source = "recorded runs" if side.repeats else "recorded"
    return [kinds[name] for name in wanted], tables


def _runs(side: Compared) -> list[tuple[Run, EvaluationSet]]:
    return [(side.run, side.examples), *side.repeats]


def _add(side: Compared, name: str, values: np.ndarray) -> None:
    there = side.values.get(name, np.empty((0, len(values))))
    side.values[name] = np.concatenate([there, values[None]])


def train_again(
    sides: Sequence[Compared],
    draws: int,
    shared: int,
    kinds: Sequence[Behaviour],
    progress: Progress,
) -> list[str]:
    """Redraw the recipes that have no recorded repeats; says what could not be."""
    notes: list[str] = []
    if not kinds or not draws:
        return notes
    if not shared and (why := _other_beginnings(sides)):
        return [why]
    for number, side in enumerate(sides):
        if side.repeats:
            continue
        try:
            part = progress.piece(number, len(sides))
            drawn = redrawn(side.run, side.examples, draws, shared, part)
        except Refused as refused:
            notes.append(f"{side.given} was not trained again: {refused}")
            continue
        for each in drawn:
            for kind in kinds:
                _add(side, kind.name, each.values[kind.name])
        side.source = "redraws"
        notes += [f"{side.given}: {kept}" for kept in _kept(side.run, shared)]
    return notes


def _other_beginnings(sides: Sequence[Compared]) -> str:
    """Why redraws would leave out what the first weights add to the noise; else empty."""
    from stagelens.replaying.initial_values import too_few_to_tell

    firsts = [side.run.stages[0] for side in sides]
    alike = firsts[0].facts.start.model == firsts[1].facts.start.model
    if alike or not any(map(too_few_to_tell, firsts)):
        return ""
    return (
        "The recipes were not trained again: the runs began from different weights, too few to "
        "tell whether these are a new model's, which a redraw would draw anew"
    )


def _kept(run: Run, shared: int) -> list[str]:
    from stagelens.estimators.held_fixed import held_fixed
    from stagelens.replaying.draws import not_drawn

    drawn = run.stages[shared:]
    known = [] if shared else not_drawn(run)
    return [f"redraws keep what was recorded: {each}" for each in (*known, *held_fixed(drawn))]
