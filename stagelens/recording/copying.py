"""Copies of a training's state that can be renewed at every step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.runs.quantised import quantised_parts
from stagelens.runs.states import OptimizerState


class WeightsCopy:
    """Parameters and buffers as they were when the copy was made or renewed, on their device.

    Args:
        model: Its parameters keep their place in memory; a forward pass may replace its buffers.

    Attributes:
        tensors: The copies, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = {n: p.detach().as_subclass(Tensor) for n, p in model.named_parameters()}
        shared_once = {name for name, _ in model.named_buffers()}  # as model_tensors names them
        self._places = {
            f"{prefix}.{name}".removeprefix("."): (module._buffers, name)
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and f"{prefix}.{name}".removeprefix(".") in shared_once
        }
        self.tensors = {name: tensor.clone() for name, tensor in parameters.items()}
        for name, parameter in model.named_parameters():
            self.tensors |= quantised_parts(name, parameter)  # never change
        for full, (buffers, name) in self._places.items():
            self.tensors[full] = buffers[name].detach().clone()
        # NumPy only shares CPU memory; it is several times quicker for few, small tensors.
        quick = [name for name, tensor in parameters.items() if _in_numpy(tensor)]
        self._arrays = [(self.tensors[name].numpy(), parameters[name].numpy()) for name in quick]
        self._rest = [(self.tensors[n], t) for n, t in parameters.items() if n not in quick]

    def renew(self) -> None:
        """Copy again."""
        for target, source in self._arrays:
            np.copyto(target, source)
        pairs = [*self._rest]
        for full, (buffers, name) in self._places.items():
            if (buffer := buffers[name]) is not None:
                pairs.append((self.tensors[full], buffer))
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([target for target, _ in pairs], [own for _, own in pairs])


class StateCopy:
    """An optimiser's state as it was when the copy was made or renewed, on its device.

    Args:
        state: The optimiser's own tensors.

    Attributes:
        state: The copies.
    """

    def __init__(self, state: OptimizerState) -> None:
        self.state: OptimizerState = {
            name: {key: tensor.clone() for key, tensor in own.items()}
            for name, own in state.items()
        }
        self._targets = _flat(self.state)

    def renew(self, state: OptimizerState) -> bool:
        """Copy again; whether that was possible, as the state has the same tensors as before."""
        sources = _flat(state)
        if sources.keys() != self._targets.keys() or any(
            target.shape != sources[place].shape or target.dtype != sources[place].dtype
            for place, target in self._targets.items()
        ):
            return False
        if sources:
            with torch.no_grad():
                torch._foreach_copy_([*self._targets.values()], [*sources.values()])
        return True


class StateCopies:
    """Two copies of an optimiser's state in turn: the one before is still needed."""

    def __init__(self) -> None:
        self._made: list[StateCopy] = []

    def copied(self, state: OptimizerState) -> OptimizerState:
        """A copy, in the place of the one before the newest."""
        if len(self._made) == 2:
            self._made.reverse()
            if not self._made[-1].renew(state):
                self._made.pop()
                self._made.append(StateCopy(state))
        else:
            self._made.append(StateCopy(state))
        return self._made[-1].state


def _flat(state: OptimizerState) -> dict[tuple[str, str], Tensor]:
    return {(name, key): tensor for name, own in state.items() for key, tensor in own.items()}


def _in_numpy(tensor: Tensor) -> bool:
    known = tensor.dtype in (torch.float32, torch.float64)
    return tensor.device.type == "cpu" and known and tensor.is_contiguous()
