"""Slices on disk: ``slices/<key>.json`` in the run folder, one self-describing file each.

Every slice is a file of its own, written atomically under a key of set and name, so pages of
different people may save at the same time. A file that cannot be read is reported, and the others
are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from pydantic import ConfigDict, Field, model_validator

from stagelens.contracts import OTHER_EXAMPLES, SLICE_COLUMN, RunError, StageLensError
from stagelens.runs.files import cannot_write, check_changeable, read_json, write_json
from stagelens.runs.run import Run
from stagelens.runs.schema import Name, Versioned, check_name, digest
from stagelens.runs.sets.evaluation_set import EvaluationSet

BY_OUTCOME = ("answers", "answer", "path", "changed", "side", "strength")
"""Filters that look at what is measured: a mean effect on examples chosen by it is no evidence."""

MOST = 50
"""Most slices of one set; with more, pages would offer more than anybody reads."""


class Slice(Versioned):
    """Examples of one set under a name.

    Attributes:
        name: As people call it.
        run_digest: The recording that ``filters`` by outcome looked at.
        set_name: The evaluation set when it was saved.
        set_digest: Its digest; the slice belongs to this set as it was.
        estimate: Whose effects ``filters`` looked at, such as ``coarse-replay 1/4``.
        behaviour: Of these effects.
        filters: What was asked, without filters left open: ``{"label": "3", "answers": "wrong"}``.
        example_ids: The examples that passed, in the set's order.
        saved: When, in UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    run_digest: str
    set_name: str
    set_digest: str
    estimate: str
    behaviour: str
    filters: dict[str, str | float | bool]
    example_ids: tuple[str, ...] = Field(min_length=1)
    saved: datetime

    @model_validator(mode="after")
    def _each_once(self) -> Slice:
        if len(set(self.example_ids)) != len(self.example_ids):
            raise ValueError("an example appears in it twice")
        return self

    @property
    def column(self) -> str:
        """The column that stands for it in tables."""
        return SLICE_COLUMN + self.name

    @property
    def by_outcome(self) -> bool:
        """Whether it was chosen by what is measured, so that its mean effect is no evidence."""
        return any(key in self.filters for key in BY_OUTCOME)

    def words(self) -> str:
        """What its filters asked, for people."""
        said = Slice.words_of(self.filters) or "all examples"
        return f"{said} ({self.behaviour} by {self.estimate})" if self.by_outcome else said

    @staticmethod
    def words_of(filters: Mapping[str, str | float | bool]) -> str:
        """Filters in words; empty where they ask nothing."""
        return ", ".join(
            key if value is True else f"{key} {value}" for key, value in filters.items()
        )


def _folder(run: Run) -> Path:
    return run.files.inside("slices")


def _path(run: Run, set_digest: str, name: str) -> Path:
    # Without regard to case: two names that a reader takes for one are one.
    return _folder(run) / f"{digest('slice', set_digest, name.casefold())[:32]}.json"


def save_slice(
    run: Run,
    examples: EvaluationSet,
    name: str,
    example_ids: Iterable[str],
    filters: Mapping[str, str | float | bool],
    estimate: str = "",
    behaviour: str = "",
) -> Slice:
    """Keep examples of a set under a name.

    Args:
        run: The run whose folder keeps it.
        examples: The set.
        name: Up to 64 letters, digits, spaces, '.', '_' or '-'.
        example_ids: Some of the set's ids.
        filters: How they were chosen, see :class:`Slice`.
        estimate: Whose effects the filters looked at.
        behaviour: Of these effects.

    Raises:
        StageLensError: The name is not usable or taken, there is no example, an id is not in
            the set, or the file cannot be written.
    """
    name = name.strip()
    try:
        check_name(name)
    except ValueError as error:
        raise StageLensError(f"slice: {error}") from None
    # Both values of the slice's column would read the same.
    if name.casefold() == OTHER_EXAMPLES:
        raise StageLensError(
            f"{name!r} is what the remaining examples are called; choose another name"
        )
    chosen = set(example_ids)
    if not chosen:
        raise StageLensError(f"slice {name!r} would hold no examples; loosen a filter")
    order = examples.table(())["example_id"].tolist()
    if foreign := chosen.difference(order):
        raise StageLensError(
            f"slice {name!r}: {min(foreign)!r} is not an example of set {examples.name!r}; choose "
            "from its ids"
        )
    # joined() prefers the set's own column, so the slice would never be seen.
    if SLICE_COLUMN + name in examples.columns:
        raise StageLensError(
            f"set {examples.name!r} has a column {SLICE_COLUMN + name!r}; choose another name"
        )
    made = Slice(
        name=name,
        run_digest=run.digest,
        set_name=examples.name,
        set_digest=examples.digest,
        estimate=estimate,
        behaviour=behaviour,
        filters=dict(filters),
        example_ids=tuple(one for one in order if one in chosen),
        saved=datetime.now(UTC).replace(microsecond=0),
    )
    check_changeable("Slices")
    kept, _ = stored_slices(run, examples)
    if len(kept) >= MOST:
        raise StageLensError(f"set {examples.name!r} has {MOST} slices; delete one first")
    path = _path(run, examples.digest, name)
    if path.exists():
        raise StageLensError(
            f"there is a slice {name!r} already; choose another name, or delete it first"
        )
    try:
        write_json(path, made)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None
    return made


