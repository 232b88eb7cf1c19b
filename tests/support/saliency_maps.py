"""Small maps of one input, made by hand."""

from __future__ import annotations

import numpy as np

from stagelens.analyses.saliency.map_table import Map


def image_map(shape: tuple[int, int] = (8, 8), stage_at: tuple[int, int] = (0, 7)) -> Map:
    """A map that has only one pixel of the stage's, and one of both models'."""
    final, without = np.zeros(shape), np.zeros(shape)
    final[4, 4] = without[4, 4] = 2.0
    final[stage_at] = -1.5
    return Map("one", None, final, without, (1.0, 2.4), (0.5, 0.4), 32)


def text_map(tokens: tuple[str, ...], stage: list[float]) -> Map:
    """A map whose stage has all that the final model has."""
    final = np.asarray(stage)
    return Map("<b>", tokens, final, 0 * final, (final.sum(), 0.0), (0.0, 0.0), 32)
