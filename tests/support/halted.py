"""``python -m stagelens``, which stands still when its first file or folder is to be put in place.

Everything temporary is there then. It prints ``halted``, and waits to be ended.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from stagelens.cli import main

_replace = os.replace


def _halt(source: Any, target: Any, **options: Any) -> None:
    if Path(target).name == "progress.json":
        _replace(source, target, **options)
        return
    print("halted", flush=True)
    time.sleep(120)


if __name__ == "__main__":
    os.replace = _halt
    main()
