"""Runs of many stages, and sets of many examples, with effects that no model was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import BASE
from stagelens.effects.computing import Without, stage_rows
from stagelens.effects.results import (
    BOUNDARY_COLUMNS,
    BehaviourFacts,
    Result,
    ResultFacts,
    save_result,
)
from stagelens.estimators.stage_trust import StageTrust
from stagelens.measuring.models import Measured
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from tests.support.odd_runs import CLASSES, SHAPE, many_stages

SET = "large"
_GROUPS = ("left", "right", "up", "down")


def large_run(path: Path, stages: int, examples: int) -> Run:
    """A run with the set :data:`SET`, and its boundaries and effects by replay drawn at random."""
    run = many_stages(path, stages)
    random = np.random.default_rng(0)
    write_set(
        path,
        run.task,
        SET,
        images=random.integers(0, 256, (examples, *SHAPE[1:]), dtype=np.uint8),
        labels=random.choice(CLASSES, examples).tolist(),
        columns={
            "group": random.choice(_GROUPS, examples).tolist(),
            "length": random.integers(0, 1000, examples),
        },
    )
    run = open_run(path)
    _save(run, "effects", *_effects(run))
    _save(run, "boundaries", _boundaries(run), [])
    return run


def _effects(run: Run) -> tuple[pd.DataFrame, list[StageTrust]]:
    table = run.evaluation_set(SET).table()
    labels = table["label"].to_numpy(dtype=object)
    final = _measured(labels, 0, 0.0)
    blocks, trusts = [], []
    for stage in run.stages:
        trust = StageTrust(stage=stage.name, estimator="replay", trust="exact", reason="As drawn.")
        # A few stages do much more than the others.
        model = _measured(labels, 1 + stage.index, 1 / (1 + stage.index % 17))
        effects = {name: final.values[name] - values for name, values in model.values.items()}
        without = Without(effects, model, trust)
        blocks.append(stage_rows(table, SET, stage.name, "replay", final, without))
        trusts.append(trust)
    return pd.concat(blocks, ignore_index=True), trusts


def _boundaries(run: Run) -> pd.DataFrame:
    table = run.evaluation_set(SET).table()
    blocks = []
    for number, name in enumerate((BASE, *(stage.name for stage in run.stages))):
        model = _measured(table["label"].to_numpy(dtype=object), 1000 + number, 0.3)
        blocks += [
            pd.DataFrame(
                {
                    "set": SET,
                    "example_id": table["example_id"],
                    "boundary": name,
                    "behaviour": behaviour,
                    "value": values,
                    "prediction": model.answers,
                    "confidence": model.confidences,
                },
                columns=list(BOUNDARY_COLUMNS),
            )
            for behaviour, values in model.values.items()
        ]
    return pd.concat(blocks, ignore_index=True)


def _measured(labels: np.ndarray, seed: int, worse: float) -> Measured:
    """A model that is right where its margin is positive."""
    random = np.random.default_rng(seed)
    margin = random.normal(1.0 - worse, 1.0, len(labels))
    probability = 1 / (1 + np.exp(-margin))
    answers = np.where(margin > 0, labels, random.choice(CLASSES, len(labels)).astype(object))
    values = {"margin": margin, "loss": -np.log(probability), "probability": probability}
    return Measured(values, answers, probability)


def _save(run: Run, kind: Any, table: pd.DataFrame, trusts: list[StageTrust]) -> None:
    facts = ResultFacts(
        kind=kind,
        run_digest=run.digest,
        set_name=SET,
        set_digest=run.evaluation_set(SET).digest,
        estimator="replay" if kind == "effects" else "",
        behaviours=[
            BehaviourFacts(name=b.name, better=b.better, unit=b.unit, description=b.description)
            for b in run.task.behaviour_kinds
        ],
        stages=trusts,
    )
    save_result(run, Result(facts, table))
