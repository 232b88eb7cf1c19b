"""What an estimator is, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stagelens.contracts import Progress
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import Weights

from .stage_trust import StageTrust


@dataclass(frozen=True)
class Twins:
    """Two cheap models whose difference sharpens an effect.

    Attributes:
        factual: Trained cheaply with the stage.
        counterfactual: Trained in the same cheap way without it.
        sampling: Relative error to expect from their small batches alone.
    """

    factual: Weights
    counterfactual: Weights
    sampling: float = 0.0


@dataclass(frozen=True)
class Counterfactual:
    """The model as it would be without one stage.

    Attributes:
        stage: The stage that is left out.
        weights: The model, None where the estimator refused.
        trust: What is known of it; also says at what cost it was obtained.
        twins: Where the estimator has them.
        repeated: The final model as the same work gives it with the stage, where that should be
            the recorded one and is not bit for bit; None where it is.
    """

    stage: str
    weights: Weights | None
    trust: StageTrust
    twins: Twins | None = None
    repeated: Weights | None = None


class Estimator(Protocol):
    """A way to obtain counterfactuals.

    Attributes:
        name: As it stands in tables and on the command line.
        settings: Plain JSON that the counterfactuals depend on; part of the cache key.
    """

    name: str
    settings: Mapping[str, Any]

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: Progress
    ) -> Iterator[Counterfactual]:
        """The models without each of ``stages``, in any order; never asked for the last stage.

        Several stages are asked for at once, so that they can share work.

        Raises:
            Refused: None of them can be given; says why and what to use instead.
        """
        ...


METHOD = 9
"""Part of every result's key; raised when an estimator or what it says of its error changes."""
