"""What measured models say about the error of a stage's effect, without a replay.

Evidence becomes *features*: numbers by name, from which :mod:`.calibration` promises an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .course import Course
from .travel import Travel

_TINY = 1e-12  # keeps ratios finite where a stage has no effect at all
_LEAST, _MOST = 1e-3, 1e2
"""Features are logarithms: those of 0, as of read-outs that agree to the last bit, are bounded."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one stage's effect on the first behaviour.

    Arrays are (N,), over the labelled examples.

    Attributes:
        course: The later stages.
        final: The final model.
        by_weights: Effect by the counterfactual weights.
        by_task_vector: Effect by the task vector.
        by_second_order: Effect by the weights to second order; None where it is not known.
    """

    course: Course
    final: np.ndarray
    by_weights: np.ndarray
    by_task_vector: np.ndarray
    by_second_order: np.ndarray | None = None

    def effect(self) -> np.ndarray:
        """(N,) the effect that is shown."""
        return self.by_weights

    @property
    def neglected(self) -> float | None:
        """The second-order term that the effect neglects, relative to the effect with it.

        At most 10, as beyond that nothing is left to tell; None where it is not known.
        """
        if self.by_second_order is None:
            return None
        apart = _length(self.by_second_order - self.effect())
        share = apart / _length(self.by_second_order)
        return min(share, 10.0) if math.isfinite(share) else 10.0

    def features(self) -> dict[str, float]:
        """Signs of trouble by name; lengths are logarithms, relative to the effect's."""
        course, effect = self.course, self.effect()
        return {
            "hardness": course.hardness,
            "sgd": float(course.sgd),
            "batch_norm": float(course.batch_norm),
            "first": float(course.first),
            "stages": math.log(course.stages),
            "steps": math.log(max(course.steps, 1)),
            "moved": _log(course.moved),
            "turned": course.turned,
            # Small effects drown in what the cheap replay misses.
            "size": _log(_length(effect) / (self.final.std() * math.sqrt(len(effect)) + _TINY)),
            # What the later stages did with the stage's change, as far as the effect shows it.
            "undone": _log(_length(self.by_task_vector - effect) / _length(effect)),
            "undone_pattern": _log(1 - correlation(self.by_task_vector, effect)),
        }


@dataclass(frozen=True, kw_only=True)
class PairedEvidence(Evidence):
    """What the twins of a coarse replay say as well.

    Attributes:
        factual: The factual twin.
        by_twins: Effect by the twins.
        sampling: Relative error from the twins' small batches alone.
        travels: The twins' way through each later stage.
        partial: Where the first of the later stages were replayed exactly: the relative error that
            cheap replay has of the stage's effect where these end. None where nothing was replayed
            or the model there answers something else.
    """

    factual: np.ndarray
    by_twins: np.ndarray
    sampling: float = 0.0
    travels: Sequence[Travel] = ()
    partial: float | None = None

    @property
    def fit(self) -> float:
        """Correlation between the final model and the factual twin."""
        return correlation(self.final, self.factual)

    @property
    def twins_share(self) -> float:
        """Weight of the twins' read-out.

        Under Adam one half: each read-out has errors that the other has not, and no rule that was
        tried did better on the calibration bench. Under SGD the change carries over to the final
        weights where training is gentle, and does not where it is hard. Less where the factual twin
        ended far from the final model, 0 where it does not resemble it at all.
        """
        most = self.course.hardness if self.course.sgd else 0.5
        return most * min(max((self.fit - 0.5) / 0.2, 0.0), 1.0)

    @property
    def twins_anchor(self) -> float:
        """What the counterfactual twin is compared with: 0 the factual twin, 1 the final model.

        Errors of cheapness cancel in the twins' difference as far as they are common to both.
        Under Adam nearly all of them are. Near SGD's edge of stability about half of them are, and
        half of the factual twin's own error would only be added.
        """
        return 0.5 if self.course.sgd else 0.0

    def effect(self) -> np.ndarray:
        """(N,) effect from both read-outs combined."""
        share = self.twins_share
        twins = self.by_twins + self.twins_anchor * (self.final - self.factual)
        return np.asarray((1 - share) * self.by_weights + share * twins)

    def features(self) -> dict[str, float]:
        """Those of :class:`Evidence`, and what the twins add.

        - ``readouts``, ``pattern``: how far the effects by weights and by twins differ in size and
          in pattern;
        - ``missed``, ``misfit``: how far the factual twin missed the final model's behaviour;
        - ``strayed``, ``direction``, ``progress``, ``gap``: how far it missed the recorded way in
          the weights, in the stage where that was worst;
        - ``growth``, ``kept``: how the difference grew and turned on the way;
        - ``sampling``: see above;
        - ``partial``: see above; only where it was measured.
        """
        effect = self.effect()
        size = _length(effect)
        found = super().features() | {
            "readouts": _log(_length(self.by_twins - self.by_weights) / size),
            "pattern": _log(1 - correlation(self.by_twins, self.by_weights)),
            "missed": _log(_length(self.final - self.factual) / size),
            "misfit": _log(1 - self.fit),
            "sampling": _log(self.sampling),
        }
        if self.travels:
            found |= {
                "strayed": _log(max(t.missed for t in self.travels)),
                "direction": _log(1 - min(t.direction for t in self.travels)),
                "progress": _log(max(abs(1 - t.progress) for t in self.travels)),
                "growth": _log(max(t.growth for t in self.travels)),
                "kept": _log(1 - min(t.kept for t in self.travels)),
                "gap": _log(max(t.gap for t in self.travels)),
            }
        if self.partial is not None:
            found["partial"] = _log(self.partial)
        return found


def _length(values: np.ndarray) -> float:
    return float(np.linalg.norm(values)) + _TINY


def _log(value: float) -> float:
    return math.log(min(max(value, _LEAST), _MOST))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson r of two (N,) arrays over the examples that both know; 0 where it is not defined."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2 or a[known].std() == 0 or b[known].std() == 0:
        return 0.0  # undefined: taken for no agreement, the cautious answer
    return float(np.corrcoef(a[known], b[known])[0, 1])
