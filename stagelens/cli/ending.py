"""What a command leaves behind is taken back when it ends, whether it fails or not."""

from __future__ import annotations

import os
from contextlib import ExitStack

at_end = ExitStack()
"""What remains to be done when the command ends."""


def set_until_end(name: str, value: str) -> None:
    """Set an environment variable, where helpers that this command starts look too."""
    at_end.callback(_restore, name, os.environ.get(name))
    os.environ[name] = value


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
