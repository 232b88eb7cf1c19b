"""Where else a training example occurs: in its own stage, in another one, in an evaluation set.

Equal inputs are found by their digests, as the task shows them: an evaluation set is collated as
for a model, and shown again. Texts that are nearly the same are found by MinHash signatures (A.
Broder, On the resemblance and containment of documents, 1997) with locality-sensitive hashing, by
``datasketch``; of those that come up, the Jaccard index of their shingles is then computed itself,
so that none is reported which only seems alike. Of images see :mod:`.alike_images`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH

from stagelens.contracts import ProgressCallback, no_progress
from stagelens.runs import fact_tables
from stagelens.runs.example_content import content_digest
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet

from . import alike_images
from .looks import kept
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
        images: PNG files; None where they are none.
    """

    where: Where
    place: str
    ids: Sequence[str]
    digests: Sequence[str]
    labels: Sequence[str | None]
    texts: Sequence[str] | None
    images: Sequence[bytes | None] | None = None


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
        progress: Called while texts or images are compared.

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
    images = [place for place in searched if place.images is not None]
    threshold = None
    if texts:
        threshold = THRESHOLD
        rows += _near(texts, _alike_texts(texts, progress))
    elif images:
        threshold = alike_images.THRESHOLD
        rows += _near(images, _alike_images(images, progress))
    facts = DuplicateFacts(
        run_digest=run.digest,
        sets=set_digests(run),
        left_out=dict(left_out),
        threshold=threshold,
    )
    table = pd.DataFrame(rows, columns=list(DUPLICATES)).astype(DUPLICATES)
    fact_tables.write(duplicates_path(run), table, facts)
    return facts, table


def _of_stage(name: str, rows: pd.DataFrame, shown: pd.DataFrame) -> Searched:
    texts: list[str] | None = None
    images: list[bytes | None] | None = None
    if shown["length"].notna().any():
        texts = [_text(json.loads(each)) if each is not None else "" for each in shown["shown"]]
    elif shown["shown"].notna().any():
        images = [None if each is None else bytes(each) for each in shown["shown"]]
    labels = [None if pd.isna(label) else str(label) for label in rows["label"]]
    ids, digests = rows["example_id"].tolist(), rows["content"].tolist()
    return Searched("stage", name, ids, digests, labels, texts, images)


def _of_set(run: Run, examples: EvaluationSet) -> Searched | None:
    """An evaluation set, as its inputs would look in a training batch; None if nobody can tell."""
    if examples.kind != run.task.input_kind:
        return None
    ids: list[str] = []
    labels: list[str | None] = []
    texts: list[str] = []
    images: list[bytes | None] = []
    digests: list[str] = []
    for batch in examples.batches(_BATCH):
        shown = run.task.examples(run.task.collate(batch))
        if shown is None:
            return None
        ids += [one.example_id for one in batch]
        labels += [one.label for one in batch]
        digests += [content_digest(one) for one in shown]
        if examples.kind == "text":
            texts += [_text(one.input) for one in shown]
        else:
            images += [kept(one)[0] for one in shown]
    found = texts or None, images or None
    return Searched("set", examples.name, ids, digests, labels, *found)


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


_Alike = dict[str, list[tuple[float, str]]]
"""Digest of an input to those that are nearly the same, and how alike they are."""


def _alike_images(searched: Sequence[Searched], progress: ProgressCallback) -> _Alike:
    """Images that are nearly the same, each input once."""
    each: dict[str, bytes | None] = {}
    for place in searched:
        each |= dict(zip(place.digests, place.images or (), strict=True))
    digests, alike = list(each), _Alike()
    found = alike_images.alike_images(list(each.values()), progress)
    for one, other, similarity in found:
        alike.setdefault(digests[one], []).append((similarity, digests[other]))
        alike.setdefault(digests[other], []).append((similarity, digests[one]))
    return alike


def _alike_texts(searched: Sequence[Searched], progress: ProgressCallback) -> _Alike:
    """Texts that are nearly the same, each input once."""
    index = MinHashLSH(threshold=THRESHOLD, num_perm=_HASHES)
    # One for all: each would draw the same permutations anew.
    empty = MinHash(num_perm=_HASHES, hashfunc=_as_it_is)
    shingles: dict[str, np.ndarray] = {}
    alike: _Alike = {}
    total = sum(len(place.ids) for place in searched)
    done = 0
    for place in searched:
        for row, text in enumerate(place.texts or ()):
            done += 1
            if done % 1_000 == 0:
                progress(done / total, f"comparing {total:,} texts")
            key = place.digests[row]
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
    return alike


def _near(searched: Sequence[Searched], alike: _Alike) -> Iterator[tuple[object, ...]]:
    """Inputs that are nearly the same, within a stage, in another one, or in a set."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, place in enumerate(searched):
        for row, key in enumerate(place.digests):
            places.setdefault(key, []).append((number, row))
    for key, found in alike.items():
        found.sort(key=lambda one: (-one[0], one[1]))
        for number, row in places[key]:
            if searched[number].where == "set":
                continue
            told: dict[int, int] = {}
            for similarity, other in found:
                # Equal inputs are 1; texts with the same shingles are not quite the same.
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
