"""Streamlit's command line, with what pages import read before anybody asks for one.

The first page of a fresh server would wait for pandas, plotly and the pages' own modules: two
seconds of the processor. A thread imports them as soon as the server listens.
"""

from __future__ import annotations

import ast
import sys
import threading
import time
from pathlib import Path

from streamlit import runtime
from streamlit.runtime.runtime import RuntimeState
from streamlit.web import cli

_EVERY = 0.05


def warm_up(script: Path) -> threading.Thread:
    """Import what the main page and its neighbours import, in a thread.

    Args:
        script: The main page, beside which lies the folder of the others.
    """
    thread = threading.Thread(target=_import, args=(script,), name="stagelens-warm-up", daemon=True)
    thread.start()
    return thread


def _import(script: Path) -> None:
    # Modules of pages make caches and components, which belong to a running server; and they would
    # hold up its start.
    while not (runtime.exists() and runtime.get_instance().state != RuntimeState.INITIAL):
        time.sleep(_EVERY)
    for page in (script, *sorted((script.parent / "pages").glob("*.py"))):
        tree = ast.parse(page.read_text(encoding="utf-8"))
        tree.body = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
        exec(compile(tree, str(page), "exec"), {})


def main() -> None:
    """``python -m stagelens.ui.server.starting run SCRIPT ...``: as ``streamlit run``."""
    warm_up(Path(sys.argv[2]))
    cli.main(prog_name="streamlit")


if __name__ == "__main__":
    main()
