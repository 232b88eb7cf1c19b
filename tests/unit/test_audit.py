"""``make audit`` never calls packages safe that nobody could look up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import audit

LOCK = """\
numpy==2.4.6 \\
    --hash=sha256:00
torch==2.13.0+cpu \\
    --hash=sha256:00
"""
SAFE = {"name": "numpy", "version": "2.4.6", "vulns": []}
UNSAFE = {
    "name": "torch",
    "version": "2.13.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.13.1"]}, {"id": "PYSEC-2", "fix_versions": []}],
}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found: torch (2.13.0)"}


def test_only_what_was_looked_up_is_called_safe() -> None:
    assert audit.verdict([SAFE]) == (
        True,
        "No known vulnerabilities in 1 packages, all of them looked up.",
    )


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([UNKNOWN], "Nothing could be looked up, so nothing is known (Dependency not found: torch"),
        ([], "Nothing could be looked up, so nothing is known (the file pins no package)"),
        ([SAFE, UNKNOWN], "torch could not be looked up: Dependency not found: torch (2.13.0)"),
        ([SAFE, UNSAFE], "torch 2.13.0: PYSEC-1, fixed in 2.13.1\ntorch 2.13.0: PYSEC-2, fixed"),
    ],
)  # fmt: skip
def test_all_else_is_a_failure(packages: list[dict], said: str) -> None:
    well, words = audit.verdict(packages)
    assert not well and said in words and "No known" not in words


def stand_in(folder: Path, code: str) -> tuple[str, ...]:
    """A pip-audit that runs ``code``, in which ``pinned`` and ``found`` are its two files."""
    script = folder / "pip_audit.py"
    given = "import sys\npinned, found = (sys.argv[sys.argv.index(o) + 1] for o in OPTIONS)\n"
    script.write_text(given.replace("OPTIONS", "('--requirement', '--output')") + code)
    return sys.executable, str(script)


def test_builds_for_cpus_are_looked_up_as_the_version_that_was_published(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(LOCK)
    answer = json.dumps({"dependencies": [SAFE]})
    code = (
        f"text = open(pinned).read(); assert 'torch==2.13.0 \\\\\\n' in text, text\n"
        f"assert 'numpy==2.4.6 \\\\\\n' in text, text\nopen(found, 'w').write({answer!r})"
    )
    assert audit.report(lock, stand_in(tmp_path, code)) == [SAFE]


def test_an_audit_without_an_answer_fails(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(LOCK)
    offline = stand_in(tmp_path, "sys.exit('Traceback\\nConnectionError: no network')")
    with pytest.raises(SystemExit) as end:
        audit.report(lock, offline)
    assert end.value.code == "Nothing could be looked up: ConnectionError: no network"
