"""What a ``transformers`` Trainer wrote beside a checkpoint: its schedule and its optimiser.

Facts for people: nothing is computed from them. ``optimizer.pt`` is read with
``weights_only=True``, so that no code in it can run; ``training_args.bin`` is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stagelens.contracts import SUPPORTED_OPTIMIZERS, RunError
from stagelens.runs.optimizer_facts import OptimizerFacts, ParameterGroup

from .checkpoints import Checkpoint, read_json_object

_MOST_STEPS = 2**53
"""More is no count of steps, nor what every reader of JSON can hold."""

STATE, OPTIMIZER = "trainer_state.json", "optimizer.pt"


@dataclass(frozen=True)
class TrainerFacts:
    """What is known of a stage's training.

    Attributes:
        updates: How many optimiser steps it had; None if not known.
        history: ``step`` (from 0), ``loss`` and ``lr`` at the steps that the Trainer logged; NaN
            where it logged only one of them.
        optimizer: Its kind and hyperparameters; parameters are not known by name.
        notes: What could not be read.
    """

    updates: int | None = None
    history: pd.DataFrame | None = None
    optimizer: OptimizerFacts | None = None
    notes: list[str] = field(default_factory=list)


def trainer_facts(checkpoint: Checkpoint) -> TrainerFacts:
    """Read what a Trainer left in a checkpoint folder, if anything.

    Files in the folder of the weights come first, then those of the folder that was given, then
    those of its last ``checkpoint-N``.
    """
    folders = checkpoint.folders
    notes: list[str] = []
    updates, history, optimizer = None, None, None
    if (state := _first(folders, STATE)) is not None:
        try:
            content = read_json_object(state)
            updates = _count(content.get("global_step"))
            history = _history(content.get("log_history"))
        except RunError as error:
            notes.append(f"{checkpoint.name}: {error}")
    if (file := _first(folders, OPTIMIZER)) is not None:
        try:
            optimizer = _optimizer(file)
        except Exception as error:  # a damaged or hostile file can make torch raise anything
            reason = str(error).strip().splitlines() or [type(error).__name__]
            notes.append(f"{checkpoint.name}: {file} is not read: {reason[0]}")
    return TrainerFacts(updates, history, optimizer, notes)


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _count(value: Any) -> int | None:
    # JSON's true is an int in Python.
    known = isinstance(value, int) and not isinstance(value, bool)
    return value if known and 0 < value <= _MOST_STEPS else None


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # JSON has whole numbers that no float holds
        return math.nan


def _history(log: Any) -> pd.DataFrame | None:
    """What was logged during training; of a step that was logged twice, the last entry counts."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log if isinstance(log, list) else ():
        step = _count(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            continue
        for key, name in (("loss", "loss"), ("learning_rate", "lr")):
            if not math.isnan(value := _number(entry.get(key))):
                # A Trainer counts updates so far; the last of them has this number, from 0.
                rows.setdefault(step - 1, {"loss": math.nan, "lr": math.nan})[name] = value
    if not rows:
        return None
    table = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    return table.rename_axis("step").reset_index()


def _optimizer(path: Path) -> OptimizerFacts | None:
    """Kind and hyperparameters; None if the kind is not supported."""
    import torch

    # Mapped, because the moments are larger than the weights, and none of them is used.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    groups = [dict(group) for group in content["param_groups"]]
    kind = _kind(groups)
    if kind is None:
        return None
    rule = SUPPORTED_OPTIMIZERS[kind]
    names = rule.hyperparameters or ()
    return OptimizerFacts.model_validate(
        {
            "name": kind,
            "groups": [
                ParameterGroup(parameters=[], hyperparameters=_plain(group, names))
                for group in groups
            ],
            "flags": {name: groups[0].get(name) for name in rule.flags},
        }
    )


def _kind(groups: Sequence[Mapping[str, Any]]) -> str | None:
    if all({"betas", "eps", "amsgrad"} <= group.keys() for group in groups):
        # Older versions of torch do not say which, but a Trainer offers only AdamW of the two.
        return "AdamW" if groups[0].get("decoupled_weight_decay", True) else "Adam"
    if all({"momentum", "dampening", "nesterov"} <= group.keys() for group in groups):
        return "SGD"
    return None


def _plain(group: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Hyperparameters as plain JSON; the learning rate is the one before the schedule."""
    found: dict[str, Any] = {}
    for name in names:
        # `lr` is what the schedule left at the end, often 0.
        value = group.get("initial_lr", group.get("lr")) if name == "lr" else group.get(name)
        if isinstance(value, bool):
            found[name] = value
        elif isinstance(value, list | tuple):
            found[name] = [float(each) for each in value]
        elif value is not None:
            found[name] = float(value)
    return found
