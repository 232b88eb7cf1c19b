"""Hooks that see an update as it happens, and refuse what replay could not do again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..contracts import RecordingError
from ..training.optimizers import check_optimizer, group_hyperparameters


class Watch:
    """Watches one stage's model and optimiser, between its start and its end.

    The hooks note, per update: the generators' state before the first forward pass, the
    hyperparameters, and which parameters had no gradient. Parameters must be at every update as
    the update before left them, and buffers at every forward pass as the step before left them.
    One small parameter, the sentinel, is followed closely: from the second update on, its
    gradient has to be the sum of what backward gave it, and its optimiser state must not change
    outside ``optimizer.step()``. (The first update is replayed as a whole; see first_step.py.)

    Attributes:
        updates: How many optimiser steps were seen.
        noted: How many of them were noted by ``stage.step``.
        groups: Hyperparameters per group of the newest update.
        missing: Parameters without a gradient at the newest update.
        forwards: Forward passes with gradients since the update before.
        rng: Device to generator state before the newest forward pass that followed a note.
        gradients: Copies of all gradients of the first update, as the optimiser saw them.
        evaluation_mode: Modules in evaluation mode at the first forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: dict[int, str],
        clip_norm: float | None,
        keeps_batches: Callable[[int], bool],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.updates = 0
        self.noted = 0
        self.groups: list[dict[str, Any]] = []
        self.missing: tuple[str, ...] = ()
        self.forwards = 0
        self.rng: dict[str, Tensor] = {}
        self.drew_random_numbers = False
        self.gradients: dict[str, Tensor] = {}
        self.evaluation_mode: list[str] | None = None
        self._keeps_batches = keeps_batches
        self._modules = list(model.modules())
        self._modes: list[bool] = []
        self._names = names
        self._optimised = [
            (names[id(p)], p) for group in optimizer.param_groups for p in group["params"]
        ]
        self._group_sizes = self._sizes()
        self._parameters = list(model.named_parameters())
        self._trainable = [p.requires_grad for _, p in self._parameters]
        self._device = self._parameters[0][1].device
        parameters = _floating_parameters(model)
        self._values = _Fingerprint(lambda: parameters)
        self._buffers = _Fingerprint(partial(_floating_buffers, _buffer_places(model)))
        self._sentinel: nn.Parameter | None = None
        self._incoming: Tensor | None = None
        self._sentinel_state: list[tuple[Any, int]] = []
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before_forward),
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]

    def close(self) -> None:
        """Take all hooks away; the model and the optimiser are as before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take_rng(self) -> dict[str, Tensor]:
        """Generator states of the micro-batch just noted; empty where it drew no numbers."""
        self._buffers.take()
        rng, self.rng = self.rng, {}
        drew, self.drew_random_numbers = self.drew_random_numbers, False
        if rng and self.updates == self.noted:  # no update followed, which would have looked
            drew = not _same_rng(rng, self._rng_now())
        return rng if drew else {}

    def _rng_now(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def __deepcopy__(self, _memo: dict[int, Any]) -> Watch:
        """A copied model (an average of weights, say) carries the hook along; it sees nothing."""
        return self

    def _before_forward(self, module: nn.Module, _args: Any) -> None:
        if module is not self.model or not torch.is_grad_enabled():
            return
        if torch.is_autocast_enabled(self._device.type):
            raise RecordingError(
                "the forward pass runs in mixed precision (autocast), which replay does not "
                "reproduce; train in float32"
            )
        self.forwards += 1
        self._check_modes()
        if not self.rng and (self.noted == 0 or self._keeps_batches(self.noted)):
            self.rng = self._rng_now()
        self.check_buffers()
        self._buffers.forget()

    def _check_modes(self) -> None:
        modes = [module.training for module in self._modules]
        if modes == self._modes:
            return
        if self._modes:
            changed = next(i for i, mode in enumerate(modes) if mode != self._modes[i])
            name = [name for name, _ in self.model.named_modules()][changed] or "the model"
            raise RecordingError(
                f"{name} changed between training and evaluation mode within the stage; train "
                "with the same modes from the stage's first step on (evaluate under "
                "torch.no_grad(), and call model.train() afterwards), or record two stages"
            )
        self._modes = modes
        self.evaluation_mode = [n for n, m in self.model.named_modules() if not m.training]

    def _after_backward(self, gradient: Tensor) -> None:
        if self._incoming is None:
            self._incoming = gradient.detach().clone()
        else:
            self._incoming += gradient.detach()

    def _before_update(
        self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if kwargs.get("closure") is not None or any(callable(arg) for arg in args[1:]):
            raise RecordingError(
                "optimizer.step was called with a closure, which replay does not reproduce; call "
                "loss.backward() and then optimizer.step()"
            )
        if self.updates > self.noted:
            raise RecordingError(
                f"optimizer.step() was called again before update {self.updates} was noted; call "
                "stage.step(batch, loss) after every optimizer.step()"
            )
        self._check_settings()
        self.check_parameters()
        if self.updates == 0:
            check_optimizer(self.optimizer)
            self.gradients = {
                name: p.grad.detach().clone() for name, p in self._optimised if p.grad is not None
            }
            self._follow(self._choose_sentinel())
        else:
            self._check_gradient()
        self._check_norm()
        self.groups = group_hyperparameters(self.optimizer)
        self.missing = tuple(name for name, p in self._optimised if p.grad is None)
        if self.rng:
            self.drew_random_numbers = not _same_rng(self.rng, self._rng_now())

    def _choose_sentinel(self) -> nn.Parameter:
        """The smallest parameter with a gradient that is not zero."""
        moving = [p for _, p in self._optimised if p.grad is not None and bool(p.grad.any())]
        trained = [p for _, p in self._optimised if p.requires_grad]
        return min(moving or trained, key=lambda p: p.numel())

    def _follow(self, sentinel: nn.Parameter) -> None:
        self._sentinel = sentinel
        self._handles.append(sentinel.register_hook(self._after_backward))

    def _sizes(self) -> list[int]:
        return [len(group["params"]) for group in self.optimizer.param_groups]

    def _check_settings(self) -> None:
        if self._sizes() != self._group_sizes:
            raise RecordingError(
                "the optimiser's parameter groups changed within the stage; add or take "
                "parameters between stages"
            )
        trainable = [p.requires_grad for _, p in self._parameters]
        if trainable != self._trainable:
            changed = next(i for i, now in enumerate(trainable) if now != self._trainable[i])
            raise RecordingError(
                f"{self._parameters[changed][0]} was "
                f"{'unfrozen' if trainable[changed] else 'frozen'} within the stage; change "
                "requires_grad between stages"
            )

    def check_parameters(self) -> None:
        """Refuse parameters, or optimiser state, that were changed since the newest update."""
        changed = self._values.changed()
        if self.updates and not _same_objects(self._sentinel_state, self._state_now()):
            changed = f"the optimiser's state of {self._names[id(self._sentinel)]}"
        if changed is None:
            return
        raise RecordingError(
            f"{changed} was changed outside optimizer.step(), after update {self.updates}; replay "
            "could not know that change. Leave parameters to the optimiser within a stage "
            "(average, constrain or load weights between stages)"
        )

    def check_buffers(self) -> None:
        """Refuse buffers that were changed since the newest step was noted."""
        changed = self._buffers.changed()
        if changed is None:
            return
        raise RecordingError(
            f"{changed} was changed between two steps, after update {self.updates}; replay could "
            "not know that change. Pass other data through the model in evaluation mode only, "
            "model.eval(), and leave buffers alone within a stage"
        )

    def _state_now(self) -> list[tuple[Any, int]]:
        assert self._sentinel is not None
        state = self.optimizer.state.get(self._sentinel, {})
        return [(value, value._version) for value in state.values() if isinstance(value, Tensor)]

    def _check_gradient(self) -> None:
        assert self._sentinel is not None
        incoming, self._incoming = self._incoming, None
        gradient = self._sentinel.grad
        if self.clip_norm is not None or incoming is None or gradient is None:
            return
        if not _equal_or_nan(incoming, gradient):
            raise RecordingError(
                f"the gradient of {self._names[id(self._sentinel)]} was changed between backward "
                f"and optimizer.step() (update {self.updates + 1}): by clipping, which has to be "
                "declared with stage(..., clip_norm=MAX_NORM), by gradients left over from the "
                "update before (call optimizer.zero_grad()), or by code that replay does not know"
            )

    def _check_norm(self) -> None:
        if self.clip_norm is None:
            return
        gradients = [p.grad for _, p in self._parameters if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if norm > self.clip_norm * 1.001:
            raise RecordingError(
                f"the gradients' total norm is {norm:.4g} at update {self.updates + 1}, above "
                f"the declared clip_norm={self.clip_norm:g}; declare the norm that the loop "
                "clips to, or no clip_norm if it does not clip"
            )

    def _after_update(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        assert self._sentinel is not None
        self.updates += 1
        self._values.take()
        self._sentinel_state = self._state_now()


class _Fingerprint:
    """Tells whether tensors were changed in between, by one sum of squares each: no copy is kept.

    Args:
        named: Gives the tensors by name, as they are now.
    """

    def __init__(self, named: Callable[[], dict[str, Tensor]]) -> None:
        self._named = named
        self._arrays: list[np.ndarray] = []
        self._addresses: list[int] = []
        self._sums: list[float] | None = None
        tensors = named().values()
        self._in_numpy = all(
            t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors
        )
        # Sums in at least float32: half precision would not see small changes.
        self._dtype = reduce(torch.promote_types, [t.dtype for t in tensors], torch.float32)
        self.take()

    def _now(self) -> list[float]:
        tensors = self._named().values()
        if not self._in_numpy:
            with torch.no_grad():
                norms = torch._foreach_norm(list(tensors), 2, dtype=self._dtype)
                return torch.stack(norms).tolist()
        # Several times faster than torch for the few and small tensors of a small model.
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._addresses = addresses
            self._arrays = [tensor.detach().numpy() for tensor in tensors]
        return [float(np.vdot(array, array)) for array in self._arrays]

    def take(self) -> None:
        """Remember the tensors as they are now."""
        self._sums = self._now()

    def forget(self) -> None:
        """Anything may change until the next :meth:`take`."""
        self._sums = None

    def changed(self) -> str | None:
        """Name of the first tensor that is not as remembered; None where all are."""
        if self._sums is None or (now := self._now()) == self._sums:
            return None
        for name, before, after in zip(self._named(), self._sums, now, strict=True):
            if before != after and not (math.isnan(before) and math.isnan(after)):
                return name
        return None


def _floating_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


def _buffer_places(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Full name, module and own name of every buffer; None may stand there for now."""
    return [
        (f"{prefix}.{name}".removeprefix("."), module, name)
        for prefix, module in model.named_modules()
        for name in module._buffers
    ]


def _floating_buffers(places: list[tuple[str, nn.Module, str]]) -> dict[str, Tensor]:
    # Looked up anew, because a forward pass may put another tensor in a buffer's place.
    found = {full: module._buffers[name] for full, module, name in places}
    return {full: b for full, b in found.items() if b is not None and b.is_floating_point()}


def _same_rng(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[device], b[device]) for device in a)


def _same_objects(a: list[tuple[Any, int]], b: list[tuple[Any, int]]) -> bool:
    return len(a) == len(b) and all(
        x is y and version == later for (x, version), (y, later) in zip(a, b, strict=True)
    )


def _equal_or_nan(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (bool(a.isnan().any()) and bool(b.isnan().any()))
