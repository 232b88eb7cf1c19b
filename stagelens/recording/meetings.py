"""Moments at which all processes give their parts of a stage's state.

A sharded model is gathered by collective calls: a process that does not come leaves the others
waiting in the midst of a training. So they first say that they have come, in the store where they
leave their messages, and the main process decides for all.
"""

from __future__ import annotations

import contextlib

from stagelens.contracts import RecordingError

from .together import Together

_PATIENCE = 120.0
"""Seconds that the main process waits for others: they train in step."""
_BEGINNING = 1800.0
"""Seconds that the others wait for the main one, which may first write something large."""


class Meetings:
    """Those of one stage, as one process comes to them: the same number of times in each.

    Args:
        stage: This process, for messages about the stage.
    """

    def __init__(self, stage: Together) -> None:
        self._stage, self._held = stage, 0

    @property
    def main(self) -> bool:
        """Whether this process decides, and writes."""
        return self._stage.main

    def meet(self, at: str, whole: bool) -> bool:
        """Wait until all have come.

        Args:
            at: Where in the training this is.
            whole: Whether the optimiser's state is wanted too.

        Returns:
            That, as the main process said it.

        Raises:
            RecordingError: One does not come; raised in all of them then.
        """
        if self._stage.count == 1:
            return whole
        self._held += 1
        if self._stage.main:
            why = self._missing(at)
            self._stage.say(f"meeting/{self._held}", why=why, whole=whole)
        else:
            self._stage.say(f"come/{self._held}/{self._stage.number}", at=at)
            name = f"meeting/{self._held}"
            told = self._stage.wait(name, "done", seconds=_BEGINNING) or {}
            why = told.get("why", "the main process does not record the stage")
            whole = bool(told.get("whole"))
        if why is not None:
            raise RecordingError(f"the model's parts were not gathered at {at}: {why}")
        return whole

    def call_off(self, why: str) -> None:
        """The main process does not need this meeting, to which the others come."""
        if self._stage.count > 1 and self._stage.main:
            self._held += 1
            self._stage.say(f"meeting/{self._held}", why=why)

    def leave(self) -> None:
        """Come to no more of them."""
        with contextlib.suppress(Exception):  # the job, and its store, may be coming down
            self._stage.say(f"gone/{self._stage.number}")

    def _missing(self, at: str) -> str | None:
        for number in self._stage.others:
            come, gone = f"come/{self._held}/{number}", f"gone/{number}"
            told = self._stage.wait(come, gone, seconds=_PATIENCE)
            if told is None:
                return f"process {number} did not come within {_PATIENCE:.0f} seconds"
            if "at" not in told:
                return f"process {number} does not record the stage any more"
            if told["at"] != at:
                return f"process {number} was at {told['at']}; let all make the same updates"
        return None
