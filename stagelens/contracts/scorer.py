"""What turns a model's answer into one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .behaviours import Behaviour
from .errors import TaskError

SCORE = "score:"
"""Prefix of the behaviours that are scores."""
REFERENCE_COLUMN = "reference"
"""Column of an evaluation set with what should be answered; a completion says so too."""


def is_score(behaviour: Behaviour) -> bool:
    """Whether a behaviour is a score of answers."""
    return behaviour.name.startswith(SCORE)


def is_fraction(behaviour: Behaviour) -> bool:
    """Whether a behaviour is a score from 0 to 1, as right or wrong answers are."""
    return is_score(behaviour) and (behaviour.lowest, behaviour.highest) == (0.0, 1.0)


@dataclass(frozen=True)
class Answered:
    """A model's answer to one prompt.

    Attributes:
        example_id: Of the prompt.
        prompt: What the model read.
        answer: What it went on with.
        reference: What it should have answered; None where that is not known.
    """

    example_id: str
    prompt: str
    answer: str
    reference: str | None = None


@dataclass(frozen=True)
class Scorer:
    """A rule that gives every answer one number.

    Everything but the functions and the description is part of the digest of what it scored: raise
    ``version`` when the same answers get other numbers.

    Attributes:
        name: As registered, and as tables show it after ``score:``.
        score: From prompt, answer and reference (None where there is none) to a number, or None
            where it cannot tell.
        better: Whether ``"higher"`` or ``"lower"`` numbers are better.
        lowest, highest: Possible numbers.
        unit: Printed after them; empty if there is none.
        version: Of the rule.
        description: One sentence for help texts.
        settings: Plain JSON that the numbers depend on.
        score_many: For rules that are quicker at many answers at once, in place of ``score``.
        label: In place of the name in tables, where a rule scores more than one thing.
        reference: Column of the evaluation set that the reference is taken from.

    Example:
        >>> polite = Scorer("polite", lambda prompt, answer, reference: "please" in answer)
        >>> polite.scores([Answered("1", "Ask for tea.", "Tea, please.")])
        [1.0]
    """

    name: str
    score: Callable[[str, str, str | None], float | bool | None] | None = None
    better: Literal["higher", "lower"] = "higher"
    lowest: float = 0.0
    highest: float = 1.0
    unit: str = ""
    version: int = 1
    description: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    score_many: Callable[[Sequence[Answered]], Sequence[float | None]] | None = None
    label: str = ""
    reference: str = REFERENCE_COLUMN

    @property
    def behaviour(self) -> Behaviour:
        """What tables call its numbers."""
        return Behaviour(
            SCORE + (self.label or self.name),
            self.better,
            self.unit,
            self._described(),
            self.lowest,
            self.highest,
        )

    def _described(self) -> str:
        """The description, which speaks of the reference, by the name of what it is taken from."""
        if self.reference == REFERENCE_COLUMN:
            return self.description
        return self.description.replace("the reference", f"the {self.reference}")

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it, for digests."""
        names = ("name", "better", "lowest", "highest", "unit", "version")
        own = {name: getattr(self, name) for name in names} | {"settings": dict(self.settings)}
        if self.label:
            own["label"] = self.label
        if self.reference != REFERENCE_COLUMN:
            own["reference"] = self.reference
        return own

    def scores(self, answered: Sequence[Answered]) -> list[float]:
        """One number per answer; NaN where the rule cannot tell.

        Raises:
            TaskError: A number is none, or is out of the range that the scorer names.
        """
        if self.score_many is not None:
            found: Sequence[Any] = self.score_many(answered)
        elif self.score is not None:
            found = [self.score(one.prompt, one.answer, one.reference) for one in answered]
        else:
            raise TaskError(f"scorer {self.name!r} has neither score nor score_many; give one")
        if len(found) != len(answered):
            raise TaskError(
                f"scorer {self.name!r} gives {len(found)} numbers for {len(answered)} answers; "
                "return one for each, None where it cannot tell"
            )
        return [self._checked(one, value) for one, value in zip(answered, found, strict=True)]

    def _checked(self, one: Answered, value: Any) -> float:
        if value is None:
            return math.nan
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TaskError(
                f"scorer {self.name!r} gives {value!r} for example {one.example_id!r}, which is no "
                "number; return a number, or None where it cannot tell"
            ) from None
        if math.isnan(number):
            return number
        if not self.lowest <= number <= self.highest:
            raise TaskError(
                f"scorer {self.name!r} gives {number:g} for example {one.example_id!r}, which is "
                f"not within its range, {self.lowest:g} to {self.highest:g}; correct the scorer, "
                "or its lowest and highest"
            )
        return number
