"""The workflow of docs/gate.md: its steps run as GitHub's runners run them, on tiny runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stagelens.runs.remote import is_remote
from tests.support.gated import record

DOCS = Path(__file__).parents[2] / "docs" / "gate.md"
RELEASED = "s3://models/released"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, object]]:
    """Those of the one workflow that the document shows."""
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (job,) = yaml.safe_load(block)["jobs"].values()
    assert job["runs-on"] == "ubuntu-latest"  # whose shell is bash -e, and which has jq
    return list(job["steps"])


def test_it_installs_what_it_needs_and_keeps_what_it_made(steps: list[dict[str, object]]) -> None:
    assert all(("run" in step) != ("uses" in step) for step in steps)
    installed = next(str(s["run"]) for s in steps if "pip install" in str(s.get("run")))
    assert is_remote(RELEASED) and "s3fs" in shlex.split(installed, comments=True)
    assert steps[-1]["with"] == {"name": "gate", "path": "gate.json"}
    assert steps[-1]["if"] == "always()"  # of a failed gate, too


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("jq") is None, reason="jq, which GitHub's runners have, is absent")
def test_its_gate_passes_what_is_fine_and_stops_what_got_worse(
    steps: list[dict[str, object]], tmp_path: Path
) -> None:
    script = next(str(step["run"]) for step in steps if RELEASED in str(step.get("run")))
    tool = tmp_path / "bin" / "stagelens"  # what pip would have installed
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m stagelens "$@"\n')
    tool.chmod(0o755)
    record(tmp_path / "released", 1)
    record(tmp_path / "changed" / "runs" / "new", 3, spoiled=True)
    record(tmp_path / "unchanged" / "runs" / "new", 1)
    said = {}
    for folder, status in (("unchanged", 0), ("changed", 1)):
        here = script.replace(RELEASED, str(tmp_path / "released"))
        (tmp_path / folder / "step.sh").write_text(here)
        done = subprocess.run(
            ["bash", "-e", "step.sh"],
            cwd=tmp_path / folder,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        said[folder] = done.stdout
    assert said["unchanged"] == "No slice got worse.\n"
    found = json.loads((tmp_path / "changed" / "gate.json").read_text())
    assert found["verdict"] == "regressed"
    (line,) = said["changed"].splitlines()
    # As GitHub reads a message.
    told = line.removeprefix("::error::").replace("%0A", "\n").replace("%25", "%")
    assert told.split("\n") == found["notes"]
    assert "stage adapt of the new recipe did it" in told
