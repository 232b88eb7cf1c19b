"""The noise floor of training: stage effects by replays in other orders of the recorded batches.

Another order of the same batches gives another model, and another effect. The *noise sd* of an
effect, of one example or of a mean over examples, is its standard deviation over such orders, the
recorded one included. An effect of less than 2 noise sd is within training noise, so not a finding.

Importing this module does not import torch; only :func:`measure_noise` does work that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stagelens.compute import processes
from stagelens.contracts import ACCURACY, Progress
from stagelens.effects.results import load_result
from stagelens.effects.summary import right_answers, with_accuracy
from stagelens.estimators.protocol import METHOD
from stagelens.estimators.stage_trust import REPLAY
from stagelens.measuring.partial_results import Shards
from stagelens.runs import fact_tables
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest

if TYPE_CHECKING:
    from stagelens.measuring.models import Measured
    from stagelens.runs.sets.evaluation_set import EvaluationSet

COLUMNS = ("stage", "behaviour", "order", "example_id", "effect")
"""Columns of a table of effects under other orders."""

RECORDED = -1
"""Number of the recorded order, where it is listed with others."""

_EFFECT = ["stage", "behaviour", "example_id"]

MARKED = (*_EFFECT, "effect")
"""Columns that :func:`marked` needs."""


def _path(run: Run, set_digest: str) -> Path:
    return run.files.inside(f"results/noise/{digest(METHOD, run.digest, set_digest)[:32]}.parquet")


def load_noise(run: Run, set_digest: str) -> pd.DataFrame | None:
    """Effects under other orders of the recorded batches; None where none were computed.

    Returns:
        :data:`COLUMNS`, for the task's behaviours and, where there are labels, for accuracy.
    """
    return fact_tables.read_plain(_path(run, set_digest), COLUMNS)


def load_orders(run: Run, set_name: str) -> pd.DataFrame | None:
    """Like :func:`load_noise`, with effects in the recorded order where its replay is stored."""
    noise = load_noise(run, run.evaluation_set(set_name).digest)
    if noise is None:
        return None
    replayed = load_result(run, set_name, "effects", REPLAY)
    if replayed is None:
        return noise
    recorded = with_accuracy(replayed.table).assign(order=RECORDED)
    return pd.concat([noise, recorded[list(COLUMNS)]], ignore_index=True)


def noise_sd(orders: pd.DataFrame) -> pd.Series:
    """Standard deviation of every effect over orders of the batches.

    Args:
        orders: From :func:`load_orders`.

    Returns:
        One value per (stage, behaviour, example_id); NaN where only one order is known.
    """
    return orders.groupby(_EFFECT)["effect"].std()


def marked(table: pd.DataFrame, orders: pd.DataFrame | None) -> pd.DataFrame:
    """An effect table with ``within_noise`` filled in where the noise is known.

    Args:
        table: An effect table, by any estimator.
        orders: From :func:`load_orders`; None leaves the table as it is.
    """
    if orders is None:
        return table
    rows = pd.MultiIndex.from_frame(table[_EFFECT])
    sd = pd.Series(noise_sd(orders).reindex(rows).to_numpy(), table.index)
    within = pd.array(table["effect"].abs() < 2 * sd, dtype="boolean")
    # A comparison with NaN is False, which would say that the effect is beyond the noise.
    within[(sd.isna() | table["effect"].isna()).to_numpy()] = pd.NA
    return table.assign(within_noise=within)


def measure_noise(
    run: Run, set_name: str, orders: int, progress: Any, stages: Sequence[str] | None = None
) -> pd.DataFrame:
    """Effects by paired replays under other orders of the recorded batches; stored with the run.

    Within each later stage the batches are permuted and the learning rates stay in place. Both
    the model with the stage and the one without are replayed in the new order.

    Args:
        run: The run.
        set_name: An evaluation set.
        orders: How many other orders.
        progress: Called for every replay.
        stages: Their names; None for all but the last, which needs no replay.

    Raises:
        Refused: Batches of a later stage were not kept.
    """
    examples = run.measurable_set(set_name)
    # Read by one: the list of work has to be the same in all processes.
    stored = processes.by_main(lambda: load_noise(run, examples.digest))
    # Orders are seeded by their number, so stored ones are those that would be computed.
    there = set() if stored is None else set(zip(stored["order"], stored["stage"], strict=True))
    open_stages = [s for s in run.stages[:-1] if stages is None or s.name in stages]
    wanted = [(o, s.name) for o in range(orders) for s in open_stages if (o, s.name) not in there]
    shards = Shards(run, digest("noise", METHOD, run.digest, examples.digest)[:32])

    def work() -> None:
        mine = processes.share_of_work(wanted, lambda one: run.steps_after(run.stage(one[1])))
        for number, (order, name) in enumerate(mine):
            prefix = f"Noise floor, order {order + 1} of {orders}: "
            overall = Progress(progress).piece(number, len(mine), prefix)
            make = partial(_in_order, run, examples, run.stage(name), order, overall)
            shards.keep(f"{order}-{name}", make)

    processes.together(work)
    found = [pd.DataFrame(columns=list(COLUMNS)) if stored is None else stored]
    found += [shards.load(f"{order}-{name}") for order, name in wanted]
    # An empty table has columns of objects, and would turn all columns into such.
    table = pd.concat([t for t in found if len(t)] or found, ignore_index=True)
    processes.wait()  # until all have read them

    def store() -> None:
        fact_tables.write(_path(run, examples.digest), table)
        shards.clear()

    if wanted:
        processes.by_main(store)
    return table


def _in_order(
    run: Run, examples: EvaluationSet, stage: Stage, order: int, progress: Progress
) -> pd.DataFrame:
    """The effects of one stage in one order of the batches."""
    from stagelens.measuring.models import BATCH_SIZE, empty_model, measure
    from stagelens.replaying.replay import replay_later

    random = np.random.default_rng(order)
    # Of all stages, so that an order is the same whichever stage is left out.
    permuted = {s.name: random.permutation(s.steps).tolist() for s in run.stages}

    pair = [
        replay_later(run, stage, state, progress.piece(half, 2), permuted).state.model
        # With the stage, the later ones begin at its end; without it, at its start.
        for half, state in enumerate((stage.end(), stage.start()))
    ]
    measured = measure(
        run.task, empty_model(run), pair, examples.batches(BATCH_SIZE), examples.count
    )
    return _effects(measured, examples.table([]), stage.name, order)


def _effects(
    measured: Sequence[Measured], examples: pd.DataFrame, stage: str, order: int
) -> pd.DataFrame:
    """The effects of one stage in one order, with accuracy where there are labels."""
    values = [dict(each.values) for each in measured]
    labels = examples["label"]
    if labels.notna().any():
        for each, own in zip(values, measured, strict=True):
            each[ACCURACY.name] = right_answers(pd.Series(own.answers), labels).to_numpy()
    with_stage, without = values
    blocks = [
        pd.DataFrame(
            {
                "stage": stage,
                "behaviour": behaviour,
                "order": order,
                "example_id": examples["example_id"],
                "effect": with_stage[behaviour] - without[behaviour],
            },
            columns=list(COLUMNS),
        )
        for behaviour in with_stage
    ]
    return pd.concat(blocks, ignore_index=True)
