"""Where an example stands in a table, by its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc


class Places(Mapping[str, int]):
    """Example id to its row, looked up in the ids: a dictionary would take ten times the memory."""

    def __init__(self, ids: pd.Series) -> None:
        self._ids = pa.array(ids, pa.string())

    def __getitem__(self, example_id: str) -> int:
        place = pc.index(self._ids, example_id).as_py()
        if place < 0:
            raise KeyError(example_id)
        return int(place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.to_pylist())

    def __len__(self) -> int:
        return len(self._ids)
