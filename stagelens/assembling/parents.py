"""Which checkpoint was trained from which, and which were merged from several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stagelens.contracts import BASE, StageLensError
from stagelens.runs.lineage import common
from stagelens.runs.schema import check_name

Given = Mapping[str, str | Sequence[str]]
"""Stage to its parent, or to several of a merge, by name."""


@dataclass(frozen=True)
class Descent:
    """Checkpoints in an order in which each comes after what it came from; the base is the first.

    Attributes:
        names: Of the checkpoints.
        parents: (N,) numbers of what each came from; none of the base, several of a merge.
    """

    names: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]

    def history(self, number: int) -> list[int]:
        """The checkpoints from the base to this one; see :mod:`stagelens.runs.lineage`."""
        if number == 0:
            return [0]
        return [*common([self.history(each) for each in self.parents[number]]), number]

    def before(self, number: int) -> int:
        """What the stage that a checkpoint ends started from."""
        return self.history(number)[-2]

    @property
    def leaves(self) -> list[int]:
        """The checkpoints that nothing came from."""
        inner = {parent for parents in self.parents for parent in parents}
        return [number for number in range(1, len(self.names)) if number not in inner]

    def merged(self, number: int) -> bool:
        """Whether a checkpoint was merged from several."""
        return len(self.parents[number]) > 1

    def listed(self, number: int) -> list[str] | None:
        """The names of a stage's parents for run.json; None where it is the stage listed before."""
        if self.parents[number] == (number - 1,):
            return None
        return [self.names[each] if each else BASE for each in self.parents[number]]


def check_names(names: Sequence[str]) -> None:
    """Refuse names of checkpoints that cannot be those of a base and its stages.

    Raises:
        StageLensError: There are too few, or one is unusable or given twice.
    """
    if len(names) < 2:
        raise StageLensError(
            "a run needs at least two checkpoints: the base, and the end of one stage, for "
            "instance --stage base=DIR --stage sft=DIR"
        )
    for number, name in enumerate(names):
        try:
            check_name(name)
        except ValueError as error:
            raise StageLensError(f"a stage's name: {error}") from None
        if name in names[:number] or (number > 0 and name == BASE):
            raise StageLensError(
                f"the name {name!r} is given twice, or is that of the base; give every stage a "
                "name of its own, in the order of training"
            )


def descent(names: Sequence[str], given: Given) -> Descent:
    """The order of checkpoints by what each came from.

    Args:
        names: Of the checkpoints, the base first.
        given: What is known; any other checkpoint came from the one before it that is no merge.

    Raises:
        StageLensError: A name is not known, or stages come from one another in a circle.
    """
    base, *rest = names
    for name, parents in given.items():
        named = (parents,) if isinstance(parents, str) else tuple(parents)
        unknown = [each for each in (name, *named) if each not in (*names, BASE)]
        if unknown or name in (base, BASE) or not named:
            what = repr(unknown[0]) if unknown else f"a parent of {name!r}"
            raise StageLensError(
                f"{what} is no stage that could come from another; there are "
                f"{', '.join(rest)} and the base {base}"
            )
        if len(set(named)) < len(named) or name in named:
            raise StageLensError(f"the parents of {name!r} are given twice, or are itself")
    of: dict[str, tuple[str, ...]] = {}
    last = base
    for name in rest:
        parents = given.get(name, last)
        several = (parents,) if isinstance(parents, str) else tuple(parents)
        of[name] = tuple(base if each == BASE else each for each in several)
        last = name if len(several) == 1 else last
    order = [base]
    while len(order) < len(names):
        ready = [n for n in rest if n not in order and all(p in order for p in of[n])]
        if not ready:
            left = [name for name in rest if name not in order]
            raise StageLensError(
                f"{', '.join(left)} come from one another in a circle; give each stage what it "
                "was trained from"
            )
        order.append(ready[0])
    numbers = {name: number for number, name in enumerate(order)}
    return Descent(
        tuple(order), ((), *(tuple(numbers[each] for each in of[name]) for name in order[1:]))
    )
