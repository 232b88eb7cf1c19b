"""Effects by replay of a benchmark run, in the recorded order of the batches and in others.

They are kept beside the runs, because no change of an estimator makes them stale, where results in
a run's folder are forgotten whenever one changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stagelens.effects.computing import attribute
from stagelens.runs.run import Run
from stagelens.trust.noise import RECORDED, measure_noise

SET, BEHAVIOUR = "test", "margin"


def margins(table: pd.DataFrame, stage: str) -> np.ndarray:
    """(N,) effects of one stage on the margin, in the order of the evaluation set."""
    rows = table[(table["stage"] == stage) & (table["behaviour"] == BEHAVIOUR)]
    return rows["effect"].to_numpy(float)


def _path(run: Run, cache: Path, kind: str) -> Path:
    return cache / "truths" / f"{run.name}-{kind}-{run.digest[:16]}.parquet"


def _kept(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    table.to_parquet(half, index=False)
    half.replace(path)  # so that a killed benchmark leaves no half of a table
    return table


def by_replay(run: Run, cache: Path) -> pd.DataFrame:
    """Effects in the recorded order: ``stage``, ``order``, ``effect``, and replay's ``seconds``.

    All stages but the last, whose effect every estimator knows.

    Raises:
        RuntimeError: The replay is not exact here, so it is no truth.
    """
    path = _path(run, cache, "recorded")
    if path.exists():
        return pd.read_parquet(path)
    result = attribute(run, SET, "replay")
    parts = []
    for stage in run.stages[:-1]:
        trust = result.trust[stage.name]
        if trust.trust != "exact":
            raise RuntimeError(f"{run.name}: the replay without {stage.name!r} is not exact here")
        effect = margins(result.table, stage.name)
        columns = {"stage": stage.name, "order": RECORDED, "effect": effect}
        parts.append(pd.DataFrame({**columns, "seconds": trust.seconds}))
    return _kept(path, pd.concat(parts, ignore_index=True))


def by_other_orders(
    run: Run, cache: Path, orders: int, stages: Sequence[str] | None = None
) -> pd.DataFrame:
    """Effects in re-drawn orders, numbered from 0: ``stage``, ``order``, ``effect``.

    In each, the batches of every later stage are permuted, in the same way for the model with the
    stage and for the one without it.

    Args:
        run: The run.
        cache: Folder of the benchmark's runs.
        orders: How many.
        stages: Their names; None for all but the last.
    """
    names = [s.name for s in run.stages[:-1] if stages is None or s.name in stages]
    path = _path(run, cache, "orders")
    found = pd.read_parquet(path) if path.exists() else None
    there = set() if found is None else set(zip(found["stage"], found["order"], strict=True))
    if not {(name, order) for name in names for order in range(orders)} <= there:
        table = measure_noise(run, SET, orders, lambda *_: None, names)
        own = table.loc[table["behaviour"] == BEHAVIOUR, ["stage", "order", "effect"]]
        found = _kept(path, own.reset_index(drop=True))
    assert found is not None
    return found[(found["order"] < orders) & found["stage"].isin(names)]


def of_stage(table: pd.DataFrame, stage: str) -> np.ndarray:
    """(K, N) effects of one stage, one row per order."""
    own = table[table["stage"] == stage]
    return np.stack([part["effect"].to_numpy(float) for _, part in own.groupby("order")])
