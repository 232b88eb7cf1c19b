"""How far a coarse replay can be trusted, estimated without a replay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .stage_trust import StageTrust

_TINY = 1e-12  # keeps ratios finite where a stage has no effect at all
_LEAST_SAMPLING = 0.05  # the logarithm of an error of 0, as of whole batches, would be -inf

# Least squares, with no sign of trouble lowering the prediction, on the logarithm of the relative
# error of the margin (clipped to 0.08 to 3), over the benchmark scenarios
# (tests/benchmarks/fidelity.py) with equal weights, budgets 1/8 to 1/2, seeds 0 to 2.
_COEFFICIENTS = np.asarray([-0.829, 0.109, 0.804, 1.289, 0.186, 0.406, 0.535])
RELIABLE_BELOW = 0.28
"""Expected errors up to this are called reliable: on the same seeds, each predicted by the other
two, 97 % of such estimates had r >= 0.9 and a relative error <= 0.5."""
SIGN_UNCERTAIN_ABOVE = 0.7
"""Above it, about one example in five is expected on the wrong side of zero: normal errors of
relative size e, independent of normal effects, turn the sign of arctan(e) / pi of them."""
WRONG_SIGNS_ABOVE = 0.2
"""With a larger share of signs that may be wrong, effects are neither credit nor blame."""
REFUSED_ABOVE = 1.0
"""An error as large as the effect itself leaves nothing to say."""


@dataclass(frozen=True)
class Evidence:
    """What the measured models say about one stage's effect, on the first behaviour.

    Arrays are (N,), over the labelled examples.

    Attributes:
        final: The final model.
        factual: The factual twin.
        by_weights: Effect by the counterfactual weights.
        by_twins: Effect by the twins.
        by_task_vector: Effect by the task vector.
        hardness: How hard the later stages trained, 0 to 1.
        sgd: Whether any of them was trained by SGD.
        sampling: Relative error from the twins' small batches alone.
    """

    final: np.ndarray
    factual: np.ndarray
    by_weights: np.ndarray
    by_twins: np.ndarray
    by_task_vector: np.ndarray
    hardness: float
    sgd: bool
    sampling: float = 0.0

    @property
    def fit(self) -> float:
        """Correlation between the final model and the factual twin."""
        return _correlation(self.final, self.factual)

    @property
    def twins_share(self) -> float:
        """Weight of the twins' read-out.

        Where training is gentle the change carries over to the final weights, which are then the
        better read-out; where it is hard it does not, and the twins are: 1 for SGD; for Adam 0.5 to
        0.75, more where the read-outs differ more. Less where the factual twin ended far from the
        final model, 0 where it does not resemble it at all.
        """
        apart = min(max((0.95 - _correlation(self.by_weights, self.by_twins)) / 0.1, 0.0), 1.0)
        most = self.hardness if self.sgd else 0.2 + (0.3 + 0.25 * apart) * self.hardness
        return most * min(max((self.fit - 0.5) / 0.2, 0.0), 1.0)

    @property
    def twins_anchor(self) -> float:
        """What the counterfactual twin is compared with: 0 the factual twin, 1 the final model.

        Errors of cheapness cancel in the twins' difference as far as they are common to both.
        Under Adam nearly all of them are. Near SGD's edge of stability about half of them are, and
        half of the factual twin's own error would only be added.
        """
        return 0.5 if self.sgd else 0.0

    def effect(self) -> np.ndarray:
        """(N,) effect from both read-outs combined."""
        share = self.twins_share
        twins = self.by_twins + self.twins_anchor * (self.final - self.factual)
        return np.asarray((1 - share) * self.by_weights + share * twins)

    def features(self) -> np.ndarray:
        """(6,) signs of trouble, as :data:`_COEFFICIENTS` weighs them.

        In order, lengths relative to the effect's and in logarithms:

        - how far two read-outs differ in pattern: by weights and by twins or, for SGD, the two ends
          of the twins' anchor;
        - how hard the later stages trained, and the same for SGD;
        - how far the factual twin missed the final model;
        - the sampling error;
        - for hard SGD, how near the effect is to the task vector's: later stages forget there, and
          what they have not forgotten is noise.
        """
        effect = self.effect()
        size = np.linalg.norm(effect) + _TINY
        missed = self.final - self.factual
        other = self.by_twins + missed if self.sgd else self.by_weights
        pattern = 1 - _correlation(self.by_twins, other)
        taken = np.linalg.norm(self.by_task_vector - effect) / size
        relative = np.asarray([pattern, np.linalg.norm(missed) / size, taken], float)
        # Bounded, because read-outs that agree to the last bit would have the logarithm of 0.
        pattern, away, taken = np.log(np.clip(relative, 1e-3, 1e1))
        unsteady = self.hardness if self.sgd else 0.0
        near = -unsteady * taken if unsteady else 0.0
        sampling = np.log(max(self.sampling, _LEAST_SAMPLING))
        return np.asarray([pattern, self.hardness, unsteady, away, sampling, near])

    def expected_error(self) -> float:
        """Relative error to expect of the effects; infinite where they are not finite."""
        if not np.isfinite(self.effect()).all():
            return float("inf")
        seen = float(np.exp(_COEFFICIENTS[0] + _COEFFICIENTS[1:] @ self.features()))
        return max(seen, self.sampling)  # noise of the batches is there whatever else agrees


def judged(trust: StageTrust, evidence: Evidence) -> StageTrust:
    """Trust in a coarse replay from its own evidence: reliable or not, or refused.

    Args:
        trust: As the estimator gave it.
        evidence: From the measured models.
    """
    error = evidence.expected_error()
    if not error <= REFUSED_ABOVE:  # so that a NaN is refused too
        shown = f"{100 * error:.0f} % of" if error <= 10 else "more than 10 times"
        reason = (
            f"Coarse replay: the error may be up to {shown} the effect, so no number is shown; "
            "raise the budget, or use replay."
        )
        return trust.model_copy(
            update={"trust": "refused", "reason": reason, "expected_error": None}
        )
    return trust.model_copy(
        update={
            "reason": "Coarse replay.",
            "expected_error": error,
            "reliable": error <= RELIABLE_BELOW,
        }
    )


def judged_replay(
    trust: StageTrust, final: np.ndarray, repeated: np.ndarray, effect: np.ndarray, behaviour: str
) -> StageTrust:
    """Trust in a replay that is not bit for bit, by what its deviation means for the effect.

    The recorded stages, repeated in the same way, should give the final model; by as much as they
    miss it, the replay without the stage is taken to be wrong too.

    Args:
        trust: As the estimator gave it.
        final: (N,) behaviour of the final model.
        repeated: (N,) behaviour of the final model as repeated here.
        effect: (N,) effect of the stage.
        behaviour: Its name.
    """
    error = float(np.linalg.norm(final - repeated) / (np.linalg.norm(effect) + _TINY))
    if not error <= REFUSED_ABOVE:  # NaN too
        reason = (
            f"{trust.reason} Repeating the recorded stages here changes the {behaviour} by more "
            "than this stage's effect, so no number is shown."
        )
        return trust.model_copy(update={"trust": "refused", "reason": reason})
    share = "less than 1" if error < 0.005 else f"{100 * error:.0f}"
    reason = (
        f"{trust.reason} Repeating the recorded stages here changes the {behaviour} by {share} % "
        "of this stage's effect."
    )
    return trust.model_copy(
        update={"reason": reason, "expected_error": error, "reliable": error <= RELIABLE_BELOW}
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2 or a[known].std() == 0 or b[known].std() == 0:
        return 0.0  # undefined: taken for no agreement, the cautious answer
    return float(np.corrcoef(a[known], b[known])[0, 1])
