"""Training states on disk: what has not changed since an earlier one is stored once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from stagelens.contracts import RunError

from .checked_files import CheckedFiles
from .files import write_file
from .schema import FileRef, HeldBefore, StateRef
from .states import OptimizerState, TrainingState, Weights, same_values
from .streaming import (
    Gathered,
    MappedTensors,
    Streamed,
    TemporaryTensors,
    facts_of,
    flat_blocks,
    in_order,
    read_header,
)
from .tensor_files import write_tensors


def save_tensors(root: Path, relative: str, tensors: Mapping[str, Tensor]) -> FileRef:
    """Write named tensors as safetensors, atomically; the JSON file that names them comes next.

    They are written in blocks, but for a file that was made for them alone, which is moved.
    """

    def write(path: Path) -> None:
        if isinstance(tensors, TemporaryTensors) and tensors.move(path):
            return
        with open(path, "wb") as file:
            write_tensors(file, in_order(tensors), partial(flat_blocks, tensors), {})

    return write_file(root, relative, write, sync_folder=False)


def save_state(
    root: Path,
    prefix: str,
    state: TrainingState,
    earlier: StateRef | None = None,
    renamed: Mapping[str, str] | None = None,
) -> StateRef:
    """Write ``{prefix}.model.safetensors`` and, if there is state, ``{prefix}.optimizer...``.

    Args:
        root: The run folder.
        prefix: Path inside it, without the endings.
        state: What to write.
        earlier: A state on disk. What has not changed since is not written again: a frozen base,
            or the whole model.
        renamed: Name in this state to that in the earlier one, where they differ.
    """
    flat = {f"{n}/{key}": t for n, keys in state.optimizer.items() for key, t in keys.items()}
    optimizer = save_tensors(root, f"{prefix}.optimizer.safetensors", flat) if flat else None
    known = None if earlier is None else earlier.optimizer
    if optimizer is not None and known is not None and optimizer.sha256 == known.sha256:
        (root / optimizer.path).unlink()  # carried from a state that has it
        optimizer = known
    before = [] if earlier is None else _held_before(root, state.model, earlier, renamed or {})
    if earlier is not None and not renamed and _is_that(root, state.model, earlier, before):
        return earlier.model_copy(update={"optimizer": optimizer})
    model, before = _write(root, f"{prefix}.model.safetensors", state.model, before)
    return StateRef(model=model, before=before, optimizer=optimizer)


def save_model(
    root: Path, relative: str, model: Weights, earlier: StateRef | None
) -> tuple[FileRef, list[HeldBefore]]:
    """Write a model's parameters and buffers, except those that an earlier state's files hold.

    Returns:
        The file, and what it leaves to the others.
    """
    before = [] if earlier is None else _held_before(root, model, earlier, {})
    return _write(root, relative, model, before)


def _write(
    root: Path, relative: str, model: Weights, before: list[HeldBefore]
) -> tuple[FileRef, list[HeldBefore]]:
    """The file of what others do not hold; of the whole model, where that is hardly more."""
    known = {name for held in before for name in held.tensors}
    sizes = {name: facts_of(model, name).bytes for name in model}
    left = sum(size for name, size in sizes.items() if name not in known)
    if left > _MOSTLY * sum(sizes.values()):
        return save_tensors(root, relative, model), []  # a file that says all is worth a tenth more
    rest: Weights = {name: model[name] for name in model if name not in known}
    if isinstance(model, MappedTensors):
        rest = Gathered({name: (model, name) for name in rest})
    return save_tensors(root, relative, rest), before


_MOSTLY = 0.9
"""Share of a model's bytes from which all of it is written, although some has not changed."""


def _held_before(
    root: Path, model: Weights, earlier: StateRef, renamed: Mapping[str, str]
) -> list[HeldBefore]:
    """Which tensors an earlier state's files hold, bit for bit."""
    if earlier.names is not None or earlier.more or earlier.fixed is not None:
        return []  # others saved it
    own = {name: name for name in read_header(root / earlier.model.path).tensors}
    places = [(earlier.model, own), *((held.file, held.tensors) for held in earlier.before)]
    found = []
    for file, names in places:
        tensors = MappedTensors(root / file.path)
        there = {name: names[old] for name in model if (old := renamed.get(name, name)) in names}
        same = {name: at for name, at in there.items() if same_values(model, name, tensors, at)}
        if same:
            found.append(HeldBefore(file=file, tensors=same))
    return found


def _is_that(root: Path, model: Weights, earlier: StateRef, before: list[HeldBefore]) -> bool:
    """Whether a state on disk, which holds ``before`` of a model, is that model."""
    same = {name for held in before for name in held.tensors}
    own = {*read_header(root / earlier.model.path).tensors}
    return same == model.keys() == own.union(*(held.tensors for held in earlier.before))


def load_state(files: CheckedFiles, reference: StateRef) -> TrainingState:
    """Read a boundary or checkpoint, checking its files by digest.

    Raises:
        RunError: A file is missing, truncated or edited.
    """
    optimizer: OptimizerState = {}
    if reference.optimizer is not None:
        optimizer = nested(MappedTensors(files.path(reference.optimizer)))
    return TrainingState(load_model(files, reference), optimizer)


def nested(flat: Mapping[str, Tensor]) -> OptimizerState:
    """An optimiser's state by parameter, of tensors that are named ``PARAMETER/KEY``."""
    optimizer: OptimizerState = {}
    for place, tensor in flat.items():
        # From the right: names of parameters may hold a slash, the optimiser's keys do not.
        name, _, key = place.rpartition("/")
        optimizer.setdefault(name, {})[key] = tensor
    return optimizer


def load_model(files: CheckedFiles, reference: StateRef) -> Streamed:
    """Parameters and buffers by name, as views of memory-mapped files that are read when used.

    Args:
        files: Of the run folder.
        reference: A boundary or checkpoint.

    Raises:
        RunError: A file is missing, truncated or edited.
    """
    own = [reference.model, *reference.more, *filter(None, [reference.fixed])]
    paths = files.paths([*own, *(held.file for held in reference.before)])
    opened = [MappedTensors(path) for path in paths]
    # A later file says what an earlier one said before.
    places = {
        name: (tensors, there)
        for tensors, held in zip(opened[len(own) :], reference.before, strict=True)
        for name, there in held.tensors.items()
    }
    places |= {name: (tensors, name) for tensors in opened[: len(own)] for name in tensors}
    names = {name: name for name in places} if reference.names is None else reference.names
    for needed, name in names.items():
        tensors, there = places.get(name, (None, name))
        if tensors is None or there not in tensors:
            path = files.root / reference.model.path if tensors is None else tensors.path
            raise RunError(
                f"{path} has no tensor {there!r}, which should be {needed!r} of the model; restore "
                "the original run folder"
            )
    return Gathered({needed: places[name] for needed, name in names.items()})
