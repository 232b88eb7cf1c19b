"""How one stage is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from stagelens.contracts import Objective, RecordingError, ReferenceModel
from stagelens.runs.data_rows import DataRows

from .parallel_models import Kind

GivenObjective = str | Objective | Callable[..., Any] | None
"""A registered name, an objective, or a function ``loss(model, batch)``; None for the model's own
loss."""
GivenReferences = Mapping[str, nn.Module | ReferenceModel]
"""Reference models by name; those left out are the start of the stage."""


@dataclass(frozen=True)
class StageSettings:
    """Settings of a stage's recording; see :meth:`stagelens.Recorder.stage` for their meaning.

    Attributes:
        kind: What shares its training between processes; None for one.
        data: The data set whose rows stand for its batches; None to keep these.

    Raises:
        RecordingError: A setting is unusable.
    """

    description: str = ""
    clip_norm: float | None = None
    accumulation: int = 1
    checkpoint_every: int | None = None
    keep_batches: Literal["all", "none"] | int = "all"
    flush_every: int = 1024
    build_config: dict[str, Any] | None = None
    reinitialised: tuple[str, ...] = ()
    tokenizer: Any = None
    on_problem: Literal["warn", "raise"] = "warn"
    objective: GivenObjective = None
    references: GivenReferences = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    parent: str | None = None
    keep_optimizer: bool = False
    kind: Kind | None = None
    data: DataRows | None = None

    def __post_init__(self) -> None:
        keep = self.keep_batches
        if not (
            keep in ("all", "none") if isinstance(keep, str) else isinstance(keep, int) and keep > 0
        ):
            raise RecordingError(
                f'keep_batches={keep!r} is not known; pass "all", "none" or a number n to '
                "keep the batches of every n-th step"
            )
        if self.on_problem not in ("warn", "raise"):
            raise RecordingError(f'on_problem={self.on_problem!r}; pass "warn" or "raise"')
        for label, value in (
            ("accumulation", self.accumulation),
            ("flush_every", self.flush_every),
            ("checkpoint_every", 1 if self.checkpoint_every is None else self.checkpoint_every),
        ):
            if not isinstance(value, int) or value < 1:
                raise RecordingError(f"{label}={value!r}; pass a whole number of at least 1")
        if self.clip_norm is not None:
            # Not ``<= 0``, which NaN would pass.
            if not self.clip_norm > 0:
                raise RecordingError(f"clip_norm={self.clip_norm!r}; pass a positive norm, or None")
            object.__setattr__(self, "clip_norm", float(self.clip_norm))  # may be an int

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this many steps."""
        return self.checkpoint_every is not None and step % self.checkpoint_every == 0

    def keeps(self, step: int) -> bool:
        """Whether the batches of this step are kept."""
        if isinstance(self.keep_batches, str):
            return self.keep_batches == "all"
        return step % self.keep_batches == 0
