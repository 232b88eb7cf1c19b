"""Noticing that a model was changed after the recording of its last stage ended."""

from __future__ import annotations

import atexit
import math
import warnings
import weakref
from pathlib import Path

import torch
from torch import nn

from stagelens.contracts import RecordingWarning
from stagelens.runs.shards import own_part, put_back
from stagelens.runs.states import model_tensors

_CLOSE = 1e-9
"""Relative; sums in float64 differ by less between devices."""


class FinalModel:
    """A model as the newest stage of a run left it. The model itself is not kept alive.

    Args:
        path: The run folder.
        stage: The stage's name.
        model: At the stage's end.
    """

    def __init__(self, path: Path, stage: str, model: nn.Module) -> None:
        self._path, self._stage = path.resolve(), stage
        self._model = weakref.ref(model)
        self._then = _sums(model)
        for path, other in list(_newest.items()):
            if other._model() is None:
                del _newest[path]
        _newest[self._path] = self

    def check(self) -> None:
        """Warn, once, if the model is not as it was and no other stage of the run has begun."""
        model = self._model()
        if model is None or _newest.get(self._path) is not self:
            return
        try:
            now = _sums(model)
        except (RuntimeError, MemoryError):  # it was taken apart, or there is no room to look
            return
        # A cast changes every value a little, and says so itself.
        changed = [
            name
            for name, (dtype, total) in self._then.items()
            if name in now and now[name][0] == dtype and not _close(now[name][1], total)
        ]
        if not changed:
            return
        del _newest[self._path]
        warnings.warn(
            f"the model is not as stage {self._stage!r}, the last of {self._path.name}, left it: "
            f"{changed[0]} was changed after its recording ended, as by a callback that averages "
            "weights. What the run says is about the model at the end of the stage; change "
            "weights within no stage and after none, or record what changes them as a stage",
            RecordingWarning,
            stacklevel=2,
        )


_newest: dict[Path, FinalModel] = {}
"""Of every run folder that was recorded into. Weights may change on purpose before another stage,
so the end of the process decides; only sums are kept until then."""


@atexit.register
def check_all() -> None:
    """Check the models of all runs, as no other stage will follow."""
    for final in list(_newest.values()):
        final.check()


def superseded(path: Path) -> None:
    """Another stage of the run begins, which compares with the end of the last one itself."""
    _newest.pop(path.resolve(), None)


def _sums(model: nn.Module) -> dict[str, tuple[torch.dtype, tuple[float, float]]]:
    """Dtype, sum and sum of squares of every parameter and buffer of floating-point numbers."""
    found = {}
    put_back(model)
    for name, whole in model_tensors(model).items():
        tensor = own_part(whole)
        if tensor.is_floating_point() and tensor.device.type != "meta":
            # Reduced in float64 without a copy in float64, which may not fit beside the model.
            norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
            found[name] = tensor.dtype, (float(tensor.sum(dtype=torch.float64)), float(norm**2))
    return found


def _close(a: tuple[float, float], b: tuple[float, float]) -> bool:
    # A sum may be a small difference of large terms; their squares say how large they are.
    room = _CLOSE * max(1.0, abs(a[1]), abs(b[1]))
    pairs = zip(a, b, strict=True)
    return all(x == y or abs(x - y) <= room or (math.isnan(x) and math.isnan(y)) for x, y in pairs)
