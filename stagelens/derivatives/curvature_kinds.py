"""The names of what may stand for the second derivative of a loss. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal, get_args

Curvature = Literal["exact", "gauss-newton", "empirical-fisher", "none"]
"""See :mod:`stagelens.derivatives.products` for what each of them is."""

CURVATURES: tuple[Curvature, ...] = get_args(Curvature)

USUAL: Curvature = "exact"
"""What is taken where nothing else is asked for."""


def key_of(curvature: Curvature) -> tuple[str, ...]:
    """What a kind adds to the key of a stored result; the usual one adds nothing."""
    return () if curvature == USUAL else (f"curvature {curvature}",)


def by_curvature(curvature: Curvature) -> str:
    """What is said behind "to first order"; nothing of the usual kind."""
    return "" if curvature == USUAL else f", curvature: {curvature.replace('-', ' ')}"
