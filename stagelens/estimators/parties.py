"""Who can join a coalition: parties of stages, and coalitions as bit masks over them.

A party is one stage, or several taken as one. Bit i of a mask is set where party i happened, so
``2 ** M - 1`` is the run as recorded, and 0 is its base after all boundary rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from stagelens.contracts import StageLensError
from stagelens.runs.run import Run

Parties = tuple[tuple[str, ...], ...]
"""Names of stages, in training order within a party; parties in the order of their first stage."""

NOBODY = "no stage"
"""Name of the coalition without a party."""


def parties_of(run: Run, together: Iterable[Collection[str]] = ()) -> Parties:
    """The parties of a run.

    Args:
        run: The run.
        together: Stages to take as one, for each such party; every other stage is its own.

    Raises:
        RunError: There is no such stage.
        StageLensError: A stage is in two parties.
    """
    joined = [{run.stage(name).index for name in names} for names in together if names]
    seen: set[int] = set()
    for indices in joined:
        if twice := seen & indices:
            name = run.stages[min(twice)].name
            raise StageLensError(f"stage {name!r} is in two parties; name it in one of them")
        seen |= indices
    joined += [{stage.index} for stage in run.stages if stage.index not in seen]
    ordered = sorted(joined, key=min)
    return tuple(tuple(run.stages[index].name for index in sorted(one)) for one in ordered)


def check_parties(run: Run, parties: Parties) -> Parties:
    """The same parties in order, every stage in exactly one of them; None of them may be empty.

    Raises:
        RunError: There is no such stage.
        StageLensError: A stage is in two parties, or in none.
    """
    ordered = parties_of(run, parties)
    missing = [one[0] for one in ordered if one[0] not in {n for own in parties for n in own}]
    if missing:
        raise StageLensError(f"stage {missing[0]!r} is in no party; name every stage once")
    return ordered


def name_of(parties: Sequence[Sequence[str]], mask: int) -> str:
    """A coalition in words: the stages that happened, or :data:`NOBODY`."""
    happened = [name for i, names in enumerate(parties) if mask >> i & 1 for name in names]
    return " + ".join(happened) or NOBODY


def stage_masks(run: Run, parties: Parties, masks: Iterable[int]) -> dict[int, int]:
    """Coalitions of parties as coalitions of single stages, whose bit i is stage i of the run.

    Raises:
        StageLensError: A mask names a party that is not there.
    """
    bits = [sum(1 << run.stage(name).index for name in names) for names in parties]
    found = {}
    for mask in masks:
        if not 0 <= mask < 1 << len(parties):
            raise StageLensError(
                f"coalition {mask} is none of {len(parties)} parties; give a bit mask from 0 to "
                f"{(1 << len(parties)) - 1}"
            )
        found[mask] = sum(bit for i, bit in enumerate(bits) if mask >> i & 1)
    return found
