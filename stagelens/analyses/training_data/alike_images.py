"""Images that are nearly the same: the same pixels, but for noise, brightness or a small shift.

Two images are held against each other by the correlation of their pixels, in grey and at most 32 a
side, which neither brightness nor contrast changes: once as they are, and once with what stands out
of each moved to its middle, so that a shift over a plain background is undone. What correlates less
can be told apart from images that only look alike; how often it cannot be is in
docs/training-data.md.

Neighbours are found by scikit-learn among the leading principal components. These keep no more than
the whole distance, so none is missed for that; of those that come up the correlation of all pixels
is computed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from stagelens.contracts import ProgressCallback, no_progress

THRESHOLD = 0.99
"""Correlation from which two images count as near duplicates."""

_SIDE = 32
_COMPONENTS = 32
_FITTED = 10_000
"""Images at most that the components are found from: any will do, good ones save work."""
_BLOCK = 1_000
_COMPARED = 200
"""Images that one is compared with at most: the nearest by their components."""
_PLAIN = 2.0
"""Standard deviation in levels of grey below which an image shows nothing to compare."""


def alike_images(
    images: Sequence[bytes | None], progress: ProgressCallback = no_progress
) -> Iterator[tuple[int, int, float]]:
    """Pairs of images that are nearly the same, with their correlation.

    Args:
        images: PNG files; None where there is none.
        progress: Called between blocks of images.

    Yields:
        Numbers of two images, the lower first, each pair once, and their correlation of
        :data:`THRESHOLD` to 1.
    """
    by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for number, image in enumerate(images):
        if image is not None:
            pixels = _pixels(image)
            if float(pixels.std()) >= _PLAIN:
                by_shape.setdefault(pixels.shape, []).append((number, pixels))
    for same in by_shape.values():
        numbers = [number for number, _ in same]
        stack = np.stack([pixels for _, pixels in same])
        found: dict[tuple[int, int], float] = {}
        for part, prepare in enumerate((_as_it_is, _centred)):
            for one, other, value in _alike(prepare(stack), part, progress):
                pair = numbers[one], numbers[other]
                found[pair] = max(found.get(pair, value), value)
        for (first, second), value in found.items():
            yield first, second, value


def _pixels(image: bytes) -> np.ndarray:
    """(h, w) levels of grey, uint8, at most :data:`_SIDE` a side."""
    picture = Image.open(io.BytesIO(image)).convert("L")
    size = (min(picture.width, _SIDE), min(picture.height, _SIDE))
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def _as_it_is(stack: np.ndarray) -> np.ndarray:
    return stack


def _centred(stack: np.ndarray) -> np.ndarray:
    """(N, h, w) images whose centre of mass, without the background, is moved to the middle."""
    weights = np.abs(stack - np.median(stack, axis=(1, 2), keepdims=True))
    whole = np.maximum(weights.sum((1, 2)), 1e-9)
    shifts = []
    for axis, length in ((2, stack.shape[1]), (1, stack.shape[2])):
        centre = (weights.sum(axis) * np.arange(length)).sum(1) / whole
        shifts.append(np.rint((length - 1) / 2 - centre).astype(int))
    moved = zip(stack, *shifts, strict=True)
    return np.stack([np.roll(image, (down, right), (0, 1)) for image, down, right in moved])


def _alike(
    stack: np.ndarray, part: int, progress: ProgressCallback
) -> Iterator[tuple[int, int, float]]:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    count = len(stack)
    if count < 2:
        return
    flat = stack.reshape(count, -1)
    # Of unit vectors that correlate by r, the distance is the root of 2 - 2 r.
    radius = np.sqrt(2 - 2 * THRESHOLD) + 1e-3
    sample = np.random.default_rng(0).permutation(count)[:_FITTED]
    size = min(_COMPONENTS, len(sample), flat.shape[1])
    with np.errstate(invalid="ignore"):  # it divides by their variance, of equal images 0
        pca = PCA(size, svd_solver="covariance_eigh").fit(_unit(flat[sample]))
    project: Callable[[np.ndarray], np.ndarray] = pca.transform
    blocks = range(0, count, _BLOCK)
    near = np.concatenate([project(_unit(flat[at : at + _BLOCK])) for at in blocks])
    neighbours = NearestNeighbors(radius=radius, algorithm="brute").fit(near)
    for at in blocks:
        progress((part + at / count) / 2, f"comparing {count:,} images")
        told = neighbours.radius_neighbors(near[at : at + _BLOCK])
        for one, (distances, others) in enumerate(zip(*told, strict=True), at):
            if len(others) > _COMPARED:
                others = others[np.argpartition(distances, _COMPARED)[:_COMPARED]]
            others = np.sort(others[others > one])
            if not len(others):
                continue
            values = _unit(flat[others]) @ _unit(flat[one : one + 1])[0]
            for other, value in zip(others, values, strict=True):
                if value >= THRESHOLD:
                    yield one, int(other), min(float(value), 1.0)


def _unit(flat: np.ndarray) -> np.ndarray:
    """(n, d) float32: pixels less their mean, of length 1."""
    centred = flat.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
