"""``python -m stagelens``, whose second process is killed before it keeps its second shard."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pandas as pd

from stagelens.cli import main
from stagelens.measuring import models
from stagelens.measuring.partial_results import Shards

models.SHARD = 10
_keep = Shards.keep
_kept: list[str] = []


def _killed(self: Shards, name: str, make: Callable[[], pd.DataFrame]) -> None:
    _kept.append(name)
    if os.environ["RANK"] == "1" and len(_kept) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    _keep(self, name, make)


Shards.keep = _killed  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
