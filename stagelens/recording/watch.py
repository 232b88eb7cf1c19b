"""Hooks that see an update as it happens, and refuse what replay could not do again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..contracts import RecordingError
from ..training.optimizers import check_optimizer, group_hyperparameters

_NORM_EVERY = 32
"""Steps between two checks that declared clipping was applied; each costs one gradient norm."""


class Watch:
    """Watches one stage's model and optimiser, between its start and its end.

    The hooks note, per update: the generators' state before the first forward pass, the
    hyperparameters, and which parameters had no gradient. One small parameter, the sentinel, is
    followed closely: its gradient has to be the sum of what backward gave it, and its value must
    not change outside ``optimizer.step()``.

    Attributes:
        updates: How many optimiser steps were seen.
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
        self._parameters = [
            (names[id(p)], p) for group in optimizer.param_groups for p in group["params"]
        ]
        self._sentinel = min(
            (p for _, p in self._parameters if p.requires_grad), key=lambda p: p.numel()
        )
        self._sentinel_name = names[id(self._sentinel)]
        self._incoming: Tensor | None = None
        self._values: Tensor | None = None
        self._versions: list[int] = []
        self._device = self._sentinel.device
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before_forward),
            self._sentinel.register_hook(self._after_backward),
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
        rng, self.rng = self.rng, {}
        drew, self.drew_random_numbers = self.drew_random_numbers, False
        if rng and not drew:
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
        if not self.rng and self._keeps_batches(self.noted):
            self.rng = self._rng_now()

    def _check_modes(self) -> None:
        modes = [module.training for module in self._modules]
        if modes == self._modes:
            return
        if self._modes:
            changed = next(i for i, mode in enumerate(modes) if mode != self._modes[i])
            name = [name for name, _ in self.model.named_modules()][changed] or "the model"
            raise RecordingError(
                f"{name} changed between training and evaluation mode within the stage; train "
                "with the same modes from the stage's first step on, or record two stages"
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
        if self.updates == 0:
            check_optimizer(self.optimizer)
            self.gradients = {
                name: p.grad.detach().clone() for name, p in self._parameters if p.grad is not None
            }
        self._check_parameters()
        self._check_gradient()
        self.groups = group_hyperparameters(self.optimizer)
        self.missing = tuple(name for name, p in self._parameters if p.grad is None)
        if self.rng:
            self.drew_random_numbers = not _same_rng(self.rng, self._rng_now())

    def _check_parameters(self) -> None:
        if not self._versions:
            return
        versions = [p._version for _, p in self._parameters]
        if versions != self._versions:
            changed = next(i for i, v in enumerate(versions) if v != self._versions[i])
            name = self._parameters[changed][0]
        elif self._values is not None and not torch.equal(self._values, self._sentinel.detach()):
            name = self._sentinel_name
        else:
            return
        raise RecordingError(
            f"{name} was changed outside optimizer.step(), between updates {self.updates} and "
            f"{self.updates + 1}; replay could not know that change. Leave parameters to the "
            "optimiser within a stage (average or constrain weights between stages)"
        )

    def _check_gradient(self) -> None:
        incoming, self._incoming = self._incoming, None
        gradient = self._sentinel.grad
        if incoming is None or gradient is None:
            return
        if self.clip_norm is None and not _equal_or_nan(incoming, gradient):
            raise RecordingError(
                f"the gradient of {self._sentinel_name} was changed between backward and "
                f"optimizer.step() (update {self.updates + 1}): by clipping, which has to be "
                "declared with stage(..., clip_norm=MAX_NORM), by gradients left over from the "
                "update before (call optimizer.zero_grad()), or by code that replay does not know"
            )
        if self.clip_norm is not None and self.updates % _NORM_EVERY == 0:
            gradients = [p.grad for _, p in self._parameters if p.grad is not None]
            norm = float(nn.utils.get_total_norm(gradients))
            if norm > self.clip_norm * 1.001:
                raise RecordingError(
                    f"the gradients' total norm is {norm:.4g} at update {self.updates + 1}, above "
                    f"the declared clip_norm={self.clip_norm:g}; declare the norm that the loop "
                    "clips to, or no clip_norm if it does not clip"
                )

    def _after_update(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.updates += 1
        self._versions = [p._version for _, p in self._parameters]
        self._values = self._sentinel.detach().clone()


def _same_rng(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[device], b[device]) for device in a)


def _equal_or_nan(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (bool(a.isnan().any()) and bool(b.isnan().any()))
