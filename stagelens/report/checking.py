"""An exported report, checked against the run that it is about."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagelens.contracts import StageLensError
from stagelens.effects.results import result_path
from stagelens.runs import fact_tables
from stagelens.runs.files import is_sealed
from stagelens.runs.run import Run
from stagelens.trust.checking import Checked
from stagelens.trust.estimates import stored_estimates

from .page import SEAL

_SEALED = re.compile(re.escape(SEAL).replace(b"%s", rb"([0-9a-f]{64})") + rb"\Z")
_SOURCES = re.compile(rb'<meta name="stagelens:sources" content="([^"]*)">')


def check_report(run: Run, path: Path) -> Iterator[Checked]:
    """Whether a report is as it was exported, and still what the run says.

    Args:
        run: The run.
        path: A .html or .json file that StageLens exported.

    Raises:
        StageLensError: The file cannot be read.
    """
    what = f"report {path.name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageLensError(f"{path} cannot be read: {error.strerror or error}") from None
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
    if sources.get("run_digest") != run.digest:
        yield Checked(what, False, f"it is about another recording than {run.path}")
        return
    yield from _tables(run, what, sources)


def _html(content: bytes) -> tuple[bool | None, dict[str, Any] | None]:
    found = _SEALED.search(content)
    if found is None:
        return None, None
    page = content[: found.start()]
    if hashlib.sha256(page).hexdigest().encode() != found[1]:
        return False, None
    sources = _SOURCES.search(page)
    return True, json.loads(html.unescape(sources[1].decode())) if sources else None


def _json(path: Path, content: bytes) -> tuple[bool | None, dict[str, Any] | None]:
    holds = is_sealed(path)
    if not holds:
        return holds, None
    document = json.loads(content)
    return True, {**document, "run_digest": document.get("run", {}).get("digest")}


def _tables(run: Run, what: str, sources: dict[str, Any]) -> Iterator[Checked]:
    stored = {
        (name, estimate): fact_tables.checksum(result_path(run, facts)) or ""
        for name in run.set_names
        for estimate, facts in stored_estimates(run, name).items()
    }
    for table in sources.get("tables", ()):
        key = (table["set_name"], table["estimate"])
        of = f"{what}: effects by {key[1]} on set {key[0]}"
        if not table["checksum"]:
            yield Checked(of, None, "the table that it was made from had no checksum")
        elif key not in stored:
            yield Checked(of, None, "the run no longer has the table that it was made from")
        elif stored[key] != table["checksum"]:
            yield Checked(
                of, None, "the table was computed again since; export the report again to compare"
            )
        else:
            yield Checked(of, True, "from the table that the run has now")
