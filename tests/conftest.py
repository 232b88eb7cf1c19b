"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Examples are bounded in number, not in time: the machines that run this are busy ones.
hypothesis.settings.register_profile("stagelens", deadline=None, print_blob=True)
hypothesis.settings.load_profile("stagelens")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data sets, which are no part of the repository; STAGELENS_DATA says where they are."""
    folder = Path(os.environ.get("STAGELENS_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder} (set STAGELENS_DATA to a folder that has them)")
    return folder
