"""Parts of a result that is being computed; a killed job continues from them.

Each is a file in ``results/shards/<key>/``, written by whichever process computed it. They are
deleted when the result is stored.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable

import pandas as pd

from stagelens.contracts import RunError
from stagelens.runs import fact_tables
from stagelens.runs.run import Run


class Shards:
    """The finished parts of one result.

    Args:
        run: The run that the result is of.
        key: Identifies the result, with everything that its numbers depend on.
    """

    def __init__(self, run: Run, key: str) -> None:
        self._folder = run.files.inside(f"results/shards/{key}")

    def __contains__(self, name: str) -> bool:
        return self._read(name) is not None  # a file alone does not do: it may be damaged

    def keep(self, name: str, make: Callable[[], pd.DataFrame]) -> None:
        """Compute a part and write it, unless it is already stored and intact."""
        if name not in self:
            self.put(name, make())

    def put(self, name: str, part: pd.DataFrame) -> None:
        """Write a part."""
        fact_tables.write(self._folder / f"{name}.parquet", part)

    def load(self, name: str) -> pd.DataFrame:
        """A finished part.

        Raises:
            RunError: It is missing or damaged.
        """
        found = self._read(name)
        if found is None:
            raise RunError(
                f"{self._folder / name}.parquet is missing, which was just written; start the "
                "command again"
            )
        return found

    def _read(self, name: str) -> pd.DataFrame | None:
        return fact_tables.read_plain(self._folder / f"{name}.parquet")

    def clear(self) -> None:
        """Delete the parts, which are no longer needed once the result is stored."""
        # Parts left behind only take room, which is no reason to fail with the result at hand.
        shutil.rmtree(self._folder, ignore_errors=True)

    def drop(self, name: str) -> None:
        """Delete one part, where other processes may still need the others."""
        # The folder stays: another process may be about to write into it.
        with contextlib.suppress(OSError):  # it only takes room
            (self._folder / f"{name}.parquet").unlink(missing_ok=True)
