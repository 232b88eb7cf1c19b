"""Maps on disk: one row per example, in a table that describes itself. Nothing imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Refused
from stagelens.estimators.registry import method_of
from stagelens.runs import fact_tables
from stagelens.runs.run import Run
from stagelens.runs.schema import digest

_MAPS = 1
"""Part of every key; raised when maps are made in another way."""

WITHIN = 0.05
"""A map is shown where it sums to what it should within this share of the larger of the two
models' own changes."""
MOST_STEPS = 512
"""Steps of the integral at most; it begins with few, and doubles them until the sums hold."""
_NOTHING = 1e-6
"""Changes below this are float32 rounding, which proves nothing against a map."""

NOT_ATTRIBUTED = ("accuracy", "preference", "share of right tags")
"""Behaviours that have no gradient, or are about two texts at once."""

REFERENCES = 10
"""Examples of the set that the baseline ``others`` is made of."""

_OTHERS = f"{REFERENCES} other examples of the set in turn, drawn at random; maps are their mean"
BASELINES: Mapping[str, Mapping[str, str]] = {
    "image": {
        "black": "every pixel has the lowest value of the set",
        "white": "every pixel has the highest value of the set",
        "mean": "the mean image of the set",
        "others": _OTHERS,
    },
    "text": {
        "others": f"the words of {_OTHERS}",
        "padding": "every token of the text is the padding token",
        "mask": "every token of the text is the mask token",
        "unknown": "every token of the text is the token for unknown words",
    },
}
"""What nothing looks like: the baseline of a map by the kind of input, the usual one first."""


@dataclass(frozen=True)
class Map:
    """Where in one input two models' behaviour sits, the final one's and one without a stage.

    A place is a pixel or a token. A model's map sums to its behaviour on the input less that on
    the baseline, and the stage's map, the difference of the two, to the effect on the input less
    that on the baseline. Where the baseline is several inputs, everything on it is their mean.

    Attributes:
        example_id: Of the example.
        tokens: (T,) printable pieces; None for an image.
        final: (H, W) or (T,) the final model's map.
        without: The same of the model without the stage.
        inputs: Behaviour of the two models on the input.
        baselines: The same on the baseline.
        steps: Of the integral, for the model that took more.
    """

    example_id: str
    tokens: tuple[str, ...] | None
    final: np.ndarray
    without: np.ndarray
    inputs: tuple[float, float]
    baselines: tuple[float, float]
    steps: int

    @property
    def stage(self) -> np.ndarray:
        """The stage's map: final - without."""
        return self.final - self.without

    @property
    def effect(self) -> float:
        """The stage effect on the input, by the counterfactual's weights."""
        return self.inputs[0] - self.inputs[1]

    @property
    def baseline_effect(self) -> float:
        """The stage effect on the baseline, which no place of the input has a part in."""
        return self.baselines[0] - self.baselines[1]

    @property
    def total(self) -> float:
        """What the places of the stage's map sum to."""
        return float(self.stage.sum())

    @property
    def error(self) -> float:
        """How far the sums of the three maps are from what they should be, at worst.

        A share of the larger of the two models' own changes from baseline to input.
        """
        gaps = self.gaps
        # The stage's map is the difference of the two, and so is its gap.
        worst = max(*map(abs, gaps), abs(gaps[0] - gaps[1]))
        changes = [here - there for here, there in zip(self.inputs, self.baselines, strict=True)]
        # The floor lets gaps of float32 rounding pass where neither model changes.
        return worst / max(*map(abs, changes), _NOTHING / WITHIN)

    @property
    def gaps(self) -> tuple[float, float]:
        """How far the sums of the two models' maps are from the models' own changes."""
        ends = zip((self.final, self.without), self.inputs, self.baselines, strict=True)
        first, second = (float(own.sum()) - (here - there) for own, here, there in ends)
        return first, second

    @property
    def holds(self) -> bool:
        """Whether the maps sum to what they should; where not, none of them is to be shown."""
        return self.error <= WITHIN


class MapFacts(BaseModel):
    """What maps of some examples have in common, and are found by.

    Attributes:
        run_digest: Of the run.
        set_digest: Of the evaluation set.
        estimator: How the counterfactual was obtained.
        settings: Of the estimator.
        stage: The stage that is left out.
        behaviour: What is attributed.
        baseline: One of :data:`BASELINES`.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    set_digest: str
    estimator: str
    settings: dict[str, Any]
    stage: str
    behaviour: str
    baseline: str


def check_baseline(kind: str, baseline: str | None) -> str:
    """The baseline that was asked for, or the usual one of this kind of input.

    Raises:
        Refused: There is none of that name.
    """
    known = BASELINES[kind]
    if baseline is not None and baseline not in known:
        raise Refused(f"there is no baseline {baseline!r} for {kind}s; use {', '.join(known)}")
    return baseline or next(iter(known))


def map_facts(
    run: Run,
    set_name: str,
    estimator: str,
    settings: Mapping[str, Any],
    stage: str,
    behaviour: str,
    baseline: str,
) -> MapFacts:
    """What such maps are found by; see :class:`MapFacts`."""
    return MapFacts(
        run_digest=run.digest,
        set_digest=run.evaluation_set(set_name).digest,
        estimator=estimator,
        settings=dict(settings),
        stage=stage,
        behaviour=behaviour,
        baseline=baseline,
    )


def _path(run: Run, facts: MapFacts) -> Path:
    key = digest(_MAPS, method_of(facts.estimator), facts.model_dump())[:32]
    return run.files.inside(f"results/saliency/{key}.parquet")


def load_maps(run: Run, facts: MapFacts, ids: Sequence[str] | None = None) -> dict[str, Map]:
    """The stored maps of these examples, or of all; those that are not there are left out."""
    chosen = None if ids is None else [("example_id", "in", list(ids))]
    stored = fact_tables.read_arrow(_path(run, facts), MapFacts, filters=chosen)
    if stored is None or stored[0] != facts:
        return {}
    try:
        found = [_read(row) for row in stored[1].to_pylist()]
    except (KeyError, TypeError, ValueError):
        return {}  # damaged: maps are made again
    return {each.example_id: each for each in found}


def _read(row: Mapping[str, Any]) -> Map:
    tokens, shape = row["tokens"], tuple(row["shape"])
    return Map(
        example_id=row["example_id"],
        tokens=None if tokens is None else tuple(tokens),
        final=np.asarray(row["final"], dtype=float).reshape(shape),
        without=np.asarray(row["without"], dtype=float).reshape(shape),
        inputs=(row["final_input"], row["without_input"]),
        baselines=(row["final_baseline"], row["without_baseline"]),
        steps=row["steps"],
    )


def save_maps(run: Run, facts: MapFacts, maps: Sequence[Map]) -> Path:
    """Add maps to those that are stored. Atomic.

    Of two processes that add at the same time, one may lose its maps; they are then made again.
    """
    every = load_maps(run, facts) | {each.example_id: each for each in maps}
    path = _path(run, facts)
    fact_tables.write(path, pd.DataFrame([_row(each) for each in every.values()]), facts)
    return path


def _row(one: Map) -> dict[str, Any]:
    return {
        "example_id": one.example_id,
        "tokens": None if one.tokens is None else list(one.tokens),
        # Parquet has no arrays of two dimensions, so maps are stored flat.
        "shape": list(one.final.shape),
        "final": one.final.ravel(),
        "without": one.without.ravel(),
        "final_input": one.inputs[0],
        "without_input": one.inputs[1],
        "final_baseline": one.baselines[0],
        "without_baseline": one.baselines[1],
        "steps": one.steps,
    }
