"""StageLens: which stage of a model's training is to credit or to blame for what it does."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stagelens.assembling.assemble import assemble
    from stagelens.contracts import (
        Behaviour,
        Example,
        Objective,
        Predictions,
        Scorer,
        StageLensError,
        Task,
        register_optimizer,
    )
    from stagelens.recording.lightning_callback import LightningStageRecorder
    from stagelens.recording.recorder import Recorder
    from stagelens.recording.trainer_callback import StageRecorderCallback
    from stagelens.runs.run import Run, open_run
    from stagelens.runs.sets.columns import SetColumns

__all__ = [
    "Behaviour",
    "Example",
    "LightningStageRecorder",
    "Objective",
    "Predictions",
    "Recorder",
    "Run",
    "Scorer",
    "SetColumns",
    "StageLensError",
    "StageRecorderCallback",
    "Task",
    "assemble",
    "attribute",
    "open_run",
    "register_optimizer",
    "tasks",
]

# Names are imported when first used: `import stagelens` stays quick and needs no torch.
_HOMES = {
    "Behaviour": "contracts",
    "Example": "contracts",
    "Objective": "contracts",
    "LightningStageRecorder": "recording.lightning_callback",
    "Predictions": "contracts",
    "Scorer": "contracts",
    "StageLensError": "contracts",
    "Task": "contracts",
    "register_optimizer": "contracts",
    "Recorder": "recording.recorder",
    "StageRecorderCallback": "recording.trainer_callback",
    "assemble": "assembling.assemble",
    "attribute": "trust.settling",
    "Run": "runs.run",
    "open_run": "runs.run",
    "SetColumns": "runs.sets.columns",
}


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module(".tasks", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
