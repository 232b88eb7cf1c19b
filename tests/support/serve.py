"""``streamlit``, whose jobs are forked from a warm process (see ``warm``)."""

from __future__ import annotations

from streamlit.web.cli import main

from tests.support import warm

if __name__ == "__main__":
    warm.install()
    main(prog_name="streamlit")
