"""A server that is process 1, as in a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

AS_PROCESS_1 = """
import os, sys
from stagelens.ui.server import interrupted_jobs, jobs
assert os.getpid() == 1
job = jobs.registry().start((sys.executable, "-c", "import time; time.sleep(0.3)"), "Replay")
print(len(list((jobs.settings.home() / interrupted_jobs.FOLDER).glob("*.json"))))
job._reaper.join()
print(job.status().state, interrupted_jobs.found())
"""


def test_jobs_run_where_the_server_is_process_1_as_in_a_container(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare, which makes a process number 1")
    own = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("unshare is not allowed here, which makes a process number 1")
    done = subprocess.run(
        [*own, sys.executable, "-c", AS_PROCESS_1],
        env={**os.environ, "STAGELENS_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "done", "[]"], done.stderr
