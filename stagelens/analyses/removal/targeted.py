"""The smallest edit that closes a gap, with a strength of its own for every layer.

A smooth objective proposes, measured accuracy decides. Proposals are the strengths s that minimise

    w L_group(s) + (1 - w) L_control(s) + lambda |edit(s)|^2 / |full removal|^2,    0 <= s <= 1,

with L the mean loss of the examples, by L-BFGS-B from full removal; there are as many unknowns as
layers. The weight w of the group falls until the control group's measured accuracy drops by no
more than the tolerance; then the price lambda of the edit's size rises as long as the measured
gap stays closed, or as small as it was found to get. Of all edits measured, the smallest
that does so within the tolerance is taken. Everything happens on the validation part, and in a
fixed order, so the answer is reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.contracts import ProgressCallback, no_progress
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .edits import Material
from .trials import Goal, Trial, Trials

_WEIGHTS = (0.5, 0.25, 0.125)
_PRICES = (0.003, 0.03, 0.1, 0.3, 1.0, 3.0)
_SHRUNK = (0.75, 0.5, 0.25)
_USUAL = 16
"""About how many edits a search measures; for its progress."""


@dataclass(frozen=True)
class Outcome:
    """What the search found.

    Attributes:
        stages: Rows of the strengths.
        layers: Columns of the strengths.
        chosen: The edit.
        before: No edit.
        closed: Whether the edit closes the gap within the tolerance.
        tried: How many edits were measured.
    """

    stages: Sequence[str]
    layers: Sequence[str]
    chosen: Trial
    before: Trial
    closed: bool
    tried: int

    def by_layer(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Strengths as an edit has them: per stage the largest, per layer a fraction of it."""
        strengths, layers = {}, {}
        for stage, row in zip(self.stages, np.round(self.chosen.strengths, 4), strict=True):
            if row.max() > 0:
                strengths[stage] = float(row.max())
                layers[stage] = dict(zip(self.layers, (row / row.max()).tolist(), strict=True))
        return strengths, layers


def search(
    run: Run,
    examples: EvaluationSet,
    material: Material,
    stages: Sequence[str],
    goal: Goal,
    validation: np.ndarray,
    progress: ProgressCallback = no_progress,
) -> Outcome:
    """The smallest edit that closes the gap, see the module.

    Args:
        run: The run.
        examples: The evaluation set, N examples.
        material: Counterfactuals of the stages.
        stages: Those that may be taken out.
        goal: On all N examples.
        validation: (N,) bool, the examples to choose on; others are not looked at.
        progress: Called after every measured edit.

    Raises:
        Refused: One of the two groups has no labelled example to choose on.
    """
    bench = Trials(run, examples, material, stages, goal, validation)
    looking = _Search(bench, goal.tolerance, progress)
    for weight in _WEIGHTS:
        widest = looking.propose(weight, _PRICES[0])
        if looking.keeps(widest):
            break
    else:
        # No weight keeps the tolerance, so the last proposal is shrunk as a whole.
        for share in _SHRUNK:
            if looking.keeps(looking.measure(share * widest.strengths)):
                break
    if looking.keeps(widest):
        looking.make_cheaper(weight, widest)
    chosen = looking.best()
    return Outcome(
        tuple(stages),
        bench.layers,
        chosen,
        looking.before,
        chosen.gap <= 0,
        len(looking.tried),
    )


class _Search:
    """Everything that was measured so far."""

    def __init__(self, bench: Trials, tolerance: float, progress: ProgressCallback) -> None:
        self.bench, self.tolerance, self.progress = bench, tolerance, progress
        self.tried: list[Trial] = []
        # One of those tried, so that there always is one that keeps the tolerance.
        self.before = self.measure(np.zeros(bench.shape))

    def measure(self, strengths: np.ndarray) -> Trial:
        """Measure one more edit."""
        one = self.bench.measured(strengths)
        self.tried.append(one)
        # How many there will be is not known, so progress stops short of the end.
        share = min(len(self.tried) / _USUAL, 0.95)
        self.progress(share, f"Searching: {len(self.tried)} edits measured")
        return one

    def propose(self, weight: float, price: float, start: Trial | None = None) -> Trial:
        """The best edit by the smooth objective, measured."""
        begin = np.ones(self.bench.shape) if start is None else start.strengths
        return self.measure(self.bench.proposed(weight, price, begin))

    def keeps(self, one: Trial) -> bool:
        """Whether an edit keeps the tolerance."""
        return self.before.control - one.control <= self.tolerance

    @property
    def reach(self) -> float:
        """The smallest gap reached within the tolerance; never below 0, which closes it."""
        return max(0.0, min(one.gap for one in self.tried if self.keeps(one)))

    def make_cheaper(self, weight: float, widest: Trial) -> None:
        """Raise the price of size until the gap grows, then halve the last step twice."""
        lowest, enough = _PRICES[0], widest
        for highest in _PRICES[1:]:
            # From the last good edit, which a higher price moves only so far.
            one = self.propose(weight, highest, enough)
            if not self._does(one):
                break
            lowest, enough = highest, one
        else:
            return
        for _ in range(2):
            # Prices grow by factors, so the middle of two is their geometric mean.
            price = (lowest * highest) ** 0.5
            one = self.propose(weight, price, enough)
            if self._does(one):
                lowest, enough = price, one
            else:
                highest = price

    def _does(self, one: Trial) -> bool:
        return self.keeps(one) and one.gap <= self.reach

    def best(self) -> Trial:
        """The smallest edit that closes the gap as far as it can be closed."""
        return min((one for one in self.tried if self._does(one)), key=lambda one: one.size)
