"""Style, types and layers, checked beside the other tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

BIN = Path(sys.executable).parent

LINTERS = {
    "style": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy", "stagelens"),
    # Without its cache, which overlooks files that were added.
    "layers": ("lint-imports", "--no-logo", "--no-cache"),
}


@pytest.mark.essential
@pytest.mark.slow
@pytest.mark.parametrize("name", LINTERS)
def test_the_code_passes(name: str) -> None:
    program, *options = LINTERS[name]
    done = subprocess.run([BIN / program, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
