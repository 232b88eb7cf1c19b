"""Training states of models that are shared out over processes, whole: on disk.

A whole tensor is gathered from all processes, by all of them at once, one tensor after the other,
so that a whole model is in the memory of none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from stagelens.compute import temporaries

from .saved_states import nested
from .shards import is_shared_out, put_back
from .states import OptimizerState, TrainingState, model_tensors
from .streaming import TemporaryTensors, in_order
from .tensor_files import write_tensors


def gathered_state(
    folder: Path | None, model: nn.Module, optimizer: OptimizerState
) -> TrainingState:
    """The training state of a sharded model, whole: on disk, and in the memory of no process.

    All processes have to call it at the same time. One that fails to write still gives its parts of
    all tensors, as the others wait for them, before it says so.

    Args:
        folder: Where this process writes temporary files; None for one that only gives its parts.
        model: The sharded model.
        optimizer: The parts of its optimiser's state.

    Returns:
        Tensors that are mapped into memory, of files that go with them; an empty state without
        a folder.

    Raises:
        OSError: They cannot be written.
    """
    weights, state = gathered_files(folder, model, optimizer)
    return TrainingState(weights, nested(state))


def gathered_files(
    folder: Path | None, model: nn.Module, optimizer: OptimizerState
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """As :func:`gathered_state`: the model's tensors, and the optimiser's as ``PARAMETER/KEY``.

    Each of the two are those of one file, or none.
    """
    put_back(model)
    flat = {f"{n}/{key}": value for n, own in optimizer.items() for key, value in own.items()}
    found: list[Mapping[str, Tensor]] = []
    failed: Exception | None = None
    for tensors in (model_tensors(model), flat):
        try:
            found.append(_gathered(folder, tensors))
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return found[0], found[1]


def each_whole(tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The tensors in their order, whole and on the CPU; each is gathered when it is asked for.

    What has the same value in every process, such as a buffer, is this process's own.
    """
    for tensor in tensors.values():
        # Bound to no name here, or it would stay in memory beside the next one.
        yield _whole(tensor)


def _whole(tensor: Tensor) -> Tensor:
    if is_shared_out(tensor):
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return tensor.detach().cpu().contiguous()


def _gathered(folder: Path | None, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    facts = in_order(tensors)
    left = each_whole({name: tensors[name] for name in facts})
    try:
        if folder is None or not tensors:
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / temporaries.name(".gathered", ".tmp")
        try:
            with open(path, "wb") as file:
                write_tensors(file, facts, lambda _: _next(left), {})
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return TemporaryTensors(path)
    finally:
        while next(left, None) is not None:  # without a name that would keep one in memory
            pass


def _next(left: Iterator[Tensor]) -> Iterator[Tensor]:
    yield next(left)
