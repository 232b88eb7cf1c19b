"""The wheel, built without a network and laid out as pip would install it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def installed(folder: Path) -> Path:
    """A folder for PYTHONPATH that holds what the wheel installs, and nothing else."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    done = subprocess.run(
        [*command, "--directory", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    target = folder / "installed"
    # A wheel of Python alone is installed by unpacking it.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def environment(target: Path, **more: str) -> dict[str, str]:
    """The environment of a process that finds the installed StageLens, and not the checkout's."""
    return {**os.environ, "PYTHONPATH": str(target), **more}
