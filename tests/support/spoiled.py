"""``python -m stagelens`` on a disk that is full, or that may not be written.

``python -m tests.support.spoiled {full,read-only} WORDS``
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from typing import Any

import pyarrow.parquet

from stagelens.cli import main


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


if __name__ == "__main__":
    if sys.argv.pop(1) == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    else:
        pyarrow.parquet.write_table = _refuse
    main()
