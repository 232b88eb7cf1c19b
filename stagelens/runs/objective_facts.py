"""What ``stage.json`` says of a stage's objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MODEL = "model"
"""Name of the objective that is the model's own loss."""
OWN = "own"
"""Name of an objective that is a function of the user's, which is code that no run keeps."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ReferenceFacts(_Facts):
    """Where a reference model comes from, and how it moves.

    Attributes:
        kind: ``"start"`` or ``"end"`` of a stage, which without an earlier stage is another one;
            ``"adapter off"``, the trained model with its adapter off; or ``"kept"``, a model from
            outside the run, which is a state of the stage's own.
        stage: Whose start or end; None for the start of the stage itself.
        build_config: For ``task.build_model``, where a kept model differs from the task's, or
            another one is not built as in the stage whose state it holds.
        sync_every: Updates between two moves towards the trained model; None where it stays.
        sync_mixing: What a move takes of the trained model.
    """

    kind: Literal["start", "end", "adapter off", "kept"] = "start"
    stage: str | None = None
    build_config: dict[str, Any] | None = None
    sync_every: int | None = Field(default=None, ge=1)
    sync_mixing: float = 1.0

    @property
    def said(self) -> str:
        """Where it comes from, in words."""
        if self.kind in ("start", "end"):
            where = "the stage" if self.stage is None else f"stage {self.stage!r}"
            said = f"the model at the {self.kind} of {where}"
        elif self.kind == "adapter off":
            said = "the model with its adapter off"
        else:
            said = "a model that the run keeps"
        return said if self.sync_every is None else f"{said}, moved every {self.sync_every} steps"


class ObjectiveFacts(_Facts):
    """What a stage minimised.

    Attributes:
        name: As registered.
        settings: With which the registered objective is made again.
        references: Reference models by name.
        on_samples: Whether it was trained on answers that the model had sampled.
        autocast: In mixed precision, what autocast was around: the whole loss, or the models'
            passes only, with outputs in float32, as accelerate has it.
    """

    name: str = MODEL
    settings: dict[str, Any] = {}
    references: dict[str, ReferenceFacts] = {}
    on_samples: bool = False
    autocast: Literal["loss", "passes"] = "loss"

    @property
    def own(self) -> bool:
        """Whether it is a function of the user's, which has to be given again."""
        return self.name == OWN

    @property
    def title(self) -> str:
        """What people call it: the name of the user's function, or the registered name."""
        return str(self.settings.get("function", self.name)) if self.own else self.name

    @property
    def moves_references(self) -> bool:
        """Whether a reference model follows the trained one."""
        return any(reference.sync_every for reference in self.references.values())
