"""What a gate is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stagelens.contracts.scorer import SCORE

from .report import Estimand

DRAWS = 8
"""Redraws of each recipe by default."""
POINTS = 2.0
"""How many points a share may drop by default."""


@dataclass(frozen=True)
class Asked:
    """What a gate is asked.

    Attributes:
        set_name: Of the new run; None for the only one, else ``test``.
        slices: See ``slices.chosen_slices``.
        behaviours: Names; without any accuracy, or else the first that is measured.
        max_drop: Behaviour to how much it may drop, in points of a share, else in its own unit;
            ``""`` for all others.
        estimand: What drops are of; None for the usual, see :attr:`drops_of`.
        draws: Redraws of each recipe; 0 for none.
        stages: Whether stages are looked at where a slice regressed.
    """

    set_name: str | None = None
    slices: Sequence[str] = ()
    behaviours: Sequence[str] = ()
    max_drop: Mapping[str, float] = field(default_factory=dict)
    estimand: Estimand | None = None
    draws: int = DRAWS
    stages: bool = True

    @property
    def drops_of(self) -> Estimand:
        """What drops are of: where only scores are judged usually models, as redraws have none."""
        if self.estimand is not None:
            return self.estimand
        only_scores = bool(self.behaviours) and all(n.startswith(SCORE) for n in self.behaviours)
        return "models" if only_scores else "recipes"


DEFAULT = Asked()
"""What a gate is asked where nothing is said."""
