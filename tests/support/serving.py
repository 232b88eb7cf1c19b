"""``streamlit``, for the browser tests: what it starts is forked from a warm process."""

from __future__ import annotations

import os
import socket
import sys

from tests.support import warm

if __name__ == "__main__":
    inherited = os.environ.pop(warm.INHERITED, None)
    if inherited is not None:
        warm.adopt(socket.socket(fileno=int(inherited)))
        warm.install()
    from streamlit.web.cli import main

    sys.argv[0] = "streamlit"
    main(prog_name="streamlit")
