"""Features that examples may share: words, word pairs, values of columns, clusters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import sparse

from stagelens.runs.sets.clusters import CLUSTER

from .statistics import SUPPORT, Candidates

MOST = 5000
"""Words, and word pairs, that are tested; the most frequent ones where there are more."""
MOST_VALUES = 50
"""Different values of a column that are tested as they are; numbers come in four bins."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_BINS = 4
_SHARED = 0.4
"""By how much more of a cluster's members than of the others must have what names it."""
_SAME = 0.9
"""Features of which so many examples are the same ones are told as one."""


def words(texts: Sequence[str]) -> list[Candidates]:
    """Words, regardless of case, and pairs of neighbouring words.

    A pair that is in exactly the same texts as a single word adds nothing, and is left out.
    """
    found = [_WORD.findall(text.lower()) for text in texts]
    single = _frequent("word", [set(own) for own in found])
    pairs = _frequent("pair", [{f"{a} {b}" for a, b in pairwise(own)} for own in found])
    known = {_fingerprint(single.members, place) for place in range(len(single.names))}
    new = [p for p in range(len(pairs.names)) if _fingerprint(pairs.members, p) not in known]
    names = [pairs.names[place] for place in new]
    return [single, Candidates("pair", names, pairs.rows, pairs.members[:, new].tocsr())]


def _fingerprint(members: sparse.csr_matrix, place: int) -> bytes:
    return bytes(members[:, [place]].nonzero()[0].tobytes())


def _frequent(kind: str, texts: Sequence[set[str]]) -> Candidates:
    counts = Counter(word for own in texts for word in own)
    # What nearly all texts have leaves too few without it to compare with.
    most = len(texts) - SUPPORT
    usable = [word for word, count in counts.items() if SUPPORT <= count <= most]
    # Sorted, because sets of strings are ordered differently in every process: words that are
    # equally frequent must be kept or left out by their names.
    kept = sorted(usable, key=lambda word: (-counts[word], word))[:MOST]
    place = {word: number for number, word in enumerate(sorted(kept))}
    pairs = [(row, place[w]) for row, own in enumerate(texts) for w in own if w in place]
    return Candidates(kind, list(place), *_members(pairs, len(texts), len(place)))


def _members(
    pairs: Iterable[tuple[int, int]], count: int, features: int
) -> tuple[np.ndarray, sparse.csr_matrix]:
    # The reshape gives two columns even where there are no pairs.
    rows, columns = np.array(list(pairs), dtype=int).reshape(-1, 2).T
    ones = np.ones(len(rows))
    members = sparse.csr_matrix((ones, (rows, columns)), shape=(count, features))
    return np.arange(count), members


def columns(table: pd.DataFrame, names: Sequence[str]) -> Candidates:
    """Values of metadata columns; numbers with many values come in four bins of equal count.

    Args:
        table: One row per example.
        names: The columns; texts with more than ``MOST_VALUES`` values, as ids, are left out, and
            so is that which says what examples share a source.
    """
    found: list[tuple[str, np.ndarray]] = []
    for name in names:
        if name == CLUSTER:
            continue
        column = table[name]
        if column.nunique() > MOST_VALUES and pd.api.types.is_numeric_dtype(column):
            # Many equal numbers give equal edges of bins.
            column = pd.qcut(column, _BINS, duplicates="drop")
        values = column.value_counts()
        if len(values) <= MOST_VALUES:
            found += [(f"{name} = {value}", (column == value).to_numpy()) for value in values.index]
    pairs = [(row, p) for p, (_, own) in enumerate(found) for row in np.flatnonzero(own).tolist()]
    return Candidates("column", [n for n, _ in found], *_members(pairs, len(table), len(found)))


def clusters(representations: np.ndarray, labels: np.ndarray) -> Candidates:
    """Groups of examples that the final model sees as alike (k-means with a fixed seed).

    Args:
        representations: (N, D) inputs of the model's last layer.
        labels: (N,) for the names: "cluster 3, 80 % labelled 9".
    """
    from sklearn.cluster import KMeans

    scale = representations.std(axis=0)
    # What is the same for all examples has no spread to divide by.
    scaled = (representations - representations.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    count = int(np.clip(len(scaled) // 40, 2, 20))
    of = KMeans(count, n_init=4, random_state=0).fit_predict(scaled)
    names = []
    for number in range(count):
        inside = [label for label in labels[of == number] if label is not None]
        usual, times = Counter(inside).most_common(1)[0] if inside else (None, 0)
        share = f", {100 * times / len(inside):.0f} % labelled {usual}" if inside else ""
        names.append(f"cluster {number + 1}{share}")
    return Candidates("cluster", names, *_members(enumerate(of), len(of), count))


def named_by_shared(groups: Candidates, others: Sequence[Candidates]) -> Candidates:
    """Clusters, each with what its members share and the other examples do not.

    Args:
        groups: Clusters of the examples.
        others: Features of other kinds; those of the clusters' own kind are passed over.
    """
    names = []
    for place, name in enumerate(groups.names):
        inside = np.zeros(groups.members.shape[0], dtype=bool)
        inside[groups.rows] = groups.members[:, [place]].toarray().ravel() > 0
        best, said = _SHARED, ""
        for each in (other for other in others if other.kind != groups.kind and other.names):
            own = inside[each.rows]
            if not own.any() or own.all():
                continue
            with_, without = (
                np.asarray(each.members[part].mean(axis=0)).ravel() for part in (own, ~own)
            )
            most = int((with_ - without).argmax())
            if with_[most] - without[most] > best:
                best = with_[most] - without[most]
                said = (
                    f": {100 * with_[most]:.0f} % with {_shared(each, most)} "
                    f"({100 * without[most]:.0f} % of the others)"
                )
        head, comma, rest = name.partition(", ")
        names.append(f"{head}{said}{comma}{rest}")
    return replace(groups, names=names)


def _shared(features: Candidates, place: int) -> str:
    """What examples with a feature have in common."""
    name = features.names[place]
    # Most images have all patches; what they share is that there is something.
    return name.replace("patch", "something", 1) if features.kind == "patch" else name


def merged(table: pd.DataFrame, by_kind: Mapping[str, Candidates]) -> pd.DataFrame:
    """A judged table in which features of the same examples are one, with the others as ``also``.

    Words and pairs are told together; columns among themselves. Patches are places, and clusters
    share no examples: both stay as they are.

    Args:
        table: As ``statistics.judged_features`` makes it, the strongest evidence first.
        by_kind: The features.
    """
    also: dict[int, list[str]] = {place: [] for place in table.index}
    dropped: set[int] = set()
    for kinds in (("word", "pair"), ("column",)):
        rows = table[table["passes"] & table["kind"].isin(kinds)]
        for _, own in rows.groupby("label", dropna=False, sort=False):
            has = sparse.hstack(
                [by_kind[r.kind].members[:, [r.feature]] for r in own.itertuples()], "csc"
            ).astype(float)
            common = (has.T @ has).toarray()
            counts = common.diagonal()
            same = common >= _SAME * (counts[:, None] + counts[None, :] - common)
            for at, place in enumerate(own.index):
                if place in dropped:
                    continue
                for other in own.index[at + 1 :][same[at, at + 1 :]]:
                    if other not in dropped:
                        dropped.add(other)
                        also[place].append(str(table.loc[other, "name"]))
    kept = table.assign(also=[also[place] for place in table.index]).drop(index=list(dropped))
    return kept.reset_index(drop=True)