def stored_slices(run: Run, examples: EvaluationSet) -> tuple[list[Slice], list[str]]:
    """The slices of a set as it is now, by name, and why others cannot be shown.

    Slices of other sets are left out. One that was chosen by what another recording of the run
    did is reported as a problem: its examples were chosen by numbers that no longer exist.
    """
    found: list[Slice] = []
    problems: list[str] = []
    # Sorted, because a folder lists its files in any order.
    for path in sorted(_folder(run).glob("*.json")):
        try:
            one = read_json(run.files.inside(f"slices/{path.name}"), Slice)
        except RunError as error:
            problems.append(str(error))
            continue
        if one.set_digest != examples.digest:
            continue
        # A copied file would otherwise count as a second slice of the same name.
        if path != _path(run, one.set_digest, one.name):
            problems.append(
                f"{path} holds the slice {one.name!r}, but under another slice's file name; "
                "delete it, or save the slice again"
            )
        elif one.by_outcome and one.run_digest != run.digest and len(run.lineage.ends) > 1:
            continue  # of another leaf
        elif one.by_outcome and one.run_digest != run.digest:
            problems.append(
                f"slice {one.name!r} was chosen by the effects or answers of another recording; "
                "delete it, and save it again"
            )
        else:
            found.append(one)
    return sorted(found, key=lambda one: one.name.casefold()), problems


def slice_of(run: Run, examples: EvaluationSet, name: str) -> Slice:
    """The slice of a set with this name, whether in capitals or not.

    Raises:
        StageLensError: There is none; says which there are.
    """
    found, _ = stored_slices(run, examples)
    for one in found:
        if one.name.casefold() == name.casefold():
            return one
    known = f"there are {', '.join(one.name for one in found)}" if found else "there is none yet"
    raise StageLensError(
        f"set {examples.name!r} has no slice {name!r}; {known}: the page Examples saves what its "
        "filters show"
    )


def delete_slice(run: Run, one: Slice) -> None:
    """Delete a slice; it is no error if somebody else already has.

    Raises:
        RunError: The run folder cannot be written; says what to do.
    """
    check_changeable("Slices")
    path = _path(run, one.set_digest, one.name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None


def joined(table: pd.DataFrame, slices: Sequence[Slice]) -> pd.DataFrame:
    """A table with a column per slice: its name for its own examples, another value for the rest.

    Args:
        table: With ``example_id``; own columns of these names are kept as they are.
        slices: Of the set that the table is about.
    """
    added = {}
    for one in slices:
        if one.column not in table:
            inside = table["example_id"].isin(one.example_ids)
            added[one.column] = pd.Categorical.from_codes(
                inside.to_numpy().astype("int8"), categories=[OTHER_EXAMPLES, one.name]
            )
    return table.assign(**added) if added else table


def examples_of(run: Run, examples: EvaluationSet) -> pd.DataFrame:
    """One row per example with the set's own columns, and a column for each slice."""
    return joined(examples.table(), stored_slices(run, examples)[0])


def column_key(run: Run, examples: EvaluationSet, column: str) -> tuple[str, ...]:
    """What tells a slice from an earlier one of its name; empty for the set's own columns.

    Results that are kept under the name of a column are keyed by this too.
    """
    for one in stored_slices(run, examples)[0] if column.startswith(SLICE_COLUMN) else ():
        if one.column == column:
            return (digest(one.example_ids),)
    return ()
