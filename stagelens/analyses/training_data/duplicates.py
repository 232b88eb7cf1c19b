"""Where else a training example occurs: in its own stage, in another one, in an evaluation set.

Equal inputs are found by their digests, as the task shows them: an evaluation set is collated as
for a model, and shown again. Texts that are nearly the same are found by MinHash signatures (A.
Broder, On the resemblance and containment of documents, 1997) with locality-sensitive hashing, by
``datasketch``; of those that come up, the Jaccard index of their shingles is then computed itself,
so that none is reported which only seems alike.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH

from stagelens.contracts import Example, ProgressCallback, no_progress
from stagelens.runs import fact_tables
from stagelens.runs.example_content import content_digest
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .tables import (
    DUPLICATES,
    DuplicateFacts,
    Where,
    duplicates_path,
    set_digests,
    stored_duplicates,
)

THRESHOLD = 0.8
"""Jaccard index of their shingles from which two texts count as near duplicates."""

_SHINGLE = 5
"""Characters in a row: words would be too few in short texts, and are not told apart in some
languages."""
_HASHES = 128
_BATCH = 256
_MOST = 3
"""Duplicates that are kept of an example in one place: the most alike."""
_COMPARED = 200
"""Training texts that one training text is compared with at most, of those that are proposed: what
is made from a few templates is nearly the same as thousands of others. An evaluation text is
compared with all, so that no leak is missed for it."""
_NOT_COMPARED = ("rejected",)
"""Fields of texts that are no part of what two examples have in common."""


@dataclass(frozen=True)
class Searched:
    """The examples of one place.

    Attributes:
        where: Whether it is a stage or a set.
        place: Its name.
        ids: Of its examples.
        digests: Of their inputs.
        labels: None for an example without one.
        texts: Of their inputs; None where they are no texts.
    """

    where: Where
    place: str
    ids: Sequence[str]
    digests: Sequence[str]
    labels: Sequence[str | None]
    texts: Sequence[str] | None


def duplicates(
    run: Run,
    stages: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    left_out: Mapping[str, str],
    progress: ProgressCallback = no_progress,
) -> tuple[DuplicateFacts, pd.DataFrame]:
    """Where else the training examples of all stages occur; read from disk where stored.

    Args:
        run: The run.
        stages: Name to its list of examples and what they look like.
        left_out: Stages whose examples are not known, and why.
        progress: Called while texts are compared.

    Returns:
        Facts, and rows of ``tables.DUPLICATES``.
    """
    stored = stored_duplicates(run)
    if stored is not None:
        return stored
    searched = [_of_stage(name, *tables) for name, tables in stages.items()]
    for name in run.set_names:
        if (own := _of_set(run, run.evaluation_set(name))) is not None:
            searched.append(own)
    rows = [*_same(searched)]
    texts = [place for place in searched if place.texts is not None]
    if texts:
        rows += _near(texts, progress)
    facts = DuplicateFacts(
        run_digest=run.digest,
        sets=set_digests(run),
        left_out=dict(left_out),
        threshold=THRESHOLD if texts else None,
    )
    table = pd.DataFrame(rows, columns=list(DUPLICATES)).astype(DUPLICATES)
    fact_tables.write(duplicates_path(run), table, facts)
    return facts, table


def _of_stage(name: str, rows: pd.DataFrame, shown: pd.DataFrame) -> Searched:
    texts = None
    if shown["length"].notna().any():
        texts = [_text(json.loads(each)) if each is not None else "" for each in shown["shown"]]
    labels = [None if pd.isna(label) else str(label) for label in rows["label"]]
    return Searched(
        "stage", name, rows["example_id"].tolist(), rows["content"].tolist(), labels, texts
    )


def _of_set(run: Run, examples: EvaluationSet) -> Searched | None:
    """An evaluation set, as its inputs would look in a training batch; None if nobody can tell."""
    if examples.kind != run.task.input_kind:
        return None
    ids: list[str] = []
    labels: list[str | None] = []
    seen: list[Example] = []
    digests: list[str] = []
    for batch in examples.batches(_BATCH):
        shown = run.task.examples(run.task.collate(batch))
        if shown is None:
            return None
        ids += [one.example_id for one in batch]
        labels += [one.label for one in batch]
        digests += [content_digest(one) for one in shown]
        # Images are compared by their digests alone, and would take the memory of the set.
        seen += shown if examples.kind == "text" else []
    texts = [_text(one.input) for one in seen] if seen else None
    return Searched("set", examples.name, ids, digests, labels, texts)


def _text(content: Mapping[str, object]) -> str:
    return "\n".join(
        str(text)
        for field, text in content.items()
        if text is not None and field not in _NOT_COMPARED
    )


def _same(searched: Sequence[Searched]) -> Iterator[tuple[object, ...]]:
    """Equal inputs in another stage, or in a set; within a stage they differ by their labels."""
    places: dict[str, dict[int, list[int]]] = {}
    for number, place in enumerate(searched):
        for row, digest in enumerate(place.digests):
            places.setdefault(digest, {}).setdefault(number, []).append(row)
    for found in places.values():
        for number, rows in found.items():
            if searched[number].where == "set":
                continue
            for row in rows:
                for other, others in found.items():
                    if other != number:
                        for each in others[:_MOST]:
                            yield _row(searched[number], row, searched[other], each, 1.0)


def _near(searched: Sequence[Searched], progress: ProgressCallback) -> Iterator[tuple[object, ...]]:
    """Texts that are nearly the same, within a stage, in another one, or in a set."""
    index = MinHashLSH(threshold=THRESHOLD, num_perm=_HASHES)
    # One for all: each would draw the same permutations anew.
    empty = MinHash(num_perm=_HASHES, hashfunc=_as_it_is)
    shingles: dict[str, np.ndarray] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    alike: dict[str, list[tuple[float, str]]] = {}
    total = sum(len(place.ids) for place in searched)
    done = 0
    for number, place in enumerate(searched):
        for row, text in enumerate(place.texts or ()):
            done += 1
            if done % 1_000 == 0:
                progress(done / total, f"comparing {total:,} texts")
            key = place.digests[row]
            places.setdefault(key, []).append((number, row))
            if key in shingles:
                continue
            shingles[key] = own = _shingles(text)
            signature = empty.copy()
            signature.update_batch(own.tolist())
            proposed = sorted(index.query(signature))
            if place.where == "stage":
                proposed = proposed[:_COMPARED]
            for other in proposed:
                similarity = jaccard(own, shingles[other])
                if similarity >= THRESHOLD:
                    alike.setdefault(key, []).append((similarity, other))
                    alike.setdefault(other, []).append((similarity, key))
            index.insert(key, signature, check_duplication=False)
    for key, found in alike.items():
        found.sort(key=lambda one: (-one[0], one[1]))
        for number, row in places[key]:
            if searched[number].where == "set":
                continue
            told: dict[int, int] = {}
            for similarity, other in found:
                # Equal inputs are 1; other texts with the same shingles are not quite the same.
                near = min(similarity, 0.9999)
                for there, each in places[other]:
                    told[there] = told.get(there, 0) + 1
                    if told[there] <= _MOST:
                        yield _row(searched[number], row, searched[there], each, near)


def _row(
    own: Searched, row: int, other: Searched, there: int, similarity: float
) -> tuple[object, ...]:
    return (
        *(own.place, own.ids[row], other.where, other.place),
        *(other.ids[there], other.labels[there], similarity),
    )


def _shingles(text: str) -> np.ndarray:
    """(n,) uint32: hashes of all runs of characters, in lower case and with single blanks."""
    plain = " ".join(text.lower().split())
    parts = {plain[at : at + _SHINGLE] for at in range(max(len(plain) - _SHINGLE + 1, 1))}
    hashes = [zlib.crc32(part.encode(errors="backslashreplace")) for part in parts]
    return np.unique(np.array(hashes, dtype=np.uint32))


def _as_it_is(value: int) -> int:
    # The shingles are hashes already.
    return value


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """What two sets have in common, as a part of what they are together; 0 to 1."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
