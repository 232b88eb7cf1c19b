"""This process among those that train one model together, and what they tell one another.

Each leaves short messages, by name, in the store that ``torch.distributed`` keeps for the job, and
looks for those of others, for no longer than it is told. Nothing here is a collective call: a
process that fails, or that records nothing, leaves no other one waiting in the midst of a training.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from stagelens.contracts import RecordingError
from stagelens.runs.schema import digest

_LOOK_EVERY = 0.02
"""Seconds between two looks for a message."""

Message = dict[str, Any]
"""What is told: plain JSON."""


@dataclass(frozen=True)
class Together:
    """A process, and the place in the store where it and the others leave messages.

    Attributes:
        number: Of the process; the main one is 0.
        count: How many train together.
        place: The beginning of all names.
    """

    number: int = 0
    count: int = 1
    place: str = ""

    @classmethod
    def at(cls, path: Path) -> Together:
        """This process, as it makes its next recorder for a run folder.

        Every process makes its recorders for a folder in the same order.

        Raises:
            RecordingError: A launcher started several processes, which do not know of each other.
        """
        if _alone:
            return cls()
        if not (dist.is_available() and dist.is_initialized()):
            launched = os.environ.get("WORLD_SIZE", "1")
            if "RANK" in os.environ and launched.isdigit() and int(launched) > 1:
                raise RecordingError(
                    f"{launched} processes were launched, but torch.distributed is not initialised "
                    "yet; make the recorder after torch.distributed.init_process_group(), "
                    "Accelerator() or TrainingArguments"
                )
            return cls()
        if dist.get_world_size() == 1:
            return cls()
        folder = digest(str(path.resolve()))[:16]
        _made[folder] += 1
        place = f"stagelens/{folder}/{_made[folder]}"
        return cls(dist.get_rank(), dist.get_world_size(), place)

    @property
    def main(self) -> bool:
        """Whether this process writes what concerns the run as a whole."""
        return self.number == 0

    @property
    def others(self) -> range:
        """The numbers of all processes but the main one."""
        return range(1, self.count)

    def within(self, name: str) -> Together:
        """The same process, for messages about one matter."""
        return Together(self.number, self.count, f"{self.place}/{name}")

    def say(self, name: str, **message: Any) -> None:
        """Leave a message; a second one of the name takes the place of the first."""
        if self.count > 1:
            _store().set(f"{self.place}/{name}", json.dumps(message))

    def heard(self, name: str) -> Message | None:
        """A message, if somebody has left it."""
        if self.count == 1 or not _store().check([f"{self.place}/{name}"]):
            return None
        found: Message = json.loads(_store().get(f"{self.place}/{name}"))
        return found

    def wait(self, *names: str, seconds: float) -> Message | None:
        """The first of some messages to be there; None if none came in time."""
        until = time.monotonic() + seconds
        while True:
            for name in names:
                if (message := self.heard(name)) is not None:
                    # One before it may have been left since that was looked for.
                    earlier = (self.heard(each) for each in names[: names.index(name)])
                    return next((each for each in earlier if each is not None), message)
            if time.monotonic() > until:
                return None
            time.sleep(_LOOK_EVERY)

    @contextmanager
    def after_main(self, name: str, seconds: float) -> Iterator[None]:
        """Do something in the main process first, and in the others once it has done it.

        Raises:
            RecordingError: The main process failed, or did not do it in time.
        """
        if not self.main:
            told = self.wait(name, "closed", seconds=seconds)
            if told is None or "error" in told:
                why = f"it did not come to {name} in time" if told is None else told["error"]
                raise RecordingError(f"the main process: {why}")
            yield
            return
        try:
            yield
        except BaseException as error:
            self.say(name, error=str(error))
            raise
        self.say(name)


_made: Counter[str] = Counter()
"""How many recorders this process has made for a run folder."""
_alone: list[None] = []


@contextmanager
def alone() -> Iterator[None]:
    """Recorders that are made within are of no concern to other processes."""
    _alone.append(None)
    try:
        yield
    finally:
        _alone.pop()


def this_is_main() -> bool:
    """Whether this process is the main one, or alone."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _store() -> Any:
    # torch has no public name for the store of the default group.
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
