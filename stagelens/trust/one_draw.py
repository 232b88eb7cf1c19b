"""One draw of a run's recipe: trained, measured on sets, and kept until all are stored.

What a draw is made from is a message, as processes share them: its number (``draw``), the ``kind``
of draws, the ``sets``, the ``stages`` that are left out, and how often examples were ``seen``;
where models answer too, ``scores`` has the keys of their scores by set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Progress, ProgressCallback
from stagelens.effects.draws import COLUMNS
from stagelens.effects.scoring_again import own_scores, scored_model
from stagelens.effects.summary import right_answers
from stagelens.estimators.protocol import METHOD
from stagelens.measuring.models import BATCH_SIZE, SHARD, Measured, empty_model, measure
from stagelens.measuring.partial_results import Shards
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import drawn_models
from stagelens.runs import fact_tables
from stagelens.runs.claims import claim
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .draws import SCORED, VERSION, DrawFacts, draws_path


def do(run: Run, message: Mapping[str, Any], progress: ProgressCallback) -> None:
    """One draw, as processes share them; one that another command is about to make is left."""
    make(run, message, progress, wait=False)


def make(run: Run, message: Mapping[str, Any], progress: ProgressCallback, wait: bool) -> None:
    """Train and measure one draw, and keep it with the run, unless that was done."""
    with claim(_claimed(run, message), wait) as mine:
        if not mine:
            return
        sets = [run.measurable_set(name) for name in message["sets"]]
        left = [each for each in sets if not _is_made(run, each, message)]
        if not left:
            return
        for examples, table in zip(left, _one_draw(run, left, message, progress), strict=True):
            _shards(run, examples, message).put(_name(message), table)


def _one_draw(
    run: Run,
    sets: Sequence[EvaluationSet],
    message: Mapping[str, Any],
    progress: ProgressCallback,
) -> list[pd.DataFrame]:
    """A draw's effects on each set; every model is trained once, and measured on all of them."""
    kind, number = message["kind"], int(message["draw"])
    draw = Draw(number, kind == "recipe", kind == "given earlier")
    stages = [run.stage(name) for name in message["stages"]]
    report = Progress(progress).part(0.0, 1.0, f"Draw {number + 1}: ")
    model = empty_model(run)
    # What one shard may hold is read once for all models.
    scores = {
        each.name: own_scores(run, each.name).only(keys)
        for each in sets
        if (keys := _scores(message, each))
    }
    held = [list(each.batches(BATCH_SIZE)) if each.count <= SHARD else None for each in sets]
    measured: list[dict[tuple[str, bool], dict[str, np.ndarray]]] = [{} for _ in sets]
    for name, there, weights in drawn_models(run, draw, stages, message["seen"], report):
        for examples, batches, own in zip(sets, held, measured, strict=True):
            given = examples.batches(BATCH_SIZE) if batches is None else batches
            (one,) = measure(run.task, model, [weights], given, examples.count)
            values = values_of(one, examples.table([])["label"])
            if of_set := scores.get(examples.name):
                told = scored_model(run, examples, model, weights, of_set)
                values |= {SCORED + key: each for key, each in told.items()}
            own[name, there] = values
    return [
        table_of(each.table([])["example_id"], number, stages, own)
        for each, own in zip(sets, measured, strict=True)
    ]


def table_of(
    ids: pd.Series,
    number: int,
    stages: Sequence[Stage],
    measured: Mapping[tuple[str, bool], Mapping[str, np.ndarray]],
) -> pd.DataFrame:
    """The effects of stages in one draw, from its models with and without them.

    Args:
        ids: Of the examples, (N,).
        number: Of the draw.
        stages: Those that are left out.
        measured: Stage, and whether it is there, to behaviours; ``("", True)`` is the model with
            all stages.
    """
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


def values_of(measured: Measured, labels: pd.Series) -> dict[str, np.ndarray]:
    """Behaviours of a model, (N,) each, with accuracy where there are labels."""
    values = dict(measured.values)
    if labels.notna().any():
        values[ACCURACY.name] = right_answers(pd.Series(measured.answers), labels).to_numpy()
    return values


def put(run: Run, set_name: str, message: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Keep the effects on one set of a draw that was made otherwise, unless they are there."""
    examples = run.evaluation_set(set_name)
    if not _is_made(run, examples, message):
        _shards(run, examples, message).put(_name(message), table)


def kept(run: Run, set_name: str, message: Mapping[str, Any]) -> pd.DataFrame:
    """The effects on one set of a draw that was made; see :func:`make`.

    Raises:
        RunError: They are missing.
    """
    return _shards(run, run.evaluation_set(set_name), message).load(_name(message))


def drop(run: Run, message: Mapping[str, Any]) -> None:
    """Delete what was kept of a draw, once it is stored."""
    for set_name in message["sets"]:
        _shards(run, run.evaluation_set(set_name), message).drop(_name(message))
    _claimed(run, message).unlink(missing_ok=True)


def there_in(table: pd.DataFrame) -> set[tuple[int, str, str]]:
    """The draws, stages and behaviours of a table of effects over draws."""
    each = table[["draw", "stage", "behaviour"]].drop_duplicates()
    return {(int(draw), str(n), str(kind)) for draw, n, kind in each.itertuples(index=False)}


def is_among(
    there: set[tuple[int, str, str]],
    draw: int,
    stages: Sequence[str],
    scores: Sequence[str] = (),
) -> bool:
    """Whether a draw's stages are all there, with these scores by their keys."""
    any_of = {(number, name) for number, name, _ in there}
    return all(
        (draw, name) in any_of and all((draw, name, SCORED + key) in there for key in scores)
        for name in stages
    )


def _scores(message: Mapping[str, Any], examples: EvaluationSet) -> Sequence[str]:
    """Keys of the scores that a draw's models are to be given on a set."""
    keys: Sequence[str] = message.get("scores", {}).get(examples.name, ())
    return keys


def _shards(run: Run, examples: EvaluationSet, message: Mapping[str, Any]) -> Shards:
    what = (message["kind"], message["seen"], *filter(None, [list(_scores(message, examples))]))
    key = digest("draws", VERSION, METHOD, run.digest, examples.digest, *what)
    return Shards(run, key[:32])


def _name(message: Mapping[str, Any]) -> str:
    return f"{message['draw']}-{digest(list(message['stages']))[:12]}"


def _claimed(run: Run, message: Mapping[str, Any]) -> Path:
    """The file that whoever makes a draw holds."""
    key = digest("draw", VERSION, METHOD, run.digest, *(message[k] for k in ("kind", "seen")))
    # Not beside the draws: whenever a file comes or goes there, pages read everything again.
    return run.files.inside(f"results/claims/.{key[:16]}-{message['draw']}.lock")


def _is_made(run: Run, examples: EvaluationSet, message: Mapping[str, Any]) -> bool:
    """Whether a draw was made for a set, and is kept or stored."""
    if _name(message) in _shards(run, examples, message):
        return True
    path = draws_path(run, examples.digest, message["kind"])
    only = [("draw", "==", message["draw"])]
    found = fact_tables.read_arrow(path, DrawFacts, COLUMNS, only)
    if found is None or found[0].seen != message["seen"]:
        return False
    there = there_in(found[1].select(["draw", "stage", "behaviour"]).to_pandas())
    return is_among(there, message["draw"], message["stages"], _scores(message, examples))
