"""Errors that estimates promise, from how far hundreds of recorded ones were off.

The *calibration bench* holds small recordings of many families (a family is a network and a data
set). Each estimate's true error is known there, because each was replayed. For every kind of
estimate a linear function of its features (see :mod:`.evidence`) gives the logarithm of the error
that nine of ten estimates stay within: a quantile regression, raised until this also holds for
families that it has not seen (split conformal prediction, by family).

``calibration.json`` holds the functions, ``calibration.parquet`` the bench's estimates; both are
made by ``python -m tests.benchmarks.calibration``. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

_HERE = Path(__file__).parent
FUNCTIONS, POINTS = _HERE / "calibration.json", _HERE / "calibration.parquet"

_BEYOND = 0.1
"""How far outside of what the bench holds a feature may lie, in shares of its range there."""


class Function(BaseModel):
    """A linear function of features.

    Attributes:
        constant: Its value where all features are 0.
        slopes: By the name of the feature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    constant: float
    slopes: dict[str, float]

    def __call__(self, features: Mapping[str, float]) -> float:
        """Its value."""
        return self.constant + math.fsum(s * features[n] for n, s in self.slopes.items())


class Kind(BaseModel):
    """What the bench taught of one kind of estimate.

    Attributes:
        estimates: How many estimates of this kind the bench holds.
        recordings: Of how many recordings.
        typical: Their median relative error.
        ranges: Lowest and highest value of each feature on the bench.
        upper: Logarithm of the relative error that nine of ten stay within.
        median: Logarithm of the relative error that half of them stay within.
        group: Logarithm of the error of a group's mean, in root mean square effects, that nine of
            ten stay within.
        wrong_signs: Logarithm of the share of wrong signs, plus :data:`SMALLEST_SHARE`, that nine
            of ten stay within.
        reliable_below: Largest upper error that is called reliable; None where none is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimates: int
    recordings: int
    typical: float
    ranges: dict[str, tuple[float, float]]
    upper: Function
    median: Function
    group: Function
    wrong_signs: Function
    reliable_below: float | None


SMALLEST_SHARE = 0.01
"""Added to shares of wrong signs, so that their logarithm is finite where there are none."""


class Calibration(BaseModel):
    """Everything that the bench taught.

    Attributes:
        recordings: How many recordings it holds.
        families: Their families.
        kinds: By kind of estimate, see :func:`kind_of`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recordings: int
    families: list[str]
    kinds: dict[str, Kind]


@dataclass(frozen=True)
class Promise:
    """What is promised of an estimate.

    Attributes:
        typical: Relative error that half of such estimates stay within.
        upper: Relative error that nine of ten stay within.
        group: Error of a group's mean that nine of ten stay within, in root mean square effects.
        wrong_signs: Share of wrong signs, 0 to 1, that nine of ten stay within.
        reliable: Whether it may be called reliable.
        low: Whether its upper error is low enough for it.
        familiar: Whether the bench holds estimates whose features are like these.
    """

    typical: float
    upper: float
    group: float
    wrong_signs: float
    reliable: bool
    low: bool
    familiar: bool


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """What the bench taught."""
    return Calibration.model_validate_json(FUNCTIONS.read_text("utf-8"))


def kind_of(estimator: str, partial: bool = False) -> str:
    """The kind of an estimate: its estimator, and whether partial replay was part of it."""
    return f"{estimator} after exact stages" if partial else estimator


def known_kind(kind: str) -> Kind | None:
    """What the bench taught of a kind of estimate; None for one that it does not hold."""
    return calibration().kinds.get(kind)


def promised(kind: Kind, features: Mapping[str, float]) -> Promise:
    """What is promised of an estimate with these features.

    Args:
        kind: Of the estimate.
        features: By name; at least those that the kind's functions use.
    """
    familiar = all(_inside(features[name], *ends) for name, ends in kind.ranges.items())
    # What lies outside of the bench may raise a promise, but never lower it.
    ends = {n: min(max(features[n], low), high) for n, (low, high) in kind.ranges.items()}

    def most(function: Function) -> float:
        return math.exp(max(function(features), function({**features, **ends})))

    upper = most(kind.upper)
    wrong = min(max(most(kind.wrong_signs) - SMALLEST_SHARE, 0.0), 1.0)
    low_enough = kind.reliable_below is not None and upper <= kind.reliable_below
    return Promise(
        # The functions are fitted one by one, and may cross.
        typical=min(most(kind.median), upper),
        upper=upper,
        group=min(most(kind.group), upper),
        wrong_signs=wrong,
        reliable=low_enough and familiar,
        low=low_enough,
        familiar=familiar,
    )


def _inside(value: float, lowest: float, highest: float) -> bool:
    room = _BEYOND * (highest - lowest)
    return lowest - room <= value <= highest + room


def points() -> pd.DataFrame:
    """The bench's estimates, each judged by functions fitted without its family.

    Returns:
        A row per estimate: ``family``, ``recording``, ``stage``, ``estimator`` with its settings,
        ``promised`` (upper relative error), ``error`` (true relative error), ``r``, ``reliable``.
    """
    return pd.read_parquet(POINTS)
