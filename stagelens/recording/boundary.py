"""What happened between two stages, found by comparing the states on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from ..contracts import RecordingError
from ..runs.schema import Boundary
from ..runs.states import TrainingState, same_tensor


def first_boundary(start: TrainingState, frozen: Sequence[str]) -> Boundary:
    """The boundary of the first stage: everything begins here."""
    carried = sorted(start.optimizer)
    return Boundary(
        optimizer="carried" if carried else "new", new=list(start.model), frozen=list(frozen)
    )


def find_boundary(
    before: TrainingState,
    start: TrainingState,
    *,
    stage: str,
    reinitialised: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> Boundary:
    """Name the boundary rule that leads from the end of the stage before to a stage's start.

    Args:
        before: End state of the stage before.
        start: State that the new stage starts from.
        stage: The new stage's name, for messages.
        reinitialised: Names, or prefixes of names, of parameters and buffers that were given new
            initial values on purpose.
        frozen: Parameters that the new stage does not train.

    Raises:
        RecordingError: A value changed in between that nothing explains: replay could not tell
            what the change would have been without an earlier stage.
    """
    new, carried = [], []
    for name, tensor in start.model.items():
        declared = any(name == r or name.startswith(r.rstrip(".") + ".") for r in reinitialised)
        known = before.model.get(name)
        if known is None or known.shape != tensor.shape or declared:
            new.append(name)
        elif not same_tensor(known, tensor):
            raise RecordingError(
                f"{name} differs from its value at the end of the stage before, so stage "
                f"{stage!r} does not start where that one ended. Start from that model (after an "
                "interruption: recorder.restore(model, optimizer)); if it was initialised anew on "
                f"purpose, pass reinitialised=[{name!r}]"
            )
    for name, tensors in start.optimizer.items():
        earlier = before.optimizer.get(name)
        same = earlier is not None and earlier.keys() == tensors.keys()
        if not same or not all(same_tensor(earlier[key], tensors[key]) for key in tensors):  # type: ignore[index]
            raise RecordingError(
                f"the optimiser's state of {name} is neither new nor that of the end of the stage "
                "before; pass a new optimiser, or the one of the stage before untouched"
            )
        if name in new:
            raise RecordingError(
                f"{name} is new in stage {stage!r}, but the optimiser already has a state for it; "
                "pass a new optimiser"
            )
        carried.append(name)
    lost = [name for name in before.optimizer if name in start.model and name not in carried]
    return Boundary(
        optimizer="new" if not carried else "partly carried" if lost else "carried",
        carried=carried,
        new=new,
        removed=[name for name in before.model if name not in start.model],
        frozen=list(frozen),
    )
