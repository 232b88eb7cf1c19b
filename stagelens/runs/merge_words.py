"""What a merge was made of, in words."""

from __future__ import annotations

from .boundary_facts import Merge

_CLOSE = 1e-3
"""How near to 0 and 1 weights are no other than these."""


def is_average(merge: Merge) -> bool:
    """Whether no weight is outside of 0 to 1, and all of them add up to 1."""
    weights = merge.weights.values()
    inside = all(-_CLOSE <= each <= 1 + _CLOSE for each in weights)
    return inside and abs(sum(weights) - 1) <= _CLOSE


def merge_words(name: str, merge: Merge) -> str:
    """A sentence: which combination of its parents a merge is, or that it is none."""
    sums = " ".join(
        f"{'−' if weight < 0 else '+'} {abs(weight):.3f} {parent}"
        for parent, weight in merge.weights.items()
    )
    said = sums.removeprefix("+ ")
    left = f"{merge.residual:.1e}" if merge.residual < 0.001 else f"{100 * merge.residual:.1f} %"
    of = "of the distance to the nearest parent"
    if not merge.exact:
        return (
            f"{name} is not a weighted average of its parents: the nearest combination, {said}, "
            f"leaves {left} {of}"
        )
    if is_average(merge):
        return f"{name} is a weighted average of its parents: {said} (it leaves {left} {of})"
    total = f"{sum(merge.weights.values()):.3f}".replace("-", "−")
    return (
        f"{name} is a linear combination of its parents, but no average (task arithmetic): {said}; "
        f"the weights add up to {total} (it leaves {left} {of})"
    )
