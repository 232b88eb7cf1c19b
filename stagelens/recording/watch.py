"""Hooks that see an update as it happens, and refuse what replay could not reproduce."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from stagelens.contracts import RecordingError
from stagelens.replaying.optimizers import CALLS, check_optimizer
from stagelens.runs.optimizer_set import AnyOptimizer, Handles, members
from stagelens.runs.shards import is_sharded, own_part

from .checked_steps import CheckedSteps
from .fingerprint import Fingerprint, SampledFingerprint
from .hooks import PassiveHook, grad_scaler_above, of_another, weakly
from .hyperparameters import Hyperparameters
from .modes import ModeWatch
from .no_checks import NoChecks
from .optimizer_state import OptimizerStateWatch
from .parallel_models import NORMS
from .precision import PrecisionWatch
from .random_state import generator_states, same_states
from .sentinel import Sentinel
from .stray_gradients import StrayGradients
from .update_count import learning_rates
from .weight_average import HINT

# In C: these are read of every module or parameter at every step.
_TRAINING, _REQUIRES_GRAD = attrgetter("training"), attrgetter("requires_grad")
_GRADIENT, _PARAMETERS = attrgetter("grad"), itemgetter("params")
_NORM_EVERY = 16
"""Updates between two checks of a clipped gradient's norm, which reads all gradients."""


