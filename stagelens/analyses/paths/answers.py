"""Each example's answers after every boundary, as a path of right and wrong ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from stagelens.effects.summary import right_answers
from stagelens.runs.sets.clusters import CLUSTER

Kind = Literal["always right", "learned", "flipped", "forgotten", "never right"]

KINDS: tuple[Kind, ...] = ("always right", "learned", "flipped", "forgotten", "never right")
"""What a path can be: learned once, forgotten once, or flipped: changed more than once."""

RIGHT, WRONG = "R", "W"
"""A path is written with one of these for every boundary: ``WRR`` was learned in the first of two
stages."""


@dataclass(frozen=True)
class Paths:
    """The answers of N examples after B boundaries.

    Attributes:
        boundaries: ``base`` or the stage that ends there, in training order; B names. A boundary
            whose answers cannot be compared is not among them.
        example_ids: (N,) of the examples, in the set's order.
        right: (N, B) float, 1 where the answer is the label, 0 where it is not, NaN where there is
            no label.
        choices: How many answers there are to choose from: those that occur as labels or answers.
        clusters: (N,) the number of each example's source, below 0 where it shares none; None where
            none do.
    """

    boundaries: tuple[str, ...]
    example_ids: np.ndarray
    right: np.ndarray
    choices: int
    clusters: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """(N,) bool: the examples with a label, which alone have a path."""
        return ~np.isnan(self.right).any(axis=1)

    @property
    def codes(self) -> np.ndarray:
        """(N,) str: the path of every example; empty without a label."""
        known = self.known
        codes = np.full(len(known), "", dtype=object)
        # One column at a time: B is small, and N may be a million.
        written = np.full(int(known.sum()), "", dtype=object)
        for column in self.right[known].T:
            written = written + np.where(column == 1, RIGHT, WRONG).astype(object)
        codes[known] = written
        return codes

    @property
    def kinds(self) -> np.ndarray:
        """(N,) of :data:`KINDS`; empty without a label."""
        named = {code: kind_of(code) if code else "" for code in set(self.codes)}
        return np.array([named[code] for code in self.codes], dtype=object)

    def only(self, rows: np.ndarray) -> Paths:
        """The same of some examples.

        Args:
            rows: (N,) bool.
        """
        shared = None if self.clusters is None else self.clusters[rows]
        own = self.example_ids[rows], self.right[rows]
        return Paths(self.boundaries, *own, self.choices, shared)

    def counts(self) -> dict[str, int]:
        """How many examples took each path, the most frequent first; without a label, none did."""
        found = pd.Series(self.codes[self.known]).value_counts()
        return {str(code): int(count) for code, count in found.items()}


LOST = "learned, then forgotten"
"""Wrong, later right, and wrong in the end: what is flipped and ends wrong."""

ENDS = ("flipped, ends right", "flipped, ends wrong")
"""What flipped paths are called where it matters how they end; both together are all of them."""


def ended(code: str) -> str:
    """What a path is called, with its end where the kind does not say it.

    Args:
        code: One character per boundary, :data:`RIGHT` or :data:`WRONG`.
    """
    kind = kind_of(code)
    return kind if kind != "flipped" else ENDS[code[-1] == WRONG]


def kind_of(code: str) -> Kind:
    """What a path is called.

    Args:
        code: One character per boundary, :data:`RIGHT` or :data:`WRONG`.
    """
    changes = sum(one != other for one, other in pairwise(code))
    if changes > 1:
        return "flipped"
    if changes == 0:
        return "always right" if code[0] == RIGHT else "never right"
    return "learned" if code[-1] == RIGHT else "forgotten"


def paths(
    parts: Iterable[pd.DataFrame], examples: pd.DataFrame, boundaries: Sequence[str]
) -> Paths | None:
    """The paths of a set's examples.

    Answers are joined with labels by example id, never by position.

    Args:
        parts: Boundary tables of one behaviour, with ``boundary``, ``example_id`` and
            ``prediction``; in parts of whole boundaries, in any order.
        examples: ``example_id``, unique, ``label``, and ``cluster`` where some share a source, of
            the set that was measured.
        boundaries: Names in training order.

    Returns:
        The paths over the boundaries that were measured; None where there are fewer than two, or
        no example has a label.

    Raises:
        ValueError: A boundary was measured on other examples than these.
    """
    ids, labels = examples["example_id"].astype(object), examples["label"]
    place = pd.Index(ids)
    columns: dict[str, np.ndarray] = {}
    answers = set(labels.dropna().astype(str).unique())
    for part in parts:
        for name, own in part.groupby("boundary", sort=False, observed=True):
            at = place.get_indexer(own["example_id"].astype(object))
            if len(at) != len(ids) or (np.sort(at) != np.arange(len(ids))).any():
                raise ValueError(f"the boundary {name} was measured on other examples")
            ordered = own["prediction"].iloc[np.argsort(at, kind="stable")].reset_index(drop=True)
            answers |= set(ordered.dropna().astype(str).unique())
            columns[str(name)] = right_answers(ordered, labels.reset_index(drop=True)).to_numpy()
    known = [name for name in boundaries if name in columns]
    if len(known) < 2:
        return None
    found = Paths(
        tuple(known),
        ids.to_numpy(),
        np.column_stack([columns[n] for n in known]),
        len(answers),
        pd.factorize(examples[CLUSTER])[0] if CLUSTER in examples else None,
    )
    return found if found.known.any() else None
