"""Names that runs, stages and sets can have, and paths inside a run folder."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def check_name(name: str) -> str:
    """Check that a run, stage or set can have this name in paths, links and sentences.

    Raises:
        ValueError: It has other characters, or more than 64.
    """
    # Windows drops dots and spaces at the end of a file name.
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ValueError(
            f"{name!r} is not a usable name: use up to 64 letters, digits, spaces, '.', '_' or "
            "'-', starting with a letter or digit"
        )
    return name


def check_relative(path: str) -> str:
    """Check that a path leads to a file below the run folder.

    Raises:
        ValueError: It leads elsewhere, or is not valid on every system.
    """
    # On Windows a backslash separates folders, and a colon follows a drive.
    parts = path.split("/")
    if (
        path.startswith("/")
        or "\\" in path
        or ":" in path
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise ValueError(f"{path!r} is not a plain path inside the run folder")
    return path


Name = Annotated[str, AfterValidator(check_name)]
RelativePath = Annotated[str, AfterValidator(check_relative)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
