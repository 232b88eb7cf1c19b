"""What every room may rely on: errors, protocols of tasks and objectives, behaviours, optimisers.

This room imports nothing else of StageLens, and no heavy library, so that any room may import it.
"""

from .behaviours import (
    ACCURACY,
    BASE,
    CARRIED,
    OTHER_EXAMPLES,
    SLICE_COLUMN,
    Behaviour,
    Example,
    Predictions,
    TokenValues,
    Trust,
)
from .errors import (
    NotSeparable,
    RecordingError,
    RecordingWarning,
    Refused,
    RunError,
    SetError,
    StageLensError,
    TaskError,
)
from .importing import imported
from .objective import MICRO_BATCHES, REFERENCE, Objective, ReferenceModel
from .optimizer_registry import (
    optimizer_class,
    optimizer_name,
    optimizer_rule,
    register_optimizer,
    told_absent,
    why_absent,
)
from .optimizers import SUPPORTED_OPTIMIZERS, OptimizerRule
from .progress import Progress, ProgressCallback, no_progress
from .scorer import REFERENCE_COLUMN, SCORE, Answered, Scorer, is_fraction, is_score
from .task import BESIDE, CHAT_TEMPLATE, GENERATION, Task, TaskTraits

__all__ = [
    "ACCURACY",
    "BASE",
    "BESIDE",
    "CARRIED",
    "CHAT_TEMPLATE",
    "GENERATION",
    "MICRO_BATCHES",
    "OTHER_EXAMPLES",
    "REFERENCE",
    "REFERENCE_COLUMN",
    "SCORE",
    "SLICE_COLUMN",
    "SUPPORTED_OPTIMIZERS",
    "Answered",
    "Behaviour",
    "Example",
    "NotSeparable",
    "Objective",
    "OptimizerRule",
    "Predictions",
    "Progress",
    "ProgressCallback",
    "RecordingError",
    "RecordingWarning",
    "ReferenceModel",
    "Refused",
    "RunError",
    "Scorer",
    "SetError",
    "StageLensError",
    "Task",
    "TaskError",
    "TaskTraits",
    "TokenValues",
    "Trust",
    "imported",
    "is_fraction",
    "is_score",
    "no_progress",
    "optimizer_class",
    "optimizer_name",
    "optimizer_rule",
    "register_optimizer",
    "told_absent",
    "why_absent",
]
