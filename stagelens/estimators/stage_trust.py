"""What is known of one counterfactual: its trust, its cost, and how it agrees with a replay."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Trust

REPLAY = "replay"
"""Name of the estimator that settles a number: the others are compared with it."""

AGREES_R, AGREES_ERROR = 0.9, 0.5
"""An estimate agrees with replay at this Pearson r or above and this relative error or below.
The aim is that 95 % of estimates called reliable agree; the benchmark counts in the same way."""


class Agreement(BaseModel):
    """How the estimated effects of one stage compare with those by replay, on one behaviour.

    Attributes:
        behaviour: Its name.
        r: Pearson correlation over the examples.
        slope: Replay on estimate, through the origin: 1 is right, below 1 the estimate overstates.
        relative_error: Size of the error over the size of the effects by replay.
        sign_agreement: Share of examples, 0 to 1, whose sign is right; None where it was not kept.
    """

    # JSON has no NaN or infinity: written as null, they could not be read as numbers again.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    behaviour: str
    r: float
    slope: float
    relative_error: float
    sign_agreement: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the estimate is close enough to the replay to be relied on."""
        return self.r >= AGREES_R and self.relative_error <= AGREES_ERROR


class StageTrust(BaseModel):
    """What is known of one counterfactual.

    Attributes:
        stage: The stage that is left out.
        estimator: How the counterfactual was obtained.
        trust: exact; verified or does not agree; estimated, which is not checked; or refused.
        reason: One sentence for people, for instance "Replay repeats the recording bit for
            bit.".
        deviation: Where replay is not bit for bit: norm of the difference between the replayed
            and the recorded end of the later stages, over the norm of what these stages changed.
        expected_error: Relative error of the effects that nine of ten such estimates stay within;
            None where it is not known.
        typical_error: The median relative error of such estimates; None where it is not known.
        group_error: Error of the mean effect of a group that nine of ten stay within, as a share of
            the root mean square effect over the labelled examples of the set; None where unknown.
        wrong_signs: Share of examples, 0 to 1, whose effect may have the wrong sign, which nine of
            ten such estimates stay within; None where it is not known.
        reliable: Whether an estimate could be relied on before any replay; None where not known.
        neglected: The second-order term that a first-order estimate neglects, estimated without a
            replay, relative to the effect with it; 10 where it is more, None where it is not known.
        twins_share: Weight of the twins in the effects; the rest is the counterfactual's own. 0
            without twins.
        twins_anchor: What the counterfactual twin is compared with: 0 for the factual twin, 1 for
            the final model, in between for a weighted mean of the two.
        on_samples: Stages after it that were trained on answers which the model had sampled. They
            are replayed, or estimated, on those answers.
        ensemble: Whether a replay was one of an ensemble of networks, which is never exact.
        agreements: With replay, by behaviour; present where ``trust`` is verified or does not
            agree, which is said by the first. Joined when read, see ``verification.trusted``.
        no_replay: Why no replay can settle the number, and what would help; empty where one can.
            Joined when read, as ``agreements`` are.
        over_draws: Of a mean over draws of the recipe: behaviours, each with the width of the
            interval of its mean effect over the size of that; infinite where there is none.
        unlike: What the calibration bench holds no example of, so that nothing is called reliable
            that is made of this model; empty where there is nothing.
        cost: Example-gradients spent, in replays of the later stages.
        seconds: Wall time that obtaining the counterfactual took.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    stage: str
    estimator: str
    trust: Trust
    reason: str
    deviation: float | None = None
    expected_error: float | None = None
    typical_error: float | None = None
    group_error: float | None = None
    wrong_signs: float | None = None
    reliable: bool | None = None
    neglected: float | None = None
    twins_share: float = 0.0
    twins_anchor: float = 0.0
    on_samples: tuple[str, ...] = ()
    ensemble: bool = False
    agreements: tuple[Agreement, ...] = ()
    no_replay: str = ""
    over_draws: tuple[tuple[str, float], ...] = ()
    unlike: str = ""
    cost: float = 0.0
    seconds: float = 0.0

    def agreement(self, behaviour: str | None = None) -> Agreement | None:
        """Agreement on a behaviour, or on the first one where it has none, as for accuracy."""
        named = [each for each in self.agreements if each.behaviour == behaviour]
        return next(iter([*named, *self.agreements]), None)


_GROUND_TRUTH_ERROR = 0.1
"""A replay that is not bit for bit still verifies estimates if its own expected error is at most
this."""


def is_ground_truth(trust: StageTrust) -> bool:
    """Whether this is the truth for a stage, or a replay close enough to it to verify others."""
    expected = trust.expected_error if trust.estimator == REPLAY else None
    return trust.trust == "exact" or (expected is not None and expected <= _GROUND_TRUTH_ERROR)
