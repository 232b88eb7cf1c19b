"""Final model and counterfactuals on examples: one tidy table. Ordinary forward passes only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .contracts import BASE, Example, Refused, Task
from .estimators.ladder import counterfactuals, make_estimator
from .estimators.protocol import Counterfactual, Weights
from .results import (
    BOUNDARY_COLUMNS,
    EFFECT_COLUMNS,
    BehaviourFacts,
    Result,
    ResultFacts,
    load_result,
    save_result,
)
from .runs.batches import to_device
from .runs.evaluation_sets import EvaluationSet
from .runs.run import Run
from .runs.states import load_into
from .training.replay import Progress, no_progress

BATCH_SIZE = 256
_CHUNK = 8
"""Batches that stay in memory while every model passes over them: inputs are read once, and
weights are changed once per chunk."""


@dataclass(frozen=True)
class Measured:
    """One model on N examples.

    Attributes:
        values: Behaviour name to (N,) float64.
        answers: (N,) printable predictions.
        confidences: (N,) probability that the model gives to its own prediction.
    """

    values: Mapping[str, np.ndarray]
    answers: np.ndarray
    confidences: np.ndarray


def _chunks(batches: Iterable[list[Example]]) -> Iterator[list[list[Example]]]:
    chunk: list[list[Example]] = []
    for batch in batches:
        chunk.append(batch)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def measure(
    task: Task,
    model: nn.Module,
    weights: Sequence[Weights],
    batches: Iterable[list[Example]],
    count: int,
    progress: Progress = no_progress,
) -> list[Measured]:
    """Measure several models of one architecture on the same examples, in evaluation mode.

    Args:
        task: Collates, runs and reads the models.
        model: A module of the architecture; its weights are overwritten.
        weights: One entry per model.
        batches: The examples, batch by batch; gone through once.
        count: How many examples there are in all, for ``progress``.
        progress: Told after every chunk of batches.

    Returns:
        One entry per model, examples in order.
    """
    parts: list[list[Measured]] = [[] for _ in weights]
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    done = 0
    with torch.inference_mode():
        for chunk in _chunks(batches):
            collated = [to_device(task.collate(examples), device) for examples in chunk]
            for number, one in enumerate(weights):
                load_into(model, one)
                parts[number] += [_measure_batch(task, model, batch) for batch in collated]
            done += sum(map(len, chunk))
            progress(done / max(count, 1), f"measuring {len(weights)} models, {done} of {count}")
    return [_joined(part) for part in parts]


def _measure_batch(task: Task, model: nn.Module, batch: Any) -> Measured:
    outputs = task.outputs(model, batch)
    predictions = task.predictions(outputs)
    return Measured(
        {n: v.double().cpu().numpy() for n, v in task.behaviours(outputs, batch).items()},
        np.asarray(predictions.answers, dtype=object),
        np.asarray(predictions.confidences, dtype=float),
    )


def _joined(parts: Sequence[Measured]) -> Measured:
    names = parts[0].values
    return Measured(
        {name: np.concatenate([part.values[name] for part in parts]) for name in names},
        np.concatenate([part.answers for part in parts]),
        np.concatenate([part.confidences for part in parts]),
    )


def _final_model(run: Run) -> nn.Module:
    return run.task.build_model(run.last.facts.build_config)


def effect_table(
    run: Run,
    examples: EvaluationSet,
    without: Sequence[Counterfactual],
    estimator: str,
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """The effect table: one row per example, stage and behaviour.

    ``effect = final - without``; a refused stage keeps its rows, with NaN.

    Args:
        run: The run; the end of its last stage is the final model.
        examples: The evaluation set.
        without: One counterfactual per stage.
        estimator: Its name, for the table.
        progress: Told of the forward passes.
    """
    usable = [c for c in without if c.weights is not None]
    weights = [run.last.end().model, *(c.weights for c in usable if c.weights is not None)]
    measured = measure(
        run.task,
        _final_model(run),
        weights,
        examples.batches(BATCH_SIZE),
        examples.count,
        progress,
    )
    final = measured[0]
    by_stage = {c.stage: m for c, m in zip(usable, measured[1:], strict=True)}
    own = examples.table()
    blocks = []
    for counterfactual in without:
        other = by_stage.get(counterfactual.stage)
        for name, values in final.values.items():
            nothing = np.full(len(own), np.nan)
            changed = nothing if other is None else other.values[name]
            block = {
                "set": examples.name,
                "example_id": own["example_id"].to_numpy(),
                "stage": counterfactual.stage,
                "behaviour": name,
                "final": values,
                "without": changed,
                "effect": values - changed,
                "estimator": estimator,
                "prediction": final.answers,
                "prediction_without": None if other is None else other.answers,
                "confidence": final.confidences,
                "confidence_without": nothing if other is None else other.confidences,
                "within_noise": pd.array([None] * len(own), dtype="boolean"),
            }
            frame = pd.DataFrame(block, columns=list(EFFECT_COLUMNS))
            blocks.append(frame.join(own.drop(columns="example_id")))
    table = pd.concat(blocks, ignore_index=True)
    for column in ("set", "stage", "behaviour", "estimator", "prediction", "prediction_without"):
        table[column] = table[column].astype("str" if column != "prediction_without" else object)
    return table


def _facts(run: Run, examples: EvaluationSet, kind: str, **more: Any) -> ResultFacts:
    behaviours = [
        BehaviourFacts(name=b.name, better=b.better, unit=b.unit, description=b.description)
        for b in run.task.behaviour_kinds
    ]
    return ResultFacts.model_validate(
        {
            "kind": kind,
            "run_digest": run.digest,
            "set_name": examples.name,
            "set_digest": examples.digest,
            "behaviours": behaviours,
            **more,
        }
    )


def attribute(
    run: Run,
    set_name: str,
    estimator: str,
    stages: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Stage effects on an evaluation set, from the stored table where it is there.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        estimator: How the counterfactuals are obtained.
        stages: Their names; None for all. Only the table of all stages is stored.
        progress: Told of counterfactuals (nine tenths of it) and forward passes.

    Raises:
        Refused: The estimator can give none of the stages.
        RunError: A stage or set is not there.
    """
    made = make_estimator(estimator)
    settings = dict(made.settings)
    final = run.last  # refuses a run without a finished stage, by name
    stored = load_result(run, set_name, "effects", estimator, settings)
    if stored is not None and stored.facts.stages[-1].stage == final.name:
        return _chosen(stored, stages)
    examples = run.evaluation_set(set_name)
    chosen = [run.stage(name) for name in stages] if stages is not None else run.stages
    without = list(
        counterfactuals(run, made, chosen, lambda share, text: progress(0.9 * share, text))
    )
    if all(c.weights is None for c in without):
        raise Refused(without[0].trust.reason)
    table = effect_table(
        run, examples, without, estimator, lambda share, text: progress(0.9 + 0.1 * share, text)
    )
    facts = _facts(
        run,
        examples,
        "effects",
        estimator=estimator,
        settings=settings,
        stages=[c.trust for c in without],
    )
    result = Result(facts, table)
    if stages is None:
        save_result(run, result)
    return result


