"""What every exported page shares: templates that escape, a policy, its colours, and a seal."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources

import jinja2

from stagelens.charts.style import DARK, LIGHT, variables, written_out

_SHARED = frozenset({"head.html"})
"""Templates that pages of all packages begin with."""
SEAL = b"\n<!-- StageLens report, sha256 of all above: %s -->\n"


@dataclass(frozen=True)
class TableUsed:
    """A stored effect table, as ``stagelens check`` finds it again.

    Attributes:
        set_name: The evaluation set.
        estimate: Estimator and settings.
        checksum: Of the stored table; empty for one of an earlier version.
    """

    set_name: str
    estimate: str
    checksum: str


def sealed(page: bytes) -> bytes:
    """A page with a digest over it at its end, by which an edited one is known."""
    return page + SEAL % hashlib.sha256(page).hexdigest().encode()


def sources(run_digest: str, tables: Sequence[TableUsed]) -> str:
    """What a page was made from, as JSON."""
    return json.dumps({"run_digest": run_digest, "tables": [asdict(each) for each in tables]})


def policy(scripts: Sequence[str]) -> str:
    """A content security policy: only these scripts run, and nothing is fetched."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    allowed = hashes or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def templates(package: str) -> jinja2.Environment:
    """The environment of a package's templates: what they print is escaped."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: file_text(name, __package__ if name in _SHARED else package)
        ),
        autoescape=True,
        # A misspelt name in the template fails, where the default would print nothing.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names from data can neither reverse nor hide the text after them. Markup, a subclass of
        # str, is the template's own and stays as it is.
        finalize=lambda value: written_out(value) if type(value) is str else value,
    )


def file_text(name: str, package: str = __package__) -> str:
    """A file that comes with a package."""
    return resources.files(package).joinpath(name).read_text("utf-8")


def style() -> str:
    """The style sheet of exported pages, in the charts' own colours; printed pages are light."""
    return (
        f":root{{{variables(LIGHT)};color-scheme:light}}\n"
        "@media screen and (prefers-color-scheme:dark)"
        f"{{:root{{{variables(DARK)};color-scheme:dark}}}}\n"
        f"{file_text('report.css')}"
    )
