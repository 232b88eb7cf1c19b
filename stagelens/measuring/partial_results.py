"""Parts of a result that is being computed; a job that was killed goes on from them.

Each is a file of ``results/shards/<key>/``, written by whichever process computed it. They go when
the result is stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pandas as pd

from stagelens.contracts import RunError
from stagelens.runs import fact_tables
from stagelens.runs.run import Run


class Shards:
    """The finished parts of one result.

    Args:
        run: Whose result it is.
        key: Names the result, and all that its numbers depend on.
    """

    def __init__(self, run: Run, key: str) -> None:
        self._folder = run.files.inside(f"results/shards/{key}")

    def __contains__(self, name: str) -> bool:
        return self._read(name) is not None

    def keep(self, name: str, make: Callable[[], pd.DataFrame]) -> None:
        """Compute a part and write it, unless it is there and whole."""
        if name in self:
            return
        fact_tables.write(self._folder / f"{name}.parquet", make())

    def load(self, name: str) -> pd.DataFrame:
        """A part that is finished.

        Raises:
            RunError: It is not there.
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
        """The result is stored: its parts are needed no more."""
        shutil.rmtree(self._folder, ignore_errors=True)
