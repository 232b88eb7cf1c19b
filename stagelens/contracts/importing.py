"""Things that are named as ``package.module:name``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .errors import StageLensError


def imported(target: str, told: Callable[[str], StageLensError]) -> Any:
    """What a text names: a class, a function or anything else of a module.

    Args:
        target: As ``package.module:name``.
        told: Makes the error of why it cannot be imported.

    Raises:
        StageLensError: The one that ``told`` makes.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    # import_module raises ValueError for an empty name, as in ":Class".
    except (ImportError, AttributeError, ValueError) as error:
        raise told(str(error)) from None
