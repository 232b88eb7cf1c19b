"""Pairs of stages: how much one does only because of the other, and which of it can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import values
from .means import Mean
from .share_table import Shares


@dataclass(frozen=True)
class Pair:
    """Two parties, the earlier one first, and means over examples.

    Attributes:
        first: The party that came before.
        second: The other one.
        together: How much more both do than each by itself, over all contexts (Shapley interaction
            index).
        given_all: The same in the final model: how much of what leaving out ``second`` changes is
            there only because of ``first``.
        after_first: What leaving out ``second`` changes in the final model.
        without_first: What leaving out ``second`` changes where ``first`` never happened.
        in_turn: Whether all stages of ``first`` came before those of ``second``.
    """

    first: str
    second: str
    together: Mean
    given_all: Mean
    after_first: Mean
    without_first: Mean
    in_turn: bool = True


def pairs_of(found: Shares, chosen: np.ndarray | None = None) -> list[Pair]:
    """All pairs whose models were measured, by the later party, then by the earlier one.

    Args:
        found: From ``share_table.shares_of``.
        chosen: (N,) which examples the means are over; None for all of them.
    """
    m, full = found.m, found.full
    if m < 2:
        return []

    def mean(name: str, weights: Mapping[int, float]) -> Mean:
        return found.combined_mean(name, weights, chosen)

    pairs = []
    for later in range(m):
        for earlier in range(later):
            name = f"{found.names[earlier]} with {found.names[later]}"
            without = full & ~(1 << earlier)
            pairs.append(
                Pair(
                    found.names[earlier],
                    found.names[later],
                    mean(name, values.interaction_weights(earlier, later, m)),
                    mean(name, values.given_all_weights(earlier, later, m)),
                    mean(found.names[later], values.left_out_weights(later, m)),
                    mean(found.names[later], {without: 1.0, without & ~(1 << later): -1.0}),
                    found.came_before(earlier, later),
                )
            )
    return pairs
