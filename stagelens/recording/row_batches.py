"""Micro-batches that are kept as rows of a data set, wherever these make them again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stagelens.contracts import RecordingWarning
from stagelens.runs.data_rows import (
    DataRows,
    NotTheSame,
    beside_of,
    hash_of,
    kept_of,
    with_beside,
)
from stagelens.runs.row_facts import RowFacts

from .run_writer import RunWriter

Rows = Sequence[int] | None
"""Numbers of a batch's rows in the stage's data set, as the loop tells them."""

_NOT_GIVEN = "the row numbers of a batch are not known (stage.step was called without rows=[...])"


class RowBatches:
    """The micro-batches of one stage.

    Each is made again from its rows as it is noted, and its hash compared with that of the one that
    was used. From the first that differs, tensors are kept, which is told once.

    Args:
        stage: The stage's name.
        data: Its data set; None where it was not given one.
        run: Its run, which keeps what is told.
        announce: Writes facts of the stage.
    """

    def __init__(
        self,
        stage: str,
        data: DataRows | None,
        run: RunWriter,
        announce: Callable[..., None],
    ) -> None:
        self._stage, self._data, self._run, self._announce = stage, data, run, announce
        self._any = False
        self._told = False

    @property
    def facts(self) -> dict[str, RowFacts]:
        """What stage.json says of the data set."""
        return {} if self._data is None else {"rows": self._data.facts}

    def follow(self, facts: RowFacts | None) -> None:
        """Keep tensors if the main process has another data set: its rows are others."""
        if self._data is not None and self._data.facts != facts:
            self._give_up("the main process has another data set, whose row numbers mean others")

    def kept(
        self, description: Any, tensors: Sequence[Tensor], rows: Rows
    ) -> dict[str, Tensor] | None:
        """What is kept of a micro-batch in place of its tensors; None where these are.

        Args:
            description: The batch that was used, as ``flatten`` returns it.
            tensors: The same.
            rows: As the loop told them.
        """
        if self._data is None:
            if rows is not None:
                self._give_up(
                    "it was given rows, but no data set: recorder.stage(..., dataset=...)"
                )
            return None
        if self._told:
            return None
        try:
            if rows is None:
                raise NotTheSame(_NOT_GIVEN)
            numbers = [int(row) for row in rows]
            sha256, made = hash_of(description, tensors), self._data.batch(numbers)
            beside = beside_of((description, tensors), made)
            if hash_of(*with_beside(made, description, beside)) != sha256:
                raise NotTheSame("its rows make another batch than the one that was used")
            found = kept_of(numbers, len(self._data), sha256, beside)
        except Exception as error:  # whatever it is, tensors can be kept
            self._give_up(str(error) or type(error).__name__)
            return None
        self._any = True
        return found

    def _give_up(self, why: str) -> None:
        if self._told:
            return
        self._told = True
        since = "from there on" if self._any else "all of them"
        said = (
            f"stage {self._stage!r} keeps its batches themselves, {since}, and not as rows of its "
            f"data set: {why}"
        )
        # Of several processes others may have kept rows.
        if not self._any and self._run.together.count == 1:
            with contextlib.suppress(Exception):  # else it is written with what comes next
                self._announce(rows=None)
        self._run.note(said)
        warnings.warn(said, RecordingWarning, stacklevel=2)
