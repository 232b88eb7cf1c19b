"""Runs of many stages, and sets of many examples, with effects that no model was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import BASE
from stagelens.effects.results import (
    BOUNDARY_COLUMNS,
    EFFECT_COLUMNS,
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
    own = run.evaluation_set(SET).table()
    final = _measured(own, 0, 0.0)
    # A few stages do much more than the others.
    models = [_measured(own, 1 + s.index, 1 / (1 + s.index % 17)) for s in run.stages]
    kinds, times = list(final.values), len(models) * len(final.values)
    every = np.tile(np.concatenate(list(final.values.values())), len(models))
    without = np.concatenate([values for model in models for values in model.values.values()])
    table = {
        "set": SET,
        "stage": np.repeat([stage.name for stage in run.stages], len(kinds) * len(own)),
        "behaviour": np.tile(np.repeat(kinds, len(own)), len(models)),
        "final": every,
        "without": without,
        "effect": every - without,
        "estimator": "replay",
        "prediction": np.tile(final.answers, times),
        "prediction_without": np.concatenate([np.tile(m.answers, len(kinds)) for m in models]),
        "confidence": np.tile(final.confidences, times),
        "confidence_without": np.concatenate([np.tile(m.confidences, len(kinds)) for m in models]),
        "within_noise": pd.arrays.BooleanArray(
            np.zeros(len(every), bool), np.ones(len(every), bool)
        ),
        **{name: np.tile(own[name].to_numpy(), times) for name in own},
    }
    further = [name for name in own if name not in EFFECT_COLUMNS]
    trusts = [
        StageTrust(stage=stage.name, estimator="replay", trust="exact", reason="As drawn.")
        for stage in run.stages
    ]
    return pd.DataFrame(table)[[*EFFECT_COLUMNS, *further]], trusts


def _boundaries(run: Run) -> pd.DataFrame:
    own = run.evaluation_set(SET).table()
    names = [BASE, *(stage.name for stage in run.stages)]
    models = [_measured(own, 1000 + number, 0.3) for number in range(len(names))]
    kinds = list(models[0].values)
    table = {
        "set": SET,
        "example_id": np.tile(own["example_id"].to_numpy(), len(names) * len(kinds)),
        "boundary": np.repeat(names, len(kinds) * len(own)),
        "behaviour": np.tile(np.repeat(kinds, len(own)), len(names)),
        "value": np.concatenate([values for model in models for values in model.values.values()]),
        "prediction": np.concatenate([np.tile(m.answers, len(kinds)) for m in models]),
        "confidence": np.concatenate([np.tile(m.confidences, len(kinds)) for m in models]),
    }
    return pd.DataFrame(table)[list(BOUNDARY_COLUMNS)]


def _measured(examples: pd.DataFrame, seed: int, worse: float) -> Measured:
    """A model that is right where its margin is positive."""
    random, labels = np.random.default_rng(seed), examples["label"].to_numpy(dtype=object)
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
        behaviours=[BehaviourFacts.of(kind) for kind in run.task.behaviour_kinds],
        stages=trusts,
    )
    save_result(run, Result(facts, table))
