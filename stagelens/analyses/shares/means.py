"""A mean over examples with all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.intervals import Interval


@dataclass(frozen=True)
class Mean:
    """A mean over examples.

    Attributes:
        name: What it is about.
        n: Over how many examples.
        mean: NaN where it is refused.
        interval: Over examples (95 %), with what estimates and sampled orders add; None where not
            known.
        trust: What is known of it.
    """

    name: str
    n: int
    mean: float
    interval: Interval | None
    trust: StageTrust

    @property
    def is_clear(self) -> bool:
        """Whether its interval is known and leaves out zero."""
        return self.interval is not None and self.interval.is_clear