class Watch:
    """Watches one stage's model and optimiser, between its start and its end.

    The hooks note, per update: the generators' state before the first forward pass, the
    hyperparameters, and which parameters had no gradient. At every update, parameters must be as
    the previous update left them; at every forward pass, buffers as the previous step left them.
    One small parameter, the sentinel, is followed closely, later at one update of four: from the
    second update on, its gradient has to be the sum of what backward gave it. What cannot be seen
    in this way is left to the steps that are run again.

    Where several processes train, a gradient is the mean over them, which no process knows by
    itself: the sentinel says nothing then. Buffers of norms are the main process's, handed to all.

    Once there was a problem, nothing is checked any more, but updates are still noted.

    Attributes:
        updates: How many optimiser steps were seen.
        noted: How many of them were noted by ``stage.step``.
        groups: Hyperparameters per group of the newest update; after a problem, learning rates.
        missing: Parameters without a gradient at the newest update.
        forwards: Forward passes with gradients since the last update.
        rng: Device to generator state before the newest forward pass that followed a note.
        passes_move_buffers: Whether a step's forward passes changed buffers, as in BatchNorm.
        evaluation_mode: Modules in evaluation mode at the first forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AnyOptimizer,
        names: dict[int, str],
        clip_norm: float | None,
        keeps_batches: Callable[[int], bool],
        checked: CheckedSteps | NoChecks,
        tell: Callable[[Exception], None],
        shared: bool = False,
    ) -> None:
        self.checking = True
        self._shared, self._sharded = shared, is_sharded(model)
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.updates = 0
        self.noted = 0
        self.groups: list[dict[str, Any]] = learning_rates(optimizer)
        self._hyperparameters = Hyperparameters(optimizer)
        self.missing: tuple[str, ...] = ()
        self.forwards = 0
        self.rng: dict[str, Tensor] = {}
        self.drew_random_numbers = False
        self.passes_move_buffers = shared and any(isinstance(m, NORMS) for m in model.modules())
        self.evaluation_mode: list[str] | None = None
        self._keeps_batches = keeps_batches
        self._checked = checked
        self._tell = tell
        self._modules = list(model.modules())
        self._modes: list[bool] = []
        self._names = names
        self._optimised = [
            (names[id(p)], p) for group in optimizer.param_groups for p in group["params"]
        ]
        self._updated = [parameter for _, parameter in self._optimised]
        self._group_sizes = self._sizes()
        self._parameters = list(model.named_parameters())
        self._other: str | None = None
        self._tensors = [parameter for _, parameter in self._parameters]
        self._trainable = list(map(_REQUIRES_GRAD, self._tensors))
        self._device = self._parameters[0][1].device
        self._precision = PrecisionWatch(model, self._device.type, tell)
        self._values = SampledFingerprint(model)
        self._buffers = Fingerprint.of_buffers(model, NORMS if shared else ())
        self._values.take()
        if self._buffers is not None:
            self._buffers.take()
        self._gradients: list[Tensor | None] = []
        self._sentinel: Sentinel | None = None
        self._state = OptimizerStateWatch(optimizer, names)
        self._switches = ModeWatch(optimizer, self._before_switch, self._after_switch)
        self.strays = StrayGradients(model, optimizer, clip_norm, tell)
        self._handles: list[RemovableHandle | Handles | Sentinel] = [
            *self.strays.handles,
            register_optimizer_step_pre_hook(weakly(self)),
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
        self._switches.close()

    @property
    def calls(self) -> list[str]:
        """``train`` and ``eval`` of the optimiser, as they were called since the newest update."""
        return list(self._switches.calls)

    @property
    def facts(self) -> dict[str, Any]:
        """What it has found out, as ``stage.json`` says it."""
        modes, precision = self.evaluation_mode or [], self._precision.precision
        return {"evaluation_mode": modes, "precision": precision, "zeroed": self.strays.zeroed}

    def take_rng(self) -> dict[str, Tensor]:
        """Generator states of the micro-batch just noted; empty where it drew no numbers."""
        if self._buffers is not None and self._buffers.retake():
            self.passes_move_buffers = True
            if self._shared:
                raise RecordingError(
                    "passes of the model move buffers that are no running statistics of a norm, "
                    "and how the processes share these is not known; train in a single process"
                )
        rng, self.rng = self.rng, {}
        drew, self.drew_random_numbers = self.drew_random_numbers, False
        if rng and self.updates == self.noted:  # no update followed, so nothing has compared yet
            drew = not same_states(rng, generator_states(self._device))
        return rng if drew else {}

    def _before_forward(self, module: nn.Module, _args: Any) -> None:
        # Passes without gradients are evaluations, which replay does not repeat.
        if module is not self.model or not self.checking or not torch.is_grad_enabled():
            return
        try:
            self._see_pass()
        # Whatever it is, it must not reach the training loop.
        except Exception as error:
            self._tell(error)

    def _see_pass(self) -> None:
        self._precision.before_pass()
        self._checked.before_pass()
        self.forwards += 1
        self._check_modes()
        self._check_frozen()
        # Before the first of several passes: from there on, replay draws all of their numbers
        # again. The first step is replayed at once, even if its batches are not kept.
        if not self.rng and (self.noted == 0 or self._keeps_batches(self.noted)):
            self.rng = generator_states(self._device)
        if self._buffers is not None:
            self._check_buffers(self._buffers)
            # The pass itself may change buffers: BatchNorm moves its running statistics.
            self._buffers.forget()

    def _check_modes(self) -> None:
        modes = list(map(_TRAINING, self._modules))
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

    def _before_update(
        self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not self.checking:
            self.groups, self.missing = learning_rates(self.optimizer), ()
            return
        try:
            self._read_settings()
            self._check_before_update(args, kwargs)
        except Exception as error:
            self._tell(error)

    def _read_settings(self) -> None:
        self.groups = self._hyperparameters.read()
        if calls := self._switches.take():
            self.groups = [{**self.groups[0], CALLS: calls}, *self.groups[1:]]
        self._gradients = list(map(_GRADIENT, self._updated))
        self.missing = ()
        if NoneType in map(type, self._gradients):
            self.missing = tuple([name for name, p in self._optimised if p.grad is None])

    def _check_before_update(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # args[0] is the optimiser itself.
        if kwargs.get("closure") is not None or any(map(callable, args[1:])):
            raise RecordingError(
                "optimizer.step was called with a closure, which replay does not reproduce; call "
                "loss.backward() and then optimizer.step()"
            )
        if uneven := getattr(self.optimizer, "uneven", ""):
            raise RecordingError(
                f"{uneven}; let all optimisers of the stage step at every update, or give it only "
                "those that do"
            )
        if self.updates > self.noted:
            raise RecordingError(
                f"optimizer.step() was called again before update {self.updates} was noted; call "
                "stage.step(batch, loss) after every optimizer.step()"
            )
        self._check_values()
        self._check_settings()
        if self.updates == 0:
            # Checked when the stage began, but options can be set before its first update.
            for one in members(self.optimizer):
                check_optimizer(one)
            if grad_scaler_above():
                raise RecordingError(
                    "optimizer.step was called by a GradScaler, which scales losses by factors "
                    "that change during training, and skips updates: replay reproduces neither. "
                    "Train in bfloat16 or float32 without a scaler"
                )
            self._sentinel = Sentinel(self._updated, self._tell)
            self._handles.append(self._sentinel)
        self._check_gradient()
        self._checked.before_update(self._gradients)
        self._gradients = []  # whoever needs them longer holds them
        if self.rng:
            self.drew_random_numbers = not same_states(self.rng, generator_states(self._device))

    def _sizes(self) -> list[int]:
        return list(map(len, map(_PARAMETERS, self.optimizer.param_groups)))

    def check_now(self) -> None:
        """Refuse what was changed after the newest step was noted."""
        self._check_values()
        self._check_settings()
        self._check_frozen()
        if self._buffers is not None:
            self._check_buffers(self._buffers)

    def before_any_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before any optimiser's update."""
        own = any(optimizer is one for one in members(self.optimizer))
        if own or self._other is not None or not self.checking:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(id(parameter) in self._names for parameter in parameters):
            self._other = type(optimizer).__name__

    def _before_switch(self) -> None:
        if not self.checking:
            return
        try:
            if self.updates > self.noted or self.forwards:
                raise RecordingError(
                    "the optimiser was switched between training and evaluation weights in the "
                    "midst of a step; call optimizer.train() before the step's first forward pass, "
                    "and optimizer.eval() after stage.step(batch, loss)"
                )
            self._check_values()
        except Exception as error:
            self._tell(error)

    def _after_switch(self) -> None:
        if self.checking:
            self._values.take()
            self._state.take()

    def explained(self, error: RecordingError) -> RecordingError:
        """What a step that does not agree may come from, where another optimiser was seen."""
        return RecordingError(f"{error}. {of_another(self._other)}") if self._other else error

    def _check_settings(self) -> None:
        if self._sizes() != self._group_sizes:
            raise RecordingError(
                "the optimiser's parameter groups changed within the stage; add or take "
                "parameters between stages"
            )
        if (name := self._state.changed()) is not None:
            raise RecordingError(
                f"the optimiser's state was replaced within the stage, or changed outside "
                f"optimizer.step() (that of {name}, after update {self.updates}); load or reset it "
                "between stages"
            )

    def _check_frozen(self) -> None:
        if list(map(_REQUIRES_GRAD, self._tensors)) == self._trainable:
            return
        for (name, parameter), before in zip(self._parameters, self._trainable, strict=True):
            if parameter.requires_grad != before:
                raise RecordingError(
                    f"{name} was {'frozen' if before else 'unfrozen'} within the stage; change "
                    "requires_grad between stages"
                )

    def _check_values(self) -> None:
        if (changed := self._values.changed()) is None:
            return
        said = f"{changed} was changed outside optimizer.step(), after update {self.updates}"
        if self._other is not None:
            raise RecordingError(f"{said}. {of_another(self._other)}")
        raise RecordingError(
            f"{said}; replay could not reproduce that change. Leave parameters to the optimiser "
            f"within a stage (average, constrain or load weights between stages); {HINT}"
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

    def _check_gradient(self) -> None:
        assert self._sentinel is not None
        if not self._sentinel.followed:
            return
        same = self._sentinel.same()
        if self.clip_norm is not None:
            # A gradient as backward left it was not clipped, so the total norm must allow that.
            if same or self._checked.planned or self.updates % _NORM_EVERY == 0:
                self._check_norm(self.clip_norm)
        elif not same and (self._sharded or not self._shared):
            name = self._names[id(self._sentinel.parameter)]
            raise RecordingError(
                f"the gradient of {name} was changed between backward and optimizer.step() (update "
                f"{self.updates + 1}): by clipping, which has to be declared with "
                "stage(..., clip_norm=MAX_NORM), by gradients left over from the update before "
                "(call optimizer.zero_grad()), or by code that replay does not know of"
            )

    def _check_norm(self, largest: float) -> None:
        # Of what is shared out, of the own parts alone: no more than of all.
        gradients = [own_part(p.grad) for _, p in self._parameters if p.grad is not None]
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
        if self._sentinel is not None:
            self._sentinel.updated(self.updates, self.checking)
        if not self.checking:
            return
        try:
            self._values.take()
            self._state.take()
            self._hyperparameters.after_update()
        except Exception as error:
            self._tell(error)
