"""Hooks that see an update as it happens, and refuse what replay could not reproduce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stagelens.contracts import RecordingError
from stagelens.replaying.optimizers import check_optimizer, group_hyperparameters
from stagelens.runs.schema import Precision

from .fingerprint import Fingerprint, SampledFingerprint
from .hooks import PassiveHook
from .precision import PrecisionWatch

_SETTINGS_EVERY = 16
"""Updates between two checks of settings: once changed, these stay changed."""


class Watch:
    """Watches one stage's model and optimiser, between its start and its end.

    The hooks note, per update: the generators' state before the first forward pass, the
    hyperparameters, and which parameters had no gradient. At every update, parameters must be as
    the previous update left them; at every forward pass, buffers as the previous step left them.
    One small parameter, the sentinel, is followed closely: from the second update on, its
    gradient has to be the sum of what backward gave it. (The first update is replayed as a whole;
    see first_step.py.)

    Attributes:
        updates: How many optimiser steps were seen.
        noted: How many of them were noted by ``stage.step``.
        groups: Hyperparameters per group of the newest update.
        missing: Parameters without a gradient at the newest update.
        forwards: Forward passes with gradients since the last update.
        rng: Device to generator state before the newest forward pass that followed a note.
        passes_move_buffers: Whether a step's forward passes changed buffers, as in BatchNorm.
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
        self.passes_move_buffers = False
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
        self._precision = PrecisionWatch(model, self._device.type)
        self._values = SampledFingerprint(model)
        self._buffers = Fingerprint.of_buffers(model)
        self._values.take()
        if self._buffers is not None:
            self._buffers.take()
        self._sentinel: nn.Parameter | None = None
        self._incoming: Tensor | None = None
        self._sentinel_state: list[Tensor] = []
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(PassiveHook(self._before_forward)),
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]

    def close(self) -> None:
        """Remove all hooks, leaving the model and the optimiser as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._precision.close()

    @property
    def precision(self) -> Precision:
        """That of the stage's forward passes."""
        return self._precision.precision

    def take_rng(self) -> dict[str, Tensor]:
        """Generator states of the micro-batch just noted; empty where it drew no numbers."""
        if self._buffers is not None and self._buffers.retake():
            self.passes_move_buffers = True
        rng, self.rng = self.rng, {}
        drew, self.drew_random_numbers = self.drew_random_numbers, False
        if rng and self.updates == self.noted:  # no update followed, so nothing has compared yet
            drew = not _same_rng(rng, self._rng_now())
        return rng if drew else {}

    def _rng_now(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def _before_forward(self, module: nn.Module, _args: Any) -> None:
        # Passes without gradients are evaluations, which replay does not repeat.
        if module is not self.model or not torch.is_grad_enabled():
            return
        self._precision.before_pass()
        self.forwards += 1
        self._check_modes()
        # Before the first of several passes: from there on, replay draws all of their numbers
        # again. The first step is replayed at once, even if its batches are not kept.
        if not self.rng and (self.noted == 0 or self._keeps_batches(self.noted)):
            self.rng = self._rng_now()
        if self._buffers is not None:
            self._check_buffers(self._buffers)
            # The pass itself may change buffers: BatchNorm moves its running statistics.
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
            # Cloned: torch may keep this tensor as .grad, which clipping changes in place.
            self._incoming = gradient.detach().clone()
        else:
            self._incoming += gradient.detach()

    def _before_update(
        self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # args[0] is the optimiser itself.
        if kwargs.get("closure") is not None or any(map(callable, args[1:])):
            raise RecordingError(
                "optimizer.step was called with a closure, which replay does not reproduce; call "
                "loss.backward() and then optimizer.step()"
            )
        if self.updates > self.noted:
            raise RecordingError(
                f"optimizer.step() was called again before update {self.updates} was noted; call "
                "stage.step(batch, loss) after every optimizer.step()"
            )
        self._check_values()
        if self.updates % _SETTINGS_EVERY == 0:
            self._check_settings()
        if self.updates == 0:
            # Checked when the stage began, but options can be set before its first update.
            check_optimizer(self.optimizer)
            self.gradients = {
                name: p.grad.detach().clone() for name, p in self._optimised if p.grad is not None
            }
            self._follow(self._choose_sentinel())
        self._check_gradient()
        self.groups = group_hyperparameters(self.optimizer)
        self.missing = tuple([name for name, p in self._optimised if p.grad is None])
        if self.rng:
            self.drew_random_numbers = not _same_rng(self.rng, self._rng_now())

    def _choose_sentinel(self) -> nn.Parameter:
        """The smallest parameter with a gradient that is not zero."""
        # Small, as its gradient is compared at every update; a zero one would not show scaling.
        moving = [p for _, p in self._optimised if p.grad is not None and bool(p.grad.any())]
        trained = [p for _, p in self._optimised if p.requires_grad]
        return min(moving or trained, key=lambda p: p.numel())

    def _follow(self, sentinel: nn.Parameter) -> None:
        self._sentinel = sentinel
        self._handles.append(sentinel.register_hook(self._after_backward))

    def _sizes(self) -> list[int]:
        return [len(group["params"]) for group in self.optimizer.param_groups]

    def check_now(self) -> None:
        """Refuse what was changed after the newest step was noted."""
        self._check_values()
        self._check_settings()
        if self._buffers is not None:
            self._check_buffers(self._buffers)

    def _check_settings(self) -> None:
        if self._sizes() != self._group_sizes:
            raise RecordingError(
                "the optimiser's parameter groups changed within the stage; add or take "
                "parameters between stages"
            )
        for (name, parameter), before in zip(self._parameters, self._trainable, strict=True):
            if parameter.requires_grad != before:
                raise RecordingError(
                    f"{name} was {'frozen' if before else 'unfrozen'} within the stage; change "
                    "requires_grad between stages"
                )
        # Updates change state in place; loading or resetting it makes new tensors.
        now = {id(tensor) for tensor in self._state_now()}
        if any(id(tensor) not in now for tensor in self._sentinel_state):
            raise RecordingError(
                "the optimiser's state was replaced within the stage; load or reset it between "
                "stages"
            )

    def _check_values(self) -> None:
        changed = self._values.changed()
        if changed is not None:
            raise RecordingError(
                f"{changed} was changed outside optimizer.step(), after update {self.updates}; "
                "replay could not reproduce that change. Leave parameters to the optimiser within "
                "a stage (average, constrain or load weights between stages)"
            )

    def _check_buffers(self, buffers: Fingerprint) -> None:
        changed = buffers.changed()
        if changed is None:
            return
        raise RecordingError(
            f"{changed} was changed between two steps, after update {self.updates}; replay could "
            "not reproduce that change. Pass other data through the model in evaluation mode "
            "only, model.eval(), and leave buffers alone within a stage"
        )

    def _state_now(self) -> list[Tensor]:
        state = self.optimizer.state.get(self._sentinel, {}) if self._sentinel is not None else {}
        return [value for value in state.values() if isinstance(value, Tensor)]

    def _check_gradient(self) -> None:
        assert self._sentinel is not None
        incoming, self._incoming = self._incoming, None
        gradient = self._sentinel.grad
        same = incoming is None or gradient is None or _equal_or_nan(incoming, gradient)
        if self.clip_norm is not None:
            # A gradient as backward left it was not clipped, so the total norm must allow that.
            if same or self.updates % _SETTINGS_EVERY == 0:
                self._check_norm(self.clip_norm)
        elif not same:
            raise RecordingError(
                f"the gradient of {self._names[id(self._sentinel)]} was changed between backward "
                f"and optimizer.step() (update {self.updates + 1}): by clipping, which has to be "
                "declared with stage(..., clip_norm=MAX_NORM), by gradients left over from the "
                "update before (call optimizer.zero_grad()), or by code that replay does not know "
                "of"
            )

    def _check_norm(self, largest: float) -> None:
        gradients = [p.grad for _, p in self._parameters if p.grad is not None]
        # In float32: the sum of many squares has no digits left in half precision.
        norm = float(nn.utils.get_total_norm([gradient.float() for gradient in gradients]))
        # Clipping scales each gradient in its own dtype, so it reaches the norm up to its rounding.
        rounding = max(torch.finfo(gradient.dtype).eps for gradient in gradients)
        if norm > largest * (1.001 + 2 * rounding):
            raise RecordingError(
                f"the gradients' total norm is {norm:.4g} at update {self.updates + 1}, above "
                f"the declared clip_norm={largest:g}; declare the norm that the loop clips to, or "
                "no clip_norm if it does not clip"
            )

    def _after_update(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.updates += 1
        self._values.take()
        if self.updates == 1:
            self._sentinel_state = self._state_now()


def _same_rng(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[device], b[device]) for device in a)


def _equal_or_nan(a: Tensor, b: Tensor) -> bool:
    # Where a training diverges, NaN on both sides is no change.
    return torch.equal(a, b) or (bool(a.isnan().any()) and bool(b.isnan().any()))
