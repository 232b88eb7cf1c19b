"""Weights kept in memory between questions, within a limit, and shared by all callers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stagelens.runs.run import Run
from stagelens.runs.states import Weights, load_into
from stagelens.runs.streaming import facts_of

_MODULES = 8
"""Modules kept; without their weights they take next to no memory."""


class LoadedWeights:
    """The weights of final models and counterfactuals; the least recently used are dropped first.

    They never exceed the limit; a model that is larger than the limit is read for every question.
    A module is shared by all callers and holds one model's weights at a time, so hold ``lock`` as
    long as one of them is in use.

    Args:
        limit: Bytes that may stay loaded.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lock = threading.Lock()
        self._weights: OrderedDict[Hashable, Weights] = OrderedDict()
        self._modules: OrderedDict[str, nn.Module] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes that are loaded."""
        return sum(map(_size, self._weights.values()))

    def get(self, key: Hashable, size: int, load: Callable[[], Weights]) -> Weights:
        """Weights by key, read if they are not loaded; room is made before reading.

        Args:
            key: Names the content, not the place.
            size: About how many bytes they take.
            load: Reads them.
        """
        if key in self._weights:
            self._weights.move_to_end(key)
            return self._weights[key]
        self._make_room(size)
        weights = load()
        # Again, because the size was only an estimate, and a limit that is passed is no limit.
        self._make_room(_size(weights))
        if _size(weights) <= self.limit:
            self._weights[key] = weights
        return weights

    def _make_room(self, size: int) -> None:
        while self._weights and self.used + size > self.limit:
            self._weights.popitem(last=False)

    @contextmanager
    def module_with(self, run: Run, weights: Weights) -> Iterator[nn.Module]:
        """The run's final architecture with these weights, in evaluation mode; nothing is copied.

        Raises:
            RunError: The task builds a model that the weights do not fit.
        """
        module = self._module(run, weights)
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        try:
            _put(own, weights)
            yield module
        finally:
            # Otherwise the module would keep in memory what the limit has dropped since.
            _put(own, {name: torch.empty(0, dtype=t.dtype) for name, t in own.items()})

    def _module(self, run: Run, weights: Weights) -> nn.Module:
        if run.digest in self._modules:
            self._modules.move_to_end(run.digest)
            return self._modules[run.digest]
        module = run.task.build_empty(run.last.facts.build_config)
        load_into(module, weights)  # refuses, by name, what does not fit
        module.eval()
        self._modules[run.digest] = module
        if len(self._modules) > _MODULES:
            self._modules.popitem(last=False)
        return module


def _put(own: Mapping[str, Tensor], weights: Weights) -> None:
    for name, tensor in own.items():
        tensor.data = weights[name]


def _size(weights: Weights) -> int:
    return sum(facts_of(weights, name).bytes for name in weights)
