"""A client of the dashboard without a browser: it speaks Streamlit's own protocol on a websocket.

A :class:`Client` keeps what a browser would show, finds controls by their label, moves them, and
waits until the server has nothing left to do for it. Ten of them cost less than one Chromium.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from html import unescape
from typing import Any

import pandas as pd
import pyarrow as pa
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Delta_pb2 import Delta
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import connect

PATIENCE = 120.0
"""Seconds that one answer may take."""

_QUIET = 0.4
"""Seconds without a new run, after which several moves in a row have been answered."""

_LATE = 10.0
"""Seconds after which none of these answers is waited for any more."""

_DONE = (
    ForwardMsg.FINISHED_SUCCESSFULLY,
    ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY,
)
_SET = {
    "selectbox": "string_value",
    "text_input": "string_value",
    "slider": "double_array_value",
    "pagination": "int_value",
}
"""How the state of a control is called in the protocol."""


class Client:
    """One person's page.

    Args:
        url: Of the server.
        page: Name of the page as in its address; empty for the first.
        query: The rest of the address.
    """

    def __init__(self, url: str, page: str, query: str) -> None:
        self._open = ExitStack()
        self._socket = self._open.enter_context(
            connect(url.replace("http", "ws", 1) + "/_stcore/stream", max_size=None, proxy=None)
        )
        self._page, self._query, self._page_hash = page, query, ""
        self._shown: dict[tuple[int, ...], Delta] = {}
        self._states: dict[str, WidgetState] = {}
        self._send()
        self.wait()

    def close(self) -> None:
        """Leave the page."""
        self._open.close()

    # -------------------------------------------------------------------------- what is shown

    def elements(self, kind: str) -> Iterator[tuple[Any, Delta]]:
        """Elements of a kind (``selectbox``, ``html``) in the order of the page."""
        for _, delta in sorted(self._shown.items()):
            is_element = delta.WhichOneof("type") == "new_element"
            if is_element and delta.new_element.WhichOneof("type") == kind:
                yield getattr(delta.new_element, kind), delta

    @property
    def words(self) -> str:
        """What the page's own pieces of text say, one a line."""
        lines = [re.sub(r"<[^>]*>", " ", element.body) for element, _ in self.elements("html")]
        lines += [element.body.replace("\\", "") for element, _ in self.elements("heading")]
        return "\n".join(re.sub(r"\s+", " ", unescape(line)).strip() for line in lines)

    @property
    def table(self) -> pd.DataFrame:
        """The first table of the page."""
        element, _ = next(self.elements("dataframe"))
        return pa.ipc.open_stream(element.arrow_data.data).read_pandas()

    @property
    def problems(self) -> list[str]:
        """Exceptions that the page shows."""
        return [element.message for element, _ in self.elements("exception")]

    # -------------------------------------------------------------------------------- moves

    def put(self, kind: str, label: str, *values: Any) -> float:
        """Move a control through some values, without waiting in between; seconds until answered.

        Args:
            kind: Of the control: ``selectbox``, ``slider`` or ``pagination``.
            label: Of the control; a pagination has none.
            values: One after the other; the last stays.
        """
        element, delta = self._find(kind, label)
        for value in values:
            state = WidgetState(id=element.id)
            if kind == "slider":
                state.double_array_value.data.append(value)
            elif value is not None:
                setattr(state, _SET[kind], value)
            self._states[element.id] = state
            self._send(delta.fragment_id)
        return self.wait(quiet=len(values) > 1)

    def press(self, label: str) -> float:
        """Press a button; seconds until answered."""
        element, delta = self._find("button", label)
        self._send(delta.fragment_id, WidgetState(id=element.id, trigger_value=True))
        return self.wait()

    def _find(self, kind: str, label: str) -> tuple[Any, Delta]:
        for element, delta in self.elements(kind):
            if kind == "pagination" or element.label == label:
                return element, delta
        raise LookupError(f"the page has no {kind} {label!r}")

    def _send(self, fragment: str = "", trigger: WidgetState | None = None) -> None:
        message = BackMsg()
        asked = message.rerun_script
        asked.query_string, asked.page_script_hash = self._query, self._page_hash
        asked.fragment_id = fragment
        if not self._page_hash:
            asked.page_name = self._page
        states = [*self._states.values(), *([] if trigger is None else [trigger])]
        asked.widget_states.widgets.extend(states)
        self._sent = time.perf_counter()
        self._socket.send(message.SerializeToString())

    def late(self) -> float:
        """Until another answer to the last moves has come; 0 where none comes any more."""
        try:
            return self.wait(quiet=True, patience=_LATE)
        except TimeoutError:
            return 0.0

    def wait(self, quiet: bool = False, patience: float = PATIENCE) -> float:
        """Until the server has answered; seconds since the last move."""
        answered, deadline = 0.0, time.perf_counter() + patience
        while True:
            left = deadline - time.perf_counter()
            try:
                data = self._socket.recv(timeout=_QUIET if answered else max(left, 0.0))
            except TimeoutError:
                if answered:
                    return answered
                raise
            assert isinstance(data, bytes)
            message = ForwardMsg.FromString(data)
            self._take(message)
            kind = message.WhichOneof("type")
            if kind == "new_session":
                answered, deadline = 0.0, time.perf_counter() + PATIENCE
            elif kind == "script_finished" and message.script_finished in _DONE:
                answered = time.perf_counter() - self._sent
                if not quiet:
                    return answered

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._fragments = set(message.metadata.run.fragment_ids)
            self._fresh: set[tuple[int, ...]] = set()
        elif kind == "navigation":
            self._page_hash = message.navigation.page_script_hash
        elif kind == "delta":
            path = tuple(message.metadata.delta_path)
            self._shown[path] = message.delta
            self._fresh.add(path)
        elif kind == "page_info_changed":
            self._query = message.page_info_changed.query_string
        elif kind == "script_finished" and message.script_finished in _DONE:
            stale = {
                path
                for path, delta in self._shown.items()
                if path not in self._fresh
                and (not self._fragments or delta.fragment_id in self._fragments)
            }
            for path in stale:
                del self._shown[path]
