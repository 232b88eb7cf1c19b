"""How far true errors of first order lie above expected ones, learned where both are known.

The expected error of first order (:mod:`stagelens.derivatives.second_order`) is an estimate. On the
*runs that bounds were chosen on*, replays told the true error beside it; ``neglected_bounds.json``
holds, by horizon, the line of the expected error that nine of ten true errors stay within, and how
often that held on **other** runs. Both are made by ``python -m tests.benchmarks.neglected_terms``.
Nothing here imports torch.

A bound is promised only where such runs were measured: not for other behaviours, longer horizons,
larger expected errors, or other kinds of training. There it is not known.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

FUNCTIONS = Path(__file__).parent / "neglected_bounds.json"

Kind = Literal["one", "several", "unrolled-jump", "unrolled-scale"]
"""Of what an error is: of leaving a part of a stage's training examples out, on the behaviour of
``one`` evaluation example or of ``several``; or of leaving out the stage, by an estimate."""

Span = Literal["near", "stage", "final"]
"""Which horizons: up to :data:`NEAR` steps later, more within the stage, and the final model."""

NEAR = 16

SEVERAL = 16
"""From so many evaluation examples on, errors are taken over several; below, as of one."""

_BEYOND = 1.1
"""How far beyond the longest that was measured, in shares of it."""


class Line(BaseModel):
    """Bounds on true errors of one kind and span: a line of the expected error.

    Attributes:
        floor: Added to the expected error, which may be small by chance.
        factor: What the sum is multiplied by.
        up_to: The largest expected error of which a bound is known.
        cases: How many true errors both were chosen on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float
    factor: float
    up_to: float
    cases: int

    def bound(self, expected: float) -> float | None:
        """What nine of ten true errors stay within, at least the expected one."""
        if not expected <= self.up_to:  # NaN too
            return None
        return max(self.factor * (self.floor + expected), expected)


class Held(BaseModel):
    """How often a bound held on runs that it was not chosen on.

    Attributes:
        kind: Of the errors.
        scenario: Of the runs; empty for all.
        span: Of horizons; empty for all.
        kept: How many true errors stayed within.
        cases: How many there were.
        runs: Of how many runs.
        low: Lower end of the 95 % interval of the share, by drawing runs anew; None for one run.
        high: Upper end.
        unknown: How many more there were for which nothing was promised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    scenario: str
    span: Span | Literal[""]
    kept: int
    cases: int
    runs: int
    low: float | None
    high: float | None
    unknown: int


class Bounds(BaseModel):
    """Everything that was learned.

    Attributes:
        level: The share of true errors that is promised to stay within, 0 to 1.
        probes: How many steps of a stage were looked at, see ``second_order.PROBES``.
        chosen_on: Names of the runs.
        told_of: Names of the other runs, by which ``held`` tells what that is worth.
        scenarios: That both are of.
        optimizers: That trained runs of at least two scenarios that bounds were chosen on; of
            others nothing is promised.
        tasks: Theirs.
        behaviours: Whose errors were measured.
        steps: The longest horizon within a stage.
        final_steps: The most steps to the final model.
        shares: The smallest and the largest part of a stage that was left out.
        kinds: The lines, by kind and span.
        held: What they were worth.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: float
    probes: int
    chosen_on: list[str]
    told_of: list[str]
    scenarios: list[str]
    optimizers: list[str]
    tasks: list[str]
    behaviours: list[str]
    steps: int
    final_steps: int
    shares: tuple[float, float]
    kinds: dict[Kind, dict[Span, Line]]
    held: list[Held]

    def of(self, kind: Kind, scenario: str = "", span: str = "") -> Held:
        """How often it held."""
        own = (kind, scenario, span)
        return next(h for h in self.held if (h.kind, h.scenario, h.span) == own)


@lru_cache(maxsize=1)
def bounds() -> Bounds:
    """What was learned."""
    return Bounds.model_validate_json(FUNCTIONS.read_text("utf-8"))


def kind_of(count: int) -> Kind:
    """The kind of error of so many evaluation examples."""
    return "several" if count >= SEVERAL else "one"


def bound(kind: Kind, span: Span, expected: float) -> float | None:
    """What nine of ten true errors stay within; None where that is not known."""
    found = bounds().kinds[kind].get(span)
    return None if found is None else found.bound(expected)


def span_of(horizon: int | None) -> Span:
    """The span of a horizon in steps; None for the final model."""
    return "final" if horizon is None else "near" if horizon <= NEAR else "stage"


def beyond(behaviour: str, steps: int, final: bool, share: float) -> str:
    """What was not measured of a horizon, as a reason; empty where it was.

    Args:
        behaviour: On what it is.
        steps: How many steps later.
        final: Whether that is the final model, later stages included.
        share: Of the stage's examples that are left out.
    """
    known = bounds()
    if behaviour not in known.behaviours:
        return f"errors on the {behaviour} were not measured, only on the {known.behaviours[0]}"
    most = known.final_steps if final else known.steps
    if steps > _BEYOND * most:
        return f"no run was measured beyond {most:,} steps"
    low, high = known.shares
    if not low / _BEYOND <= share <= _BEYOND * high:
        parts = f"{100 * low:.0f} %" if low == high else f"{100 * low:.0f} to {100 * high:.0f} %"
        return f"only parts of {parts} were left out where it was measured"
    return ""


_SPANS: dict[str, str] = {
    "near": f"up to {NEAR} steps later",
    "stage": "later in the stage",
    "final": "of the final model",
}


_OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}
_DATA = {"digits": "images of digits", "fashion": "Fashion-MNIST images", "comments": "comments"}


def _measured_on(scenario: str) -> str:
    """``on images of digits, with AdamW at a learning rate of 5e-4``."""
    data, _, training = scenario.partition("-")
    optimizer, _, rate = training.partition("-")
    said = f"on {_DATA.get(data, data)}"
    if not training:
        return said
    return f"{said}, with {_OPTIMIZERS.get(optimizer, optimizer)} at a learning rate of {rate}"


def held_sentence(kind: Kind) -> str:
    """What was promised, and what was measured; empty where nothing was."""
    known = bounds()
    told = [h for h in known.held if h.kind == kind and h.span and h.cases >= _TOLD]
    parts = [f"{_share(h)} of {h.cases:,} errors {_SPANS[h.span]}" for h in told if not h.scenario]
    if not parts:
        return ""
    runs = known.of(kind).runs
    said = (
        f"{100 * known.level:.0f} % are promised; in {runs} runs that it was not chosen on it held "
        f"for {', '.join(parts)}"
    )
    by_scenario = [h for h in told if h.scenario]
    if not by_scenario:
        return f"{said}."
    worst = min(by_scenario, key=lambda h: h.kept / h.cases)
    where = _measured_on(worst.scenario)
    return f"{said}; least, {_share(worst)}, {_SPANS[worst.span]}, {where}."


_TOLD = 5
"""Shares of fewer errors are not told."""


def _share(held: Held) -> str:
    return f"{100 * held.kept / held.cases:.0f} %"
