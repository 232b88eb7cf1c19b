"""An exported report, checked against the run that it is about."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from stagelens.contracts import StageLensError
from stagelens.effects.results import result_path
from stagelens.runs import fact_tables
from stagelens.runs.files import is_sealed
from stagelens.runs.run import Run
from stagelens.trust.checking import Checked
from stagelens.trust.estimates import stored_estimates

from .exported import SEAL, TableUsed

_SEALED = re.compile(re.escape(SEAL).replace(b"%s", rb"([0-9a-f]{64})"))
_SOURCES = re.compile(rb'<meta name="stagelens:sources" content="([^"]*)">')


def check_report(run: Run, path: Path) -> Iterator[Checked]:
    """Whether a report is as it was exported, and still what the run says.

    Args:
        run: The run.
        path: A .html or .json file that StageLens exported.

    Raises:
        StageLensError: The file cannot be read.
    """
    what, content = f"report {path.name}", read(path)
    holds, sources = _json(path, content) if path.suffix == ".json" else _html(content)
    if not holds or sources is None:
        said = {
            False: "it was changed after it was exported",
            None: "it has no digest: an earlier version wrote it, or it is no report",
            True: "it does not say what it was made from",
        }
        yield Checked(what, None if holds else holds, said[holds])
        return
    yield Checked(what, True, "as it was exported")
    if sources.run_digest != run.digest:
        yield Checked(what, False, f"it is about another recording than {run.path}")
        return
    yield from _tables(run, what, sources)


def read(path: Path) -> bytes:
    """An exported report.

    Raises:
        StageLensError: It cannot be read, or is of a kind without a digest.
    """
    if path.suffix not in (".html", ".json"):
        raise StageLensError(
            f"{path}: only .html and .json reports carry a digest; check one of these"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageLensError(f"{path} cannot be read: {error.strerror or error}") from None


class _Sources(BaseModel):
    """What a report says that it was made from."""

    run_digest: str
    tables: list[TableUsed] = []


def stored_tables(run: Run) -> list[TableUsed]:
    """The effect tables that a run has now."""
    return [
        TableUsed(name, estimate, fact_tables.checksum(result_path(run, facts)) or "")
        for name in run.set_names
        for estimate, facts in stored_estimates(run, name).items()
    ]


def _html(content: bytes) -> tuple[bool | None, _Sources | None]:
    found = _SEALED.search(content)
    if found is None:
        return None, None
    page = content[: found.start()]
    if found.end() != len(content) or hashlib.sha256(page).hexdigest().encode() != found[1]:
        return False, None
    said = _SOURCES.search(page)
    return True, _sources(html.unescape(said[1].decode()) if said else "")


def _json(path: Path, content: bytes) -> tuple[bool | None, _Sources | None]:
    holds = is_sealed(path)
    if not holds:
        return holds, None
    document = json.loads(content)
    named = document.get("run")
    run_digest = named.get("digest") if isinstance(named, dict) else None
    return True, _sources(json.dumps({**document, "run_digest": run_digest}))


def _sources(text: str) -> _Sources | None:
    try:
        return _Sources.model_validate_json(text)
    except ValidationError:  # sealing needs no key: anybody can seal anything
        return None


def _tables(run: Run, what: str, sources: _Sources) -> Iterator[Checked]:
    stored = {(each.set_name, each.estimate): each.checksum for each in stored_tables(run)}
    for table in sources.tables:
        key = (table.set_name, table.estimate)
        of = f"{what}: effects by {key[1]} on set {key[0]}"
        if not table.checksum:
            yield Checked(of, None, "the table that it was made from had no checksum")
        elif key not in stored:
            yield Checked(of, None, "the run no longer has the table that it was made from")
        elif stored[key] != table.checksum:
            yield Checked(
                of, None, "the table was computed again since; export the report again to compare"
            )
        else:
            yield Checked(of, True, "the table is the one that the run had then")
