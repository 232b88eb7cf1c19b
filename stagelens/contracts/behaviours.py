"""What is measured of an example, and the words that tables use for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Trust = Literal["exact", "verified", "does not agree", "estimated", "refused"]
"""How a number was obtained, and what came of checking it. What is shown and written is the trust
word that follows from it, see ``stagelens.wording.trust_words``."""

BASE = "base"
"""Name of the boundary before the first stage."""

CARRIED = "carried momentum and decay"
"""What moments of earlier steps, weight decay and the step count contributed to a step."""


@dataclass(frozen=True)
class Behaviour:
    """One number per example, measured on a model.

    Attributes:
        name: As tables show it, for instance ``"margin"``.
        better: Whether ``"higher"`` or ``"lower"`` values are better for the example.
        unit: Printed after values, for instance ``"nats"``; empty if there is none.
        description: One sentence for help texts.
        lowest, highest: Possible values; an estimate beyond them is shown as the nearest one.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    description: str = ""
    lowest: float = float("-inf")
    highest: float = float("inf")

    @property
    def sign(self) -> int:
        """+1 where higher is better, -1 where lower is; ``sign * effect > 0`` is credit."""
        return 1 if self.better == "higher" else -1


@dataclass(frozen=True)
class Example:
    """One row of an evaluation set, as a task sees it.

    Attributes:
        example_id: Unique and stable within its set.
        input: By the names of the task's ``input_fields``: ``{"image": array (H, W) or
            (H, W, C)}``, ``{"text": str}``, or several texts, None where one is missing.
        label: Class name, or None where the set has no label for this example.
        columns: Further metadata, for instance ``{"group": "stamped"}``.
    """

    example_id: str
    input: Mapping[str, Any]
    label: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """What a model answers for a batch of B examples.

    Attributes:
        answers: (B,) printable answers, for a classifier the class name.
        confidences: (B,) probability that the model itself gives its answer; NaN if it gives none.
    """

    answers: Sequence[str]
    confidences: Sequence[float]


@dataclass(frozen=True)
class TokenValues:
    """One text as a model reads it, with a number per token.

    Attributes:
        tokens: (T,) printable pieces; together they make up the text.
        values: (T,) floats, NaN where a token has none.
    """

    tokens: Sequence[str]
    values: np.ndarray


ACCURACY = Behaviour(
    "accuracy",
    "higher",
    "points",
    "1 where the model's answer is the label, 0 where it is not; its mean is the share of right "
    "answers. Examples without a label are left out and counted.",
    lowest=0.0,
    highest=1.0,
)
"""Derived from answers and labels; measured per example like every other behaviour."""


SLICE_COLUMN = "slice: "
"""Prefix of columns of slices; a set's own column cannot be mistaken for one, see
:func:`stagelens.analyses.slices.saved.joined`."""

OTHER_EXAMPLES = "others"
"""Value for the examples outside a slice."""
