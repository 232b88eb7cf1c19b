"""Checkpoints that were merged from others instead of trained, such as model soups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checkpoints import Checkpoint
from .matching import Matched

_RECIPES = ("mergekit_config.yml", "mergekit_config.yaml")
"""What mergekit leaves beside the weights that it writes."""

_TRIED, _TENSORS, _VALUES = 16, 4, 4096
"""How many matrices are tried, how many of those that changed are compared, and how many values of
each."""
_FEWEST = 64
"""Values per checkpoint, without which any would look like a combination of the others."""
_UNEXPLAINED = 0.2
"""What a sum that was rounded several times leaves of the distance to the closest earlier
checkpoint, at most: in half precision, that is not far from what a stage changes."""


def merged_models(
    opened: Sequence[Checkpoint], matched: Sequence[Matched], known: Sequence[int] = ()
) -> list[str]:
    """Sentences on stages whose checkpoints were made of others, by their weights or a recipe.

    Nothing is said of those whose numbers are in ``known``: they were given as merges.
    """
    notes = []
    for number, checkpoint in enumerate(opened[1:], start=1):
        if number in known:
            continue
        made = _combination(opened[: number + 1], matched[: number + 1])
        recipe = next((name for name in _RECIPES if (checkpoint.folder / name).is_file()), None)
        if made is None and recipe is None:
            continue
        said = f"was merged from other models ({recipe})" if made is None else f"looks like {made}"
        notes.append(
            f"{checkpoint.name} {said}: it is no step of training, and its effect is that of "
            "merging"
        )
    return notes


def _combination(opened: Sequence[Checkpoint], matched: Sequence[Matched]) -> str | None:
    """The average of earlier checkpoints that the last one is, in words; None if it is none."""
    values = _sample(opened, matched)
    if values is None:
        return None
    *earlier, last = values
    # That of the least precise: what was rounded to it before is no more precise now.
    epsilon = max(torch.finfo(getattr(torch, each.precision)).eps for each in opened)
    unit = _unit(last, epsilon)
    # In units, because small values tell the shares most precisely.
    matrix = torch.stack([each - earlier[0] for each in earlier[1:]]) / unit
    weights = torch.linalg.lstsq(matrix.T, ((last - earlier[0]) / unit)[:, None]).solution[:, 0]
    shares = [1 - float(weights.sum()), *weights.tolist()]
    parts = [share * each for share, each in zip(shares, earlier, strict=True)]
    gap = (last - torch.stack(parts).sum(0)).abs()
    moved = torch.stack([last != each for each in earlier]).all(0)
    # As where the sum is computed more precisely, and rounded once. Training in half precision
    # moves weights by whole units.
    once = _most(gap[moved] <= 0.6 * unit[moved]) and moved.sum() >= _FEWEST * len(opened)
    few = _most(gap <= 2 * torch.stack([_unit(part, epsilon) for part in parts]).sum(0))
    closest = min(float((last - each).norm()) for each in earlier)
    if not (once or (few and float(gap.norm()) <= _UNEXPLAINED * closest)):
        return None
    named = [(share, each.name) for share, each in zip(shares, opened, strict=False)]
    said = ", ".join(f"{share:.2f} of {name}" for share, name in named if abs(share) >= 0.005)
    kind = "an average" if min(shares) > -0.005 else "a linear combination"
    return f"{kind} of earlier checkpoints ({said})"


def _unit(values: Tensor, epsilon: float) -> Tensor:
    """A unit in the last place of each value."""
    return epsilon * torch.exp2(torch.frexp(values).exponent - 1.0).clamp(min=1e-12)


def _most(these: Tensor) -> bool:
    return bool(these.double().mean() > 0.98)


def _sample(opened: Sequence[Checkpoint], matched: Sequence[Matched]) -> Tensor | None:
    """(checkpoints, N) values in float64, of tensors that the last checkpoint has to itself.

    None where there are too few of them, or only one earlier checkpoint.
    """
    if len(opened) < 3:
        return None
    names = [
        name
        for name, own in matched[-1].names.items()
        if len(opened[-1].tensors[own].shape) > 1
        and all(name in each.names and name not in each.rows for each in matched)
    ]
    rows: list[Tensor] = []
    for name in names[:: max(len(names) // _TRIED, 1)]:
        own = torch.stack(
            [
                each.mapped[found.names[name]].reshape(-1)[:_VALUES].double()
                for each, found in zip(opened, matched, strict=True)
            ]
        )
        if len(rows) < _TENSORS and not any(own[-1].equal(each) for each in own[:-1]):
            rows.append(own)
    values = torch.cat(rows, dim=1) if rows else torch.empty(0, 0)
    enough = values.shape[1] >= _FEWEST * len(opened) and values.isfinite().all()
    return values if enough else None
