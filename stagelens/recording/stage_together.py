"""What the processes that train a stage together tell one another about its recording."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from stagelens.contracts import RecordingError
from stagelens.runs.schema import Parallel, PartRef
from stagelens.runs.shards import sharding_modules

from .meetings import Meetings
from .parallel_models import Kind
from .together import Message, Together

PATIENCE = 120.0
"""Seconds that a process waits for what another one should be about to say."""
_BEGINNING = 1800.0
"""Seconds that the main process may take to write the start of a stage."""


class StageTogether:
    """One stage, as its process speaks of it to the others; nothing here fails a training.

    Args:
        run: This process, for messages about the run.
        name: The stage's name.
        kind: What shares the stage's training between the processes.
        model: Is trained.
    """

    def __init__(self, run: Together, name: str, kind: Kind | None, model: nn.Module) -> None:
        self._run, self._kind = run, kind
        self._modules = [name for name, _ in sharding_modules(model)]
        self._stage = run.within(f"stage/{name}")
        self._place = f"stage/{name}"
        self.number = run.number
        self.meetings = Meetings(self._stage)

    @property
    def shared(self) -> bool:
        """Whether other processes train too."""
        return self._run.count > 1

    def entered(self) -> None:
        """This process begins with the stage."""
        self._say(f"entered/{self.number}")

    def begun(self, folder: str) -> None:
        """The main process has written where it starts."""
        self._say("begun", folder=folder)

    def lost(self, why: str) -> None:
        """The stage is not recorded by this process, or not any more."""
        if self.number:
            self.meetings.leave()
            self.ended([], why)
            return
        self._say("begun", error=why)
        self._say("done")

    def where(self) -> str:
        """The folder of the stage, from the main process.

        Raises:
            RecordingError: It does not record the stage.
        """
        entered, begun = (f"{self._place}/{name}" for name in ("entered/0", "begun"))
        told = self._run.wait(entered, "closed", seconds=PATIENCE)
        if told is not None and "error" not in told:
            told = self._run.wait(begun, "closed", seconds=_BEGINNING)
        if told is None or "error" in told:
            why = "it has not begun it" if told is None else told["error"]
            raise RecordingError(f"the main process does not record it ({why})")
        return str(told["folder"])

    def problem(self, text: str) -> None:
        """Tell what costs the stage its replay, if nobody has told such a thing yet."""
        with contextlib.suppress(Exception):
            if self._stage.heard("problem") is None:
                self._say("problem", process=self.number, text=text)

    def hear(self, tell: Callable[[Exception], None]) -> None:
        """Tell what another process has found, if it has."""
        found: Message | None = None
        with contextlib.suppress(Exception):
            found = self._stage.heard("problem") if self.shared else None
        if found is not None and found["process"] != self.number:
            tell(RecordingError(f"process {found['process']}: {found['text']}"))

    def ended(self, parts: Sequence[PartRef], problem: str | None) -> None:
        """This process, not the main one, has written all that it noted."""
        written = [part.model_dump(mode="json") for part in parts]
        self._say(f"ended/{self.number}", parts=written, problem=problem)

    def left(self, parts: Sequence[PartRef]) -> None:
        """The stage's block was left before its end."""
        if self.number:
            self.meetings.leave()
            self.ended(parts, "its training was interrupted")
        else:
            self.done()

    def done(self) -> None:
        """The main process has written the stage's end."""
        self._say("done")

    def facts(self) -> dict[str, Any]:
        """What stage.json says of the processes while the stage is recorded."""
        if not self.shared or self._kind is None:
            return {}
        return {"parallel": self._parallel(self._kind)}

    def gather(self, own: Sequence[PartRef], tell: Callable[[Exception], None]) -> Parallel | None:
        """What all processes wrote, once they have; None for one process.

        Args:
            own: What the main process wrote.
            tell: Called where one of them wrote less, or does not say what it wrote: their parts
                are left out then.
        """
        if not self.shared or self._kind is None:
            return None
        parts: list[list[PartRef]] = []
        try:
            steps = sum(part.steps for part in own)
            parts = [self._of(number, steps) for number in self._run.others]
        except Exception as error:
            tell(error)
        return self._parallel(self._kind, parts)

    def _parallel(self, kind: Kind, parts: Sequence[list[PartRef]] = ()) -> Parallel:
        count = self._run.count
        return Parallel(kind=kind, count=count, modules=self._modules, parts=[*parts])

    def _of(self, number: int, steps: int) -> list[PartRef]:
        if self._stage.heard(f"entered/{number}") is None:
            raise RecordingError(
                f"process {number} recorded nothing; make the recorder in every process, enter its "
                "stage, and call stage.step in each of them"
            )
        told = self._stage.wait(f"ended/{number}", seconds=PATIENCE)
        if told is None:
            raise RecordingError(
                f"process {number} did not say within {PATIENCE:.0f} seconds what it had recorded"
            )
        if told["problem"] is not None:
            raise RecordingError(f"process {number}: {told['problem']}")
        parts = [PartRef.model_validate(part) for part in told["parts"]]
        if (other := sum(part.steps for part in parts)) != steps:
            raise RecordingError(
                f"process {number} recorded {other} steps, and the main one {steps}; let all "
                "processes make the same updates, and call stage.step after each"
            )
        return parts

    def _say(self, name: str, **message: Any) -> None:
        with contextlib.suppress(Exception):  # the job, and with it its store, may be coming down
            self._stage.say(name, **message)
