"""Fixtures for unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loops import Training


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """A small training into a new folder, for a test to spoil."""
    return Training(tmp_path / "run")
