"""Nothing that the product does by itself reaches another machine.

The demos of all tests are built by processes that raise where they would connect to one
(``offline`` in tests/conftest.py).
"""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import offline
from tests.pages.reading import check
from tests.support.odd_runs import measure_all, record

CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
PAGES = (
    "app.py",
    "pages/1_Examples.py",
    "pages/2_Spurious_features.py",
    "pages/3_Remove_a_stage.py",
    "pages/4_Trust.py",
    "pages/5_Report.py",
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process cannot reach another machine either."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo
    importlib.import_module("tests.support.offline.sitecustomize")
    yield
    socket.socket.connect, socket.getaddrinfo = connect, look_up  # type: ignore[method-assign]
    del sys.modules["tests.support.offline.sitecustomize"]


def test_a_child_that_connects_is_stopped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONNECT], env=offline(), capture_output=True, text=True
    )
    assert "a test without a network: '192.0.2.1'" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_measuring_and_every_page_need_no_network(open_page, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without a network"):
        exec(CONNECT)
    run = record(tmp_path / "home" / "run", {"first": (3, 0.05), "last": (3, 0.05)})
    measure_all(run, "test")
    for page in PAGES:
        check(open_page(tmp_path / "home", "run=run", page))
