"""What a gate found, as data: the JSON that it prints.

Numbers are in the behaviour's own unit: of an accuracy, 0.1 are 10 points. A drop is positive where
the new model is worse, whatever the behaviour's direction. What is not known is null. Fields are
only ever added; :data:`VERSION` is raised when one goes or means something else.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from .verdict import Verdict

VERSION = 1

STATUS: dict[Verdict, int] = {"fine": 0, "regressed": 3, "could not tell": 4}
"""Exit status of each verdict; 1 and 2 are errors."""

SAME = (
    "Both models are the same: all their stages end in the same states, so nothing can have got "
    "worse. If two models were meant, check which runs and leaves were given."
)
"""What is said of a model that is compared with itself."""

Estimand = Literal["recipes", "models"]
"""Whether drops are those of a change of recipe, or those of the two recorded models."""

How = Literal["exchange", "stage effect", "same"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Side(_Facts):
    """One of the two models.

    Attributes:
        run: The run folder, as it was given.
        name: The run's name.
        leaf: The stage whose model it is, where the run has several; else empty.
        digest: Of the recorded training.
        trainings: How many trainings of its recipe its numbers are means over.
        source: What these are: the recorded model alone, redraws of it, or recorded runs.
    """

    run: str
    name: str
    leaf: str
    digest: str
    trainings: int
    source: Literal["recorded", "redraws", "recorded runs"]


class SliceFinding(_Facts):
    """What was found on one slice, of one behaviour.

    Attributes:
        behaviour: Its name.
        better: Its direction.
        unit: Of its numbers; ``points`` where 0.01 is one.
        by: Column that the slice is a value of; null for all examples.
        group: The value.
        examples: How many have a value of both models.
        missing: How many lack one.
        old: Mean of the old model, as recorded.
        new: Mean of the new one.
        drop: How much worse; with ``recipes`` of the means over all trainings.
        low: Lower end of the drop's 95 % interval.
        high: Upper end.
        training_sd: What of it is due to which trainings were seen, as a standard deviation; null
            where it is not counted, or not known.
        max_drop: How much is allowed.
        p: How probable so large a drop is where the true one is just allowed (one-sided).
        p_adjusted: The same for all slices and behaviours together (Holm).
        verdict: ``regressed`` where ``p_adjusted`` is below the level, ``fine`` where ``high`` is
            below ``max_drop``.
        reason: That in a sentence.
    """

    behaviour: str
    better: Literal["higher", "lower"]
    unit: str
    by: str | None
    group: str | None
    examples: int
    missing: int
    old: float | None
    new: float | None
    drop: float | None
    low: float | None
    high: float | None
    training_sd: float | None
    max_drop: float
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    reason: str

    @property
    def words(self) -> str:
        """``accuracy on group = stamped``."""
        where = "all examples" if self.by is None else f"{self.by} = {self.group}"
        return f"{self.behaviour} on {where}"


class StageFinding(_Facts):
    """What a stage of the new recipe has to do with a slice that regressed.

    Attributes:
        behaviour: As the slice's.
        by: As the slice's.
        group: As the slice's.
        stage: Of the new run.
        how: By exchange with the old run's stage, or by its own effect; ``same`` where both runs
            share it.
        drop: How much worse the new model is with its own stage than with the old run's; of a stage
            effect, than without the stage.
        low: Lower end of its interval, 95 % for all stages of the slice together.
        high: Upper end.
        trust: What is known of the model that it was compared with.
        reason: Why it is not an exchange; what is not exact.
        did_it: Whether it is named: its interval lies above 0, and no other stage's drop is clearly
            larger.
    """

    behaviour: str
    by: str | None
    group: str | None
    stage: str
    how: How
    drop: float | None
    low: float | None
    high: float | None
    trust: str
    reason: str
    did_it: bool


class GateReport(_Facts):
    """Everything that ``stagelens gate`` says.

    Attributes:
        format: Tells such a file from others.
        version: Of this layout.
        verdict: Of all slices together.
        exit_status: Of the command.
        same_model: Whether both models are the same, so that nothing was told apart.
        estimand: What the drops are of.
        old: The model that is compared with.
        new: The model that is judged.
        set: Name of the evaluation set in the new run.
        set_digest: Of its content.
        level: How often any slice may be found regressed although none is.
        comparisons: How many slices and behaviours that is shared out over.
        slices: One for each slice and behaviour.
        stages: Of each slice that regressed, every stage of the new run.
        notes: Sentences on what else a reader should know.
    """

    format: Literal["stagelens gate"] = "stagelens gate"
    version: Literal[1] = 1
    verdict: Verdict
    exit_status: int
    same_model: bool = False
    estimand: Estimand
    old: Side
    new: Side
    set: str
    set_digest: str
    level: float
    comparisons: int
    slices: list[SliceFinding]
    stages: list[StageFinding] = []
    notes: list[str] = []
