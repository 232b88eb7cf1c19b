"""Random numbers of a smaller batch: those that its rows had in the recorded one.

A pass over some rows of a batch that simply drew its random numbers from the recorded state would
give these rows other dropout masks, and a comparison would show other noise. So every random tensor
of a pass is drawn for the recorded batch, and the rows that are left take theirs of it: common
random numbers.

What is known is that the batch is the first dimension of what is drawn, one or several in a row for
each row of it. Where it lies otherwise, draws are others than recorded; the names of operations are
kept, to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stagelens.runs.step_records import MicroBatch, Part

_IN_PLACE = frozenset(
    {"bernoulli_", "uniform_", "normal_", "exponential_", "geometric_", "cauchy_", "log_normal_"}
)
_LIKE = frozenset({"rand_like", "randn_like", "randint_like", "bernoulli"})
_OF_SIZE = frozenset({"rand", "randn"})


class SameDraws(TorchDispatchMode):
    """Draws for a whole recorded batch, and takes the part of some rows.

    Args:
        part: Those rows.

    Attributes:
        others: Operations whose draws could not be kept.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = part
        self.others: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        first = args[0]
        shape = first.shape if isinstance(first, Tensor) else first
        if not isinstance(shape, Sequence):
            return self._as_it_is(name, func, args, kwargs)
        if not shape:  # one number for the whole batch, however many rows that has
            return func(*args, **kwargs)
        each, rest = divmod(int(shape[0]), len(self._part.rows))
        if rest:
            return self._as_it_is(name, func, args, kwargs)
        size = each * self._part.size
        if name in _IN_PLACE:
            whole = func(_wider(first, size), *args[1:], **kwargs)
            return first.copy_(self._taken(whole, each))
        if name in _LIKE:
            wider = _wider(first, size)
            # Probabilities of single elements: those of the others decide nothing about ours.
            wider.fill_(0.5).index_copy_(0, self._rows(each, wider.device), first)
            return self._taken(func(wider, *args[1:], **kwargs), each)
        if name in _OF_SIZE:
            return self._taken(func([size, *shape[1:]], *args[1:], **kwargs), each)
        if name == "native_dropout":
            _, kept = func(torch.ones_like(_wider(first, size)), *args[1:], **kwargs)
            kept, share = self._taken(kept, each), args[1]
            scale = 0.0 if share == 1 else 1 / (1 - share)
            return first * kept * scale, kept
        return self._as_it_is(name, func, args, kwargs)

    def _as_it_is(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An operation of which only its draws from the generators say whether there are any."""
        before = _states()
        found = func(*args, **kwargs)
        if not all(map(torch.equal, before, _states())):
            self.others.add(name)
        return found

    def _rows(self, each: int, device: torch.device) -> Tensor:
        first = torch.tensor(self._part.rows, device=device)[:, None] * each
        return (first + torch.arange(each, device=device)).flatten()

    def _taken(self, whole: Tensor, each: int) -> Tensor:
        return whole.index_select(0, self._rows(each, whole.device))


def _states() -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpu]


def _wider(tensor: Tensor, size: int) -> Tensor:
    """An empty tensor of the same kind with this first dimension.

    Its dimensions lie in memory in the same order, in which some generators fill it.
    """
    shape = [size, *tensor.shape[1:]]
    if tensor.is_contiguous():
        return tensor.new_empty(shape)
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda place: -strides[place])
    laid = tensor.new_empty([shape[place] for place in order])
    return laid.permute([order.index(place) for place in range(tensor.ndim)])


def same_draws(micro: MicroBatch) -> AbstractContextManager[SameDraws | None]:
    """Around the passes over a micro-batch: the draws of the recorded one, if it is a part."""
    # A pass that drew nothing when it was recorded draws nothing now.
    if micro.part is None or not micro.rng:
        return nullcontext()
    return SameDraws(micro.part)
