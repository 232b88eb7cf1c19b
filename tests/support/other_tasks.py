"""Task classes that take the digits demo's config and are not its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from stagelens.tasks import ImageClassification


class Renamed(ImageClassification):
    """Of another registered name."""

    name: ClassVar[str] = "renamed"


class Wider(ImageClassification):
    """Builds a wider model."""

    def build_model(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        return super().build_model({**(config or self.config["model"]), "hidden": 65})
