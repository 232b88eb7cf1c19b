"""What an edit is, in numbers and names. Nothing here imports torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from stagelens.contracts import StageLensError
from stagelens.runs.schema import canonical_json


class Edit(BaseModel):
    """Which stages are taken out of the final model, by which estimator, and how much of each.

    Attributes:
        estimator: How the counterfactuals are obtained.
        settings: Its own arguments.
        strengths: Stage to strength, 0 (nothing) to 1 (all of it).
        layers: Stage to layer to a fraction of the stage's strength; layers that are not named
            have all of it. Names are those of ``edits.layers_of``.
    """

    model_config = ConfigDict(frozen=True)

    estimator: str
    settings: dict[str, Any] = {}
    strengths: dict[str, float]
    layers: dict[str, dict[str, float]] = {}

    @field_validator("strengths", mode="after")
    @classmethod
    def _within(cls, strengths: dict[str, float]) -> dict[str, float]:
        for stage, strength in strengths.items():
            if not 0 <= strength <= 1:
                raise StageLensError(
                    f"a strength of {strength:g} for {stage} is not between 0 and 1; 1 takes all "
                    "of a stage out"
                )
        # A strength of 0 is left out, so that equal edits have equal digests.
        return {stage: float(strength) for stage, strength in strengths.items() if strength}

    @property
    def settings_key(self) -> str:
        """The same for equal settings."""
        return canonical_json(self.settings)

    @property
    def estimate(self) -> str:
        """The estimator with its settings, for people."""
        words = [f"{name} {value:g}" for name, value in self.settings.items()]
        return f"{self.estimator} ({', '.join(words)})" if words else self.estimator

    def strength(self, stage: str, layer: str) -> float:
        """How much of a stage is taken out of one layer."""
        return self.strengths.get(stage, 0.0) * self.layers.get(stage, {}).get(layer, 1.0)
