"""How final models do on every example: of recorded runs, and of redraws of their recipes.

Redraws are trained on the same data, in another order of the recorded batches, from other initial
values and with other random numbers where the recording drew any. What was measured is stored in
``results/finals/``, one file per run and set, so a command that was killed goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import (
    ACCURACY,
    Behaviour,
    Progress,
    ProgressCallback,
    Refused,
    RunError,
    no_progress,
)
from stagelens.contracts.scorer import SCORE
from stagelens.effects.results import BehaviourFacts, Result, ResultFacts, load_result
from stagelens.effects.stored_scores import ANSWERS, SCORER, stored_scores
from stagelens.effects.summary import right_answers
from stagelens.estimators.protocol import METHOD
from stagelens.runs import fact_tables
from stagelens.runs.claims import claim
from stagelens.runs.identity import stage_identity
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.numbers import is_share

if TYPE_CHECKING:
    from stagelens.runs.states import Weights

VERSION = 1
"""Raised when redraws are made otherwise."""


class FinalsFacts(BaseModel):
    """What a file of final models' values says about itself."""

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    behaviours: list[BehaviourFacts]


@dataclass(frozen=True)
class Values:
    """Values of one model on the N examples of a set.

    Attributes:
        kinds: Behaviours by name, accuracy first where there are labels.
        values: Behaviour to (N,) values in the set's order; NaN where there is none.
    """

    kinds: Mapping[str, Behaviour]
    values: Mapping[str, np.ndarray]


def recorded(run: Run, examples: EvaluationSet, progress: ProgressCallback = no_progress) -> Values:
    """How the recorded final model does; measured where that is not stored."""
    stored = load_result(run, examples, "boundaries")
    if stored is not None:
        rows = stored.table[stored.table["boundary"] == run.last.name]
        if len(rows):
            return _of_boundary(Result(stored.facts, rows), examples)

    def weights(_report: ProgressCallback) -> Weights:
        from stagelens.estimators.counterfactuals import check_final

        check_final(run)
        return run.last.end().model

    return _measured(run, examples, {"final": weights}, progress)[0]


def redrawn(
    run: Run,
    examples: EvaluationSet,
    count: int,
    first: int = 0,
    progress: ProgressCallback = no_progress,
) -> list[Values]:
    """How the final models of redraws do, from a stage on.

    Args:
        run: The run.
        examples: The set.
        count: How many redraws.
        first: Place of the first stage that is drawn.
        progress: Called for every step.

    Raises:
        Refused: The recipe cannot be drawn again; names the stage and what is in the way.
    """
    from stagelens.replaying.draws import check_drawable, drawn_final

    check_drawable(run, first)
    draws = {
        _draw(first, number): partial(drawn_final, run, number, first) for number in range(count)
    }
    return _measured(run, examples, draws, progress)


def _draw(first: int, number: int) -> str:
    return f"draw:{first}:{number}"


def draws_left(run: Run, examples: EvaluationSet, count: int, first: int = 0) -> int:
    """How many of the redraws of :func:`redrawn` have yet to be trained."""
    stored = _stored(_path(run, examples), run)
    return sum(_draw(first, number) not in stored for number in range(count))


def shared_stages(old: Run, new: Run) -> int:
    """How many first stages both runs have in common: up to the last that ends in the same state.

    All before it, however they were recorded, is then the same for both.
    """
    ends = [[_end(run, place) for place in range(len(run.stages))] for run in (old, new)]
    shared = 0
    for place, (one, two) in enumerate(zip(*ends, strict=False), 1):
        if one == two and old.stages[place - 1].name == new.stages[place - 1].name:
            shared = place
    return shared


def _end(run: Run, place: int) -> object:
    identity = stage_identity(run.stages[place].facts)
    return identity["end"], identity.get("also", {}).get("end")


def scored_alike(
    sides: Sequence[tuple[Run, EvaluationSet]], name: str
) -> tuple[Behaviour, list[Result]]:
    """One score table for each run, by the same scorer of answers that were had in the same way.

    Args:
        sides: The runs with their sets.
        name: ``score:NAME``, or as pages call it where there are several of one scorer.

    Raises:
        RunError: A run has no such scores, or none that go together.
    """
    there: list[dict[str, ResultFacts]] = []
    for run, examples in sides:
        own = {}
        for one in stored_scores(run, examples.name).values():
            if name in (one.name, one.any.behaviours[0].name):
                said = one.any.settings
                own[digest(said.get(SCORER), said.get(ANSWERS))] = one.any
        if not own:
            scorer = name.removeprefix(SCORE)
            raise RunError(
                f"run {run.path} has no scores {name!r} on set {examples.name!r}; run: stagelens "
                f"answer {run.path} --set {examples.name} --scorer {scorer}, or add those of a log"
            )
        there.append(own)
    common = [key for key in there[0] if all(key in own for own in there[1:])]
    if len(common) != 1:
        run, examples = sides[0]
        called = ", ".join(stored_scores(run, examples.name))
        why = "several scores" if common else "no scores"
        raise RunError(
            f"the runs have {why} {name!r} by one scorer, of answers that were had in one way; "
            f"{run.path} has {called}: " + ("name one" if common else "score both runs alike")
        )
    results = []
    for (run, examples), own in zip(sides, there, strict=True):
        facts = own[common[0]]
        table = load_result(run, examples, "scores", facts.estimator, facts.settings)
        if table is None:
            raise RunError(f"the scores {name!r} of run {run.path} cannot be read; score it again")
        results.append(table)
    (kind,) = results[0].behaviours.values()
    return replace(kind, name=name), results


