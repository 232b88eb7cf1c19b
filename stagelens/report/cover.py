"""The title, the author and the summary of a run's report, kept like findings: only ever added.

``findings/cover/edits/TIME-RANDOM.json`` holds what one change set; of each field the last counts.
"""

from __future__ import annotations

import secrets
import time

from pydantic import BaseModel, ConfigDict, Field

from stagelens.contracts import RunError, StageLensError
from stagelens.runs.files import cannot_write, check_changeable, read_json, write_json
from stagelens.runs.run import Run

from .finding import LONGEST_NOTE, LONGEST_TITLE, VERSION

_FOLDER = "findings/cover/edits"


class Cover(BaseModel):
    """What stands above the findings; empty where nothing was said.

    Attributes:
        title: Of the report; the run's name if empty.
        author: Who made it.
        summary: What it says in short, in Markdown.
    """

    model_config = ConfigDict(frozen=True)

    title: str = Field(default="", max_length=LONGEST_TITLE)
    author: str = Field(default="", max_length=LONGEST_TITLE)
    summary: str = Field(default="", max_length=LONGEST_NOTE)


class _Edit(BaseModel):
    """One change; None where it changes nothing."""

    model_config = ConfigDict(frozen=True)

    version: int = VERSION
    at: int
    title: str | None = Field(default=None, max_length=LONGEST_TITLE)
    author: str | None = Field(default=None, max_length=LONGEST_TITLE)
    summary: str | None = Field(default=None, max_length=LONGEST_NOTE)


def read_cover(run: Run) -> tuple[Cover, list[str]]:
    """The cover as it is now, and what could not be read: one sentence per file."""
    said: dict[str, str] = {}
    problems = []
    try:
        folder = run.files.inside(_FOLDER)
        # By name, which begins with the time, so that all readers agree on the last one.
        paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    except (OSError, RunError) as error:
        return Cover(), [f"The report's title cannot be read: {error}"]
    for path in paths:
        try:
            edit = read_json(path, _Edit)
        except StageLensError as error:
            problems.append(f"A change of the report's title is damaged and left out: {error}")
            continue
        said.update(edit.model_dump(include=set(Cover.model_fields), exclude_none=True))
    return Cover(**said), problems


def write_cover(
    run: Run, title: str | None = None, author: str | None = None, summary: str | None = None
) -> None:
    """Change what is given, and nothing else.

    Raises:
        RunError: The run folder cannot be written; says what to do.
    """
    check_changeable("The report's title, author and summary")
    edit = _Edit(at=time.time_ns(), title=title, author=author, summary=summary)
    path = run.files.inside(f"{_FOLDER}/{edit.at:020d}-{secrets.token_hex(4)}.json")
    try:
        write_json(path, edit)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from None
