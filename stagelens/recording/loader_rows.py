"""Which rows of its data set a ``DataLoader`` gives to a training that asks it for batches."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from stagelens.contracts import RecordingError, RecordingWarning

from .recorder import Recorder


class LoaderRows:
    """The row numbers of a loader's batches, in the order in which it gives them.

    They are those that its batch sampler draws, with workers or without: a ``DataLoader`` keeps
    their order. Who skips batches, or asks the loader for others in between, gets other numbers
    than its batches have, which their hashes show.

    Args:
        loader: As the training iterates it; also as accelerate has wrapped it.

    Attributes:
        loader: torch's own loader in it: its data set, and what makes batches.

    Raises:
        RecordingError: Its data set has no row numbers, or the loader no batches of them.
    """

    def __init__(self, loader: Any) -> None:
        loader = getattr(loader, "base_dataloader", loader)
        if not isinstance(loader, DataLoader):
            raise RecordingError(
                f"the training's batches come from a {type(loader).__name__}, which does not say "
                "which rows they are of; give it a DataLoader"
            )
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            raise RecordingError(
                "the training's data set has no rows that can be asked for by number; give it a "
                "map-style one (dataset[row], len(dataset)), and let the DataLoader make batches"
            )
        self.loader: DataLoader[Any] = loader
        self._own = loader.batch_sampler
        self._drawn: deque[list[int]] = deque()
        # Past the loader's own guard against another sampler: this one draws the same.
        loader.__dict__["batch_sampler"] = _Noting(self._own, self._drawn)

    def take(self) -> list[int] | None:
        """The rows of the next batch; None where it was not asked for through the loader."""
        return self._drawn.popleft() if self._drawn else None

    def close(self) -> None:
        """Leave the loader as it was."""
        self.loader.__dict__["batch_sampler"] = self._own


def rows_told(recorder: Recorder, stage: str, loader: Any) -> LoaderRows | None:
    """The rows of a training's batches; None, which the run is told, where they have no numbers."""
    try:
        return LoaderRows(loader)
    except RecordingError as error:
        said = f"stage {stage!r} keeps its batches themselves, not as rows of a data set: {error}"
        recorder.note(said)
        warnings.warn(said, RecordingWarning, stacklevel=2)
        return None


class _Noting:
    """A batch sampler that notes what it draws."""

    def __init__(self, sampler: Any, drawn: deque[list[int]]) -> None:
        self._sampler, self._drawn = sampler, drawn

    def __iter__(self) -> Iterator[Any]:
        # What was drawn ahead of an epoch that ended early is not used any more.
        self._drawn.clear()
        for rows in self._sampler:
            self._drawn.append([int(row) for row in rows])
            yield rows

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copying and pickling, before it has a sampler
            raise AttributeError(name)
        return getattr(self._sampler, name)
