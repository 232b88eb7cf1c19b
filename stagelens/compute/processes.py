"""Work that is shared out over the processes of ``accelerate launch``, on one host or several.

Every process runs the same command. Between the places where they meet (:func:`together`) each
does its own share; the main process alone prints, and writes the command's results. Shares
go through the run folder, which all hosts see; only small things are sent.

Without a launcher there is one process, which is the main one and does everything.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from stagelens.contracts import RunError, StageLensError

from . import pulse, temporaries

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

T = TypeVar("T")

_LAUNCHED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""What launchers set in the environment: torchrun and accelerate first, then those of MPI."""

_LONGEST_WAIT = timedelta(hours=24)
"""Enough for the longest work of one process. One that ended is noticed at once, a frozen one by
its pulse."""

_SEEN_WITHIN = 15.0
"""Seconds within which all hosts see a file that one of them wrote to a shared file system."""

_ENDED = (
    "the processes of this job were ended: one of them died (it may have been killed for using too "
    "much memory), or the job was stopped. What was finished is kept; start the same command again "
    "to continue from it"
)

_state: PartialState | None = None


class _Stopped(BaseException):
    """The launcher ends this process, because another one died or the job is stopped.

    No Exception: what handles those, and then goes on, must not catch it.
    """


def _from_environment(names: Sequence[str], default: int) -> int:
    texts = [os.environ[name] for name in names if os.environ.get(name, "").isdigit()]
    return int(texts[0]) if texts else default


def is_worker() -> bool:
    """Whether a launcher started this process, and not as the main one."""
    return _from_environment(_LAUNCHED, 1) > 1 and _from_environment(_RANKS, 0) > 0


def count() -> int:
    """How many processes share the work now."""
    return 1 if _state is None else int(_state.num_processes)


def is_main() -> bool:
    """Whether this process writes the results."""
    return _state is None or bool(_state.is_main_process)


@contextmanager
def joined() -> Iterator[None]:
    """Share work with the other processes of the launcher for as long as the block runs.

    Objects are sent by gloo on any device: it notices at once when a process is gone.

    Raises:
        StageLensError: Another process died, or the job was stopped.
    """
    global _state
    if _from_environment(_LAUNCHED, 1) == 1 or _state is not None:
        yield
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        _state = PartialState(cpu=cpu, backend="gloo", timeout=_LONGEST_WAIT)
        with _pulse(_state):
            yield
            wait()  # nobody leaves while another one still needs an answer
    except BaseException as error:
        # The launcher ends all when one fails; until the others are told, there is time.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, _Stopped):
            raise StageLensError(_ENDED) from None
        raise
    finally:
        if _state is not None:
            _state.destroy_process_group()
            # accelerate keeps its state per process, and with it the group that is gone.
            PartialState._reset_state()
        _state = None
        # Also after an error: whoever handles it has to be able to end this process later.
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _pulse(state: PartialState) -> Iterator[None]:
    """Notice if another process freezes, for as long as the block runs."""
    # torch has no public name for the store of the default group.
    from torch.distributed.distributed_c10d import _get_default_store

    own = pulse.Pulse(
        _get_default_store(), state.process_index, state.num_processes, pulse.end_here
    )
    own.start()
    try:
        yield
    finally:
        own.stop()


def _stop(_signal: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: files are put in order now
    raise _Stopped


def local_rank() -> int:
    """The number of this process among those of its host."""
    return 0 if _state is None else int(_state.local_process_index)


def share_of_work(items: Sequence[T], cost: Callable[[T], float] = lambda _item: 1.0) -> list[T]:
    """The items that this process is to do, such that all processes finish at about the same time.

    Args:
        items: The same in every process.
        cost: What an item takes, in any unit.
    """
    if _state is None:
        return list(items)
    loads = [0.0] * count()
    mine = []
    # Largest first, each to the least loaded; ties by position, so all processes agree.
    for number in sorted(range(len(items)), key=lambda n: -cost(items[n])):
        least = loads.index(min(loads))
        loads[least] += cost(items[number])
        if least == _state.process_index:
            mine.append(number)
    return [items[number] for number in sorted(mine)]


def together(work: Callable[[], T]) -> list[T]:
    """Run ``work`` in every process, wait for all, and give every process what all of them gave.

    Args:
        work: May differ between processes; what it returns is small.

    Returns:
        One result per process, by its number.

    Raises:
        StageLensError: It failed in any of them; or one of them died.
    """
    if _state is None:
        return [work()]
    outcome, failed = _Outcome[T](), None
    try:
        outcome.result = work()
    except Exception as error:
        own = isinstance(error, StageLensError)
        # Sent to all before it is raised: the others would otherwise wait for this process.
        outcome.failure = str(error) if own else f"{type(error).__name__}: {error}"
        failed = error
    outcomes = _gathered(outcome)
    if failed is not None:
        raise failed
    for number, other in enumerate(outcomes, 1):
        if other.failure is not None:
            raise StageLensError(f"process {number} of {count()}: {other.failure}")
    return [cast(T, each.result) for each in outcomes]


@dataclass
class _Outcome(Generic[T]):
    result: T | None = None
    failure: str | None = None


def _gathered(value: T) -> list[T]:
    from accelerate.utils import gather_object

    try:
        gathered: list[T] = gather_object([value])
    except RuntimeError:  # the connection to a process was closed
        raise StageLensError(_ENDED) from None
    return gathered


def number() -> int:
    """The number of this process, from 0 for the main one."""
    return 0 if _state is None else int(_state.process_index)


def added(tensor: Tensor) -> Tensor:
    """The sum over processes of a tensor that each of them has; of its shape.

    Raises:
        StageLensError: Another process died.
    """
    if _state is None:
        return tensor
    from accelerate.utils import reduce

    try:
        summed: Tensor = reduce(tensor, reduction="sum")
    except RuntimeError:
        raise StageLensError(_ENDED) from None
    return summed


def from_main(tensor: Tensor) -> Tensor:
    """The main process's values of a tensor that each of them has; of its shape.

    Raises:
        StageLensError: Another process died.
    """
    if _state is None:
        return tensor
    from accelerate.utils import broadcast

    try:
        sent: Tensor = broadcast(tensor.clone(), from_process=0)
    except RuntimeError:
        raise StageLensError(_ENDED) from None
    return sent


def wait() -> None:
    """Continue once every process has come here."""
    together(lambda: None)


def by_main(work: Callable[[], T]) -> T:
    """Run ``work`` in the main process alone, and give every process what it gave there."""
    return cast(T, together(lambda: work() if is_main() else None)[0])


def check_shared(folder: Path) -> None:
    """Refuse a folder that only some of the hosts see.

    Raises:
        RunError: It is not on a file system that all of them share.
    """
    if count() == 1:
        return
    # From the main process, as every process would draw another name.
    name = by_main(lambda: temporaries.name(".seen-by-all", ".tmp"))
    try:
        by_main((folder / name).touch)
        if not all(together(lambda: _appears(folder / name))):
            raise RunError(
                f"{folder} is not the same folder on every host; put it on a file system that all "
                "hosts share (for a remote run, STAGELENS_CACHE names the folder of its copy)"
            )
    finally:
        if is_main():
            (folder / name).unlink(missing_ok=True)


def _appears(path: Path) -> bool:
    until = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
