"""An estimator as somebody would add one: a class with its attributes, and one registration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from stagelens.contracts import ProgressCallback
from stagelens.estimators import registry
from stagelens.estimators.protocol import Counterfactual, Estimator
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run, Stage


class StartState(Estimator):
    """The model as it was before the stage, so that later stages are left out too."""

    name = "start-state"
    title = "Start state"
    note = "a toy"
    preference = -10
    proposed = True

    @classmethod
    def seconds(cls, stages: Sequence[Stage], settings: Mapping[str, Any]) -> float | None:
        """It only reads a state."""
        return 1.5

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """See :class:`~stagelens.estimators.protocol.Estimator`."""
        for stage in stages:
            trust = StageTrust(
                stage=stage.name, estimator=self.name, trust="estimated", reason="A toy."
            )
            yield Counterfactual(stage.name, stage.start().model, trust)


def register_toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register it for the length of a test; returns its name."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    registry.register(StartState)
    return StartState.name
