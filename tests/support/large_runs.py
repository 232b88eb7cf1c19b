"""Runs of many stages and sets of many examples, measured without any forward pass."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from stagelens.effects.computing import _facts, stage_rows
from stagelens.effects.computing import Without
from stagelens.effects.results import BOUNDARY_COLUMNS, Result, save_result
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring.models import Measured
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from tests.support.odd_runs import CLASSES, SHAPE, many_stages

BEHAVIOURS = ("loss", "margin", "probability")


def large_run(path: Path, stages: int, examples: int) -> Run:
    """A run with a set ``large`` whose effects by replay, and boundaries, are drawn at random."""
    run = many_stages(path, stages)
    random = np.random.default_rng(0)
    write_set(
        path,
        run.task,
        "large",
        images=random.integers(0, 256, (examples, *SHAPE[1:]), dtype=np.uint8),
        labels=np.asarray(CLASSES)[random.integers(0, 3, examples)].tolist(),
        columns={
            "group": np.asarray(["left", "right", "up", "down"])[
                random.integers(0, 4, examples)
            ].tolist(),
            "length": random.integers(0, 1000, examples),
        },
    )
    run = open_run(path)
    store_effects(run, "large")
    return run


def store_effects(run: Run, name: str) -> None:
    own = run.evaluation_set(name)
    table = own.table()
    right = table["label"].to_numpy(dtype=object)
    final = _drawn(right, 0, 0.0)
    blocks, trusts = [], []
    for stage in run.stages:
        trust = StageTrust(stage=stage.name, estimator="replay", trust="exact", reason="As drawn.")
        size = 1.0 / (1 + stage.index % 17)
        model = _drawn(right, 1 + stage.index, size)
        effects = {k: final.values[k] - model.values[k] for k in BEHAVIOURS}
        blocks.append(
            stage_rows(table, name, stage.name, "replay", final, Without(effects, model, trust))
        )
        trusts.append(trust)
    facts = _facts(run, own, "effects", estimator="replay", stages=trusts)
    save_result(run, Result(facts, pd.concat(blocks, ignore_index=True)))
    blocks = []
    ids = table["example_id"].to_numpy()
    for boundary in ("base", *(stage.name for stage in run.stages)):
        model = _drawn(right, zlib.crc32(boundary.encode()) % 1000, 0.3)
        for kind, values in model.values.items():
            blocks.append(
                pd.DataFrame(
                    {
                        "set": name,
                        "example_id": ids,
                        "boundary": boundary,
                        "behaviour": kind,
                        "value": values,
                        "prediction": model.answers,
                        "confidence": model.confidences,
                    },
                    columns=list(BOUNDARY_COLUMNS),
                )
            )
    save_result(
        run,
        Result(_facts(run, own, "boundaries", estimator=""), pd.concat(blocks, ignore_index=True)),
    )


def _drawn(right: np.ndarray, seed: int, size: float) -> Measured:
    random = np.random.default_rng(seed)
    margin = random.normal(1.0 - size, 1.0, len(right))
    probability = 1 / (1 + np.exp(-margin))
    others = np.asarray(CLASSES, dtype=object)[random.integers(0, 3, len(right))]
    answers = np.where(margin > 0, right, others)
    values = {"loss": -np.log(probability), "margin": margin, "probability": probability}
    return Measured(values, answers, probability)