def scores_of_both(sides: Sequence[tuple[Run, EvaluationSet]]) -> list[str]:
    """Scores from 0 to 1 that all of these runs have, of which a number of points can be said."""
    found = [stored_scores(run, examples.name) for run, examples in sides]
    shares = [name for name, one in found[0].items() if is_share(one.behaviour)]
    return [name for name in shares if all(name in own for own in found[1:])]


def final_scores(result: Result, examples: EvaluationSet) -> np.ndarray:
    """(N,) scores of the final model, in the set's order."""
    ids = examples.table([])["example_id"]
    rows = result.table.drop_duplicates("example_id").set_index("example_id")
    return rows["final"].reindex(ids.astype(object)).to_numpy(float)


def _of_boundary(found: Result, examples: EvaluationSet) -> Values:
    own = examples.table([])
    kinds, values = dict(found.behaviours), {}
    for name in kinds:
        rows = found.table[found.table["behaviour"] == name].set_index("example_id")
        rows = rows.loc[own["example_id"].astype(object)]
        values[name] = rows["value"].to_numpy(float)
        right = right_answers(rows["prediction"].reset_index(drop=True), own["label"])
    return _with_accuracy(kinds, values, right.to_numpy(float), own["label"])


def _with_accuracy(
    kinds: dict[str, Behaviour],
    values: dict[str, np.ndarray],
    right: np.ndarray,
    labels: pd.Series,
) -> Values:
    if labels.isna().all():
        return Values(kinds, values)
    return Values({ACCURACY.name: ACCURACY, **kinds}, {**values, ACCURACY.name: right})


def _measured(
    run: Run,
    examples: EvaluationSet,
    models: Mapping[str, Callable[[ProgressCallback], Weights]],
    progress: ProgressCallback,
) -> list[Values]:
    """What is stored of these models; what is not is trained, measured and stored, one by one."""
    path = _path(run, examples)
    overall = Progress(progress)
    with claim(path.with_name(f".{path.stem[:16]}.lock")):
        stored = _stored(path, run)
        lacking = [name for name in models if name not in stored]
        if lacking:
            examples = run.measurable_set(examples.name)
            meter = _Meter(run, examples)
        for number, name in enumerate(lacking):
            words = f"Training {number + 1} of {len(lacking)}: " if len(models) > 1 else ""
            part = overall.part(number / len(lacking), (number + 1) / len(lacking), words)
            stored[name] = meter.values(models[name](part.part(0.0, 0.9)), name, part.part(0.9, 1))
            _store(run, examples, path, stored)
    kinds = {each.name: each for each in run.task.behaviour_kinds}
    labels, found = examples.table([])["label"], []
    for name in models:
        values = dict(stored[name])
        right = values.pop(ACCURACY.name, np.empty(0))
        found.append(_with_accuracy(kinds, values, right, labels))
    return found


class _Meter:
    """Measures models of a run one by one; what one shard may hold is read once for all."""

    def __init__(self, run: Run, examples: EvaluationSet) -> None:
        from stagelens.measuring.models import BATCH_SIZE, SHARD, empty_model

        self._run, self._examples, self._model = run, examples, empty_model(run)
        small = examples.count <= SHARD
        self._held = list(examples.batches(BATCH_SIZE)) if small else None

    def values(
        self, weights: Weights, name: str, progress: ProgressCallback
    ) -> dict[str, np.ndarray]:
        """Behaviours of a model, (N,) each, with accuracy where there are labels."""
        from stagelens.measuring.models import measure, measure_set
        from stagelens.trust.one_draw import values_of

        run, examples = self._run, self._examples
        if self._held is not None:
            (one,) = measure(run.task, self._model, [weights], self._held, examples.count, progress)
        else:
            key = digest("finals", VERSION, METHOD, run.digest, examples.digest, name)[:32]
            (one,) = measure_set(run, examples, self._model, [weights], key, progress)
        if not any(np.isfinite(each).any() for each in one.values.values()):
            raise Refused("a training of this recipe ended in NaN or infinite numbers")
        return values_of(one, examples.table([])["label"])


def _path(run: Run, examples: EvaluationSet) -> Path:
    key = digest("finals", VERSION, METHOD, run.digest, examples.digest)[:32]
    return run.files.inside(f"results/finals/{key}.parquet")


def _stored(path: Path, run: Run) -> dict[str, dict[str, np.ndarray]]:
    found = fact_tables.read(path, FinalsFacts, ("model", "behaviour", "value"))
    if found is None or found[0].run_digest != run.digest:
        return {}
    models: dict[str, dict[str, np.ndarray]] = {}
    for (model, behaviour), rows in found[1].groupby(["model", "behaviour"], sort=False):
        models.setdefault(str(model), {})[str(behaviour)] = rows["value"].to_numpy(float)
    return models


def _store(
    run: Run, examples: EvaluationSet, path: Path, models: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    blocks = [
        pd.DataFrame({"model": model, "behaviour": name, "value": values})
        for model, own in models.items()
        for name, values in own.items()
    ]
    facts = FinalsFacts(
        run_digest=run.digest,
        set_digest=examples.digest,
        behaviours=[BehaviourFacts.of(each) for each in run.task.behaviour_kinds],
    )
    fact_tables.write(path, pd.concat(blocks, ignore_index=True), facts)
