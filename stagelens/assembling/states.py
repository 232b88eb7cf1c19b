"""Comparing the states of checkpoints: what the order of training allows, and what to say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from stagelens.contracts import RunError
from stagelens.runs.states import same_values

from .checkpoints import Checkpoint
from .matching import Matched


def compare_states(opened: Sequence[Checkpoint], matched: Sequence[Matched]) -> list[str]:
    """What people should know about the states, beside what is refused.

    Raises:
        RunError: A state comes back after another one, so the order is wrong.
    """
    notes = []
    for (i, one), (j, other) in combinations(enumerate(opened), 2):
        if not _same(one, matched[i], other, matched[j]):
            continue
        if j > i + 1:
            raise RunError(
                f"{other.name} has exactly the weights of {one.name}, although other checkpoints "
                "lie between them; give the folders in the order of training, each once"
            )
        notes.append(f"{other.name} changed nothing: its weights are exactly those of {one.name}")
    for number, (checkpoint, found) in enumerate(zip(opened, matched, strict=True)):
        notes += found.notes
        if found.left_out:
            notes.append(
                f"{checkpoint.name}: {_few(found.left_out)} not in the final model, so left out"
            )
        if number and (new := new_names(matched[number - 1], found)):
            notes.append(
                f"{checkpoint.name}: {_few(new)} new there, so kept as in the final model where "
                "the stage is left out"
            )
        if number and found.rows != matched[number - 1].rows:
            grown = [name for name in matched[number - 1].rows if name not in found.rows]
            notes.append(
                f"{checkpoint.name}: {_few(grown or list(found.rows))} longer there; the added "
                "rows are kept as in the final model where the stage is left out"
            )
    for each in opened:
        named = str(each.config.get("dtype") or each.config.get("torch_dtype") or each.precision)
        if named.removeprefix("torch.") != each.precision:
            notes.append(
                f"{each.name}: its weights are {each.precision}, but config.json says {named}, to "
                "which from_pretrained may cast them; they are taken as they are"
            )
    kinds = {each.name: each.precision for each in opened}
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        notes.append(
            f"the checkpoints have different precisions ({said}); changes are rounded accordingly"
        )
    return notes


def _same(one: Checkpoint, a: Matched, other: Checkpoint, b: Matched) -> bool:
    """Whether two checkpoints hold the same values; usually the first tensor tells."""
    return a.names.keys() == b.names.keys() and all(
        same_values(one.mapped, a.names[name], other.mapped, b.names[name]) for name in a.names
    )


def new_names(before: Matched, after: Matched) -> list[str]:
    """Names that one state has, and the one before it lacks."""
    return [name for name in after.names if name not in before.names]


def _few(names: Sequence[str]) -> str:
    first = ", ".join(names[:2])
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{first}{more} {'is' if len(names) == 1 else 'are'}"
