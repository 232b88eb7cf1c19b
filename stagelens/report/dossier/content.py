"""What a dossier holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from stagelens.report.exported import TableUsed

NOT_KNOWN = "not known"

Source = Literal["recorded", "said", ""]
"""Where a fact comes from: the recording, or people; empty where nothing is known."""

COMPUTING_NOTE = (
    "Shares of computing are facts that guidance for those who modify models asks about; a dossier "
    "states them, and claims no compliance with any law."
)
MEASURED_NOTE = (
    "Measured on the sets named here and on nothing else; a stage without a sentence may still do "
    "things that these sets do not show."
)


@dataclass(frozen=True)
class Fact:
    """One line of a dossier.

    Attributes:
        name: What it is about.
        value: What is known; None if nothing is.
        source: Where that comes from.
    """

    name: str
    value: str | None
    source: Source = ""

    @property
    def words(self) -> str:
        """The value, or that it is not known."""
        return self.value or NOT_KNOWN


@dataclass(frozen=True)
class Statement:
    """Something that was measured.

    Attributes:
        text: A sentence, with its interval where there is one.
        set_name: The evaluation set.
        behaviour: The behaviour.
        trust: The trust word; empty for what is observed.
        known: The trust word with the figures that matter.
    """

    text: str
    set_name: str
    behaviour: str
    trust: str = ""
    known: str = ""


@dataclass(frozen=True)
class Computing:
    """What a stage's training took.

    Attributes:
        operations: Floating-point operations; None if they could not be counted.
        share: Of all recorded stages, and of what training started from where that was said;
            between 0 and 1, None if not known.
        before: The same of this stage among itself and all that came before: what a modification
            adds to the model that it modifies. None if not known.
        why_not: Why nothing could be counted.
    """

    operations: float | None = None
    share: float | None = None
    before: float | None = None
    why_not: str = ""


@dataclass(frozen=True)
class StagePart:
    """What is known of one stage.

    Attributes:
        name: The stage.
        facts: Who, what, how and why.
        computing: What it took.
        measured: What it is measured to have done.
        silent: What was measured without anything standing out, in words.
        limits: What is known to be wrong, missing or not to be relied on.
        digest: Of the recorded stage.
    """

    name: str
    facts: Sequence[Fact]
    computing: Computing
    measured: Sequence[Statement] = ()
    silent: Sequence[str] = ()
    limits: Sequence[str] = ()
    digest: str = ""


@dataclass(frozen=True)
class SetPart:
    """An evaluation set.

    Attributes:
        name: The set.
        count: How many examples it has.
        description: What it holds.
        digest: Over all that results depend on.
    """

    name: str
    count: int
    description: str
    digest: str


@dataclass(frozen=True)
class Dossier:
    """What is known of a run, stage by stage.

    Attributes:
        run_name: The run.
        run_digest: Digest of its recorded training.
        facts: About the model as a whole.
        stages: In training order.
        sets: What was measured on.
        limits: Of the run as a whole.
        checks: What to check, and the command that does.
        base_counted: Whether shares of computing include what training started from.
        tables: The stored effect tables that statements rest on.
        made: When.
    """

    run_name: str
    run_digest: str
    facts: Sequence[Fact]
    stages: Sequence[StagePart]
    sets: Sequence[SetPart]
    limits: Sequence[str]
    checks: Sequence[tuple[str, str]]
    base_counted: bool = False
    tables: Sequence[TableUsed] = ()
    made: datetime = field(default_factory=lambda: datetime.now(UTC))
