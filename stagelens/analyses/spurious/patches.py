"""Patches of images: what a stage's effect loses when a patch is taken out of the picture.

A patch is taken out by filling it with the set's background, or, where its images have none, with
the mean of the pixels right around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse

from stagelens.contracts import Example

from .grids import Patch
from .statistics import Candidates

MOST_IMAGES = 1000
"""Images that patches are taken out of; a random sample where there are more."""
OCCUPIED = 0.1
"""An image has something in a patch where its pixels are on average further from their
filling than this, as a share of the set's range of values."""
BACKGROUND = 0.2
"""A value that at least this share of all pixels has is the background."""


def background(images: Sequence[np.ndarray]) -> np.ndarray | None:
    """(C,) or () the most frequent value of pixels where it is the background; else None."""
    channels = images[0].shape[2:]
    pixels = np.concatenate([image.reshape(-1, *channels) for image in images])
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    usual = counts.argmax()
    return np.asarray(values[usual]) if counts[usual] >= BACKGROUND * len(pixels) else None


def taken_out(image: np.ndarray, patch: Patch, ground: np.ndarray | None) -> np.ndarray:
    """A copy of an image without a patch.

    Args:
        image: (H, W) or (H, W, C).
        patch: What is taken out.
        ground: The background, from :func:`background`.
    """
    filled = image.copy()
    if ground is not None:
        filled[_inside(patch)] = ground
        return filled
    ring = max(1, min(patch.height, patch.width) // 4)
    near = np.zeros(image.shape[:2], dtype=bool)
    bottom, right = patch.top + patch.height + ring, patch.left + patch.width + ring
    near[max(patch.top - ring, 0) : bottom, max(patch.left - ring, 0) : right] = True
    near[_inside(patch)] = False
    # A patch as large as the image has nothing around it.
    around = image[near] if near.any() else image.reshape(-1, *image.shape[2:])
    mean = around.mean(axis=0)
    # Assigning to integers would cut the fraction off.
    filled[_inside(patch)] = np.round(mean) if image.dtype.kind in "ui" else mean
    return filled


def _inside(patch: Patch) -> tuple[slice, slice]:
    return (
        slice(patch.top, patch.top + patch.height),
        slice(patch.left, patch.left + patch.width),
    )


def occluded(
    examples: Sequence[Example], patches: Sequence[Patch], ground: np.ndarray | None, size: int
) -> Iterator[list[Example]]:
    """Every example without each patch, patch by patch, in batches."""
    batch: list[Example] = []
    for patch in patches:
        for example in examples:
            image = taken_out(np.asarray(example.input["image"]), patch, ground)
            batch.append(replace(example, input={**example.input, "image": image}))
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


def occupied(
    images: Sequence[np.ndarray], patches: Sequence[Patch], ground: np.ndarray | None
) -> np.ndarray:
    """(n, P) whether each image has something in each patch."""
    lowest, highest = min(i.min() for i in images), max(i.max() for i in images)
    span = float(highest) - float(lowest) or 1.0
    found = np.zeros((len(images), len(patches)), dtype=bool)
    for column, patch in enumerate(patches):
        for row, image in enumerate(images):
            # As floats, because differences of unsigned pixels would wrap around below 0.
            left = taken_out(image, patch, ground)[_inside(patch)].astype(float)
            change = image[_inside(patch)] - left
            found[row, column] = np.abs(change).mean() > OCCUPIED * span
    return found


def candidates(
    patches: Sequence[Patch], rows: np.ndarray, there: np.ndarray, changes: np.ndarray
) -> Candidates:
    """Patches as features.

    Args:
        patches: P of them.
        rows: (n,) places of the examples among all.
        there: (n, P) from :func:`occupied`.
        changes: (n, P) stage effect less the stage effect without the patch.
    """
    members = sparse.csr_matrix(there.astype(float))
    return Candidates("patch", [patch.name for patch in patches], rows, members, changes)
