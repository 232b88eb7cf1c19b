"""What visitors may upload: the file that a page asks for, and nothing where all is only shown.

Streamlit takes a file from every open session, whether or not its page asks for one, and keeps it
until the session ends.
"""

from __future__ import annotations

import threading
from typing import Any

from streamlit import runtime

from . import settings

OF_ONE = 2
"""Files of one session: the one on display, and for a moment the one that replaces it."""

_lock = threading.Lock()


def guard() -> None:
    """Bound what this server takes; every page calls it before anything else."""
    if not runtime.exists():  # without a server, in tests
        return
    manager: Any = runtime.get_instance().uploaded_file_mgr
    with _lock:
        if not isinstance(manager.add_file, _Bounded):
            manager.add_file = _Bounded(manager)
            if settings.read_only():  # what came before the first page
                for session in list(manager.file_storage):
                    manager.remove_session_files(session)


class _Bounded:
    """A file manager's ``add_file``, which refuses or makes room first."""

    def __init__(self, manager: Any) -> None:
        self._manager, self._add = manager, manager.add_file
        self._lock = threading.Lock()

    def __call__(self, session_id: str, file: Any) -> None:
        # Streamlit answers with it; anything else would be an error of the server.
        from starlette.exceptions import HTTPException

        if settings.read_only():
            raise HTTPException(403, settings.READ_ONLY)
        with self._lock:
            files = self._manager.file_storage
            own = [each for each in files.get(session_id, {}) if each != file.file_id]
            for old in own[: max(len(own) + 1 - OF_ONE, 0)]:
                self._manager.remove_file(session_id, old)
            kept = (each for session in list(files.values()) for each in list(session.values()))
            if sum(len(each.data) for each in kept) + len(file.data) > settings.uploads():
                raise HTTPException(507, "The server holds as many files as it takes; try later")
            self._add(session_id, file)
