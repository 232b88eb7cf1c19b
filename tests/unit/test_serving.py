"""What a dashboard for other people takes from visitors, and tells them."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import streamlit as st
from starlette.exceptions import HTTPException
from streamlit import runtime
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.testing.v1 import AppTest

from stagelens.ui.server import settings, uploads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> MemoryUploadedFileManager:
    """A server's files; the guard stands before them once a page has been opened."""
    made = MemoryUploadedFileManager("/_stcore/upload_file")
    monkeypatch.setattr(runtime, "exists", lambda: True)
    monkeypatch.setattr(runtime, "get_instance", lambda: SimpleNamespace(uploaded_file_mgr=made))
    return made


def put(manager: MemoryUploadedFileManager, session: str, name: str, size: int = 10) -> None:
    manager.add_file(session, UploadedFileRec(name, name, "image/png", bytes(size)))


def kept(manager: MemoryUploadedFileManager) -> dict[str, list[str]]:
    return {session: list(files) for session, files in manager.file_storage.items() if files}


def test_a_session_keeps_the_file_on_display_and_the_one_that_replaces_it(
    manager: MemoryUploadedFileManager,
) -> None:
    for _ in range(2):  # every page calls it
        uploads.guard()
    for number in range(40):
        put(manager, "one", f"f{number}")
    put(manager, "two", "other")
    put(manager, "one", "f39")  # once more
    assert kept(manager) == {"one": ["f38", "f39"], "two": ["other"]}


def test_all_sessions_together_have_so_much_room(
    manager: MemoryUploadedFileManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_UPLOADS", "1 MB")
    uploads.guard()
    for session in ("one", "two"):
        put(manager, session, "file", 400_000)
    with pytest.raises(HTTPException, match="as many files as it takes"):
        put(manager, "three", "file", 400_000)
    manager.remove_session_files("one")
    put(manager, "three", "file", 400_000)
    assert set(kept(manager)) == {"two", "three"}


def test_a_read_only_server_takes_nothing_and_drops_what_came_before_its_first_page(
    manager: MemoryUploadedFileManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_READ_ONLY", "1")
    put(manager, "one", "early")
    uploads.guard()
    with pytest.raises(HTTPException) as refused:
        put(manager, "one", "file")
    assert (refused.value.status_code, refused.value.detail) == (403, settings.READ_ONLY)
    assert kept(manager) == {}


def test_visitors_are_not_told_the_details_of_an_unexpected_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Streamlit puts the script in its place, and a process that is started later would run it.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    before: Any = st.get_option("client.showErrorDetails")
    details = config["client"]["showErrorDetails"]
    try:
        app = AppTest.from_string(
            f"import streamlit as st\nst.set_option('client.showErrorDetails', {details!r})\n"
            "raise ValueError('/secret/path')"
        ).run()
    finally:
        st.set_option("client.showErrorDetails", before)
    (shown,) = app.exception
    assert "secret" not in f"{shown.message}{shown.stack_trace}{shown.proto}"
    assert "/secret/path" in "".join(capfd.readouterr())


def test_the_proxy_bounds_visitors_and_hides_what_is_not_theirs() -> None:
    text = re.sub(r"#.*", "", (ROOT / "deploy" / "nginx.conf").read_text())
    assert text.count("{") == text.count("}")
    for header in (
        'Content-Security-Policy "frame-ancestors',
        "X-Content-Type-Options nosniff",
        "Referrer-Policy same-origin",
    ):
        assert f"add_header {header}" in text
    places = dict(re.findall(r"location (?:[~=] )?(\S+) \{([^}]*)\}", text))
    assert "return 404" in places["/_stcore/(metrics|script-health-check)"]
    # Headers of a location would replace those of the server.
    assert not any("add_header" in place for place in places.values())
    for name in ("/", "/_stcore/stream$", "/_stcore/upload_file/"):
        assert "limit_req zone=" in places[name], name
        zone = re.search(r"limit_req zone=(\w+)", places[name])
        assert zone is not None and f"zone={zone[1]}:" in text
    assert "limit_conn stagelens_connections" in text
    largest = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["server"]
    allowed = re.search(r"client_max_body_size (\d+)m", places["/_stcore/upload_file/"])
    assert allowed is not None and int(allowed[1]) == largest["maxUploadSize"] + 1