def _chosen(result: Result, stages: Sequence[str] | None) -> Result:
    if stages is None:
        return result
    facts = result.facts.model_copy(
        update={"stages": [result.trust[name] for name in stages if name in result.trust]}
    )
    table = result.table[result.table["stage"].isin(stages)].reset_index(drop=True)
    return Result(facts, table)


def boundaries(run: Run, set_name: str, progress: Progress = no_progress) -> Result:
    """Behaviour after every boundary (observed, not estimated); stored once computed.

    A boundary whose model is of another architecture than the final one is left out.
    """
    stored = load_result(run, set_name, "boundaries")
    if stored is not None:
        return stored
    examples = run.evaluation_set(set_name)
    config = run.last.facts.build_config
    names, weights = [], []
    if run.stages[0].facts.build_config == config:
        names, weights = [BASE], [run.stages[0].start().model]
    for stage in run.stages:
        if stage.facts.build_config == config:
            names.append(stage.name)
            weights.append(stage.end().model)
    batches = examples.batches(BATCH_SIZE)
    measured = measure(run.task, _final_model(run), weights, batches, examples.count, progress)
    ids = examples.table(["example_id"])["example_id"].to_numpy()
    blocks = [
        pd.DataFrame(
            {
                "set": set_name,
                "example_id": ids,
                "boundary": boundary,
                "behaviour": name,
                "value": values,
                "prediction": model.answers,
                "confidence": model.confidences,
            },
            columns=list(BOUNDARY_COLUMNS),
        )
        for boundary, model in zip(names, measured, strict=True)
        for name, values in model.values.items()
    ]
    facts = _facts(run, examples, "boundaries", estimator="")
    result = Result(facts, pd.concat(blocks, ignore_index=True))
    save_result(run, result)
    return result
