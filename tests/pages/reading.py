"""What a page shows, in words."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pandas as pd
from streamlit.testing.v1 import AppTest


def words(app: AppTest) -> str:
    """All text of a page outside of widgets, without markup."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "text", "info", "warning")
    parts = [str(e.value) for kind in (*kinds, "error") for e in getattr(app, kind)]
    parts += [e.proto.body for e in app.get("html")]
    bare = re.sub(r"<style>.*?</style>|<[^>]+>", " ", "\n".join(parts).replace("\\", ""))
    return re.sub(r"[ \t]+", " ", html.unescape(bare)).replace(" ,", ",").replace(" .", ".")


def figures(app: AppTest) -> list[dict[str, Any]]:
    """Every chart's data, with its alternative text as ``alt``."""
    return [{**json.loads(e.proto.spec), "alt": e.proto.alt} for e in app.get("plotly_chart")]


def drawn(app: AppTest) -> list[str]:
    """The alternative text of everything that is drawn as markup."""
    bodies = "".join(e.proto.body for e in app.get("html"))
    found = re.findall(r"role='figure' aria-label='([^']*)'", bodies)
    return [html.unescape(said) for said in found]


def boards(app: AppTest) -> list[dict[str, Any]]:
    """What the components are given that people see; the one that follows links shows nothing."""
    found = [each.proto for each in app.get("bidi_component")]
    return [json.loads(each.json) for each in found if "links" not in each.component_name]


def table(app: AppTest) -> pd.DataFrame:
    """The first table."""
    return app.dataframe[0].value


def labels(app: AppTest) -> set[str]:
    """Labels of all controls."""
    kinds = ("selectbox", "text_input", "slider", "toggle", "button")
    return {e.label for kind in kinds for e in getattr(app, kind)}


def check(app: AppTest) -> AppTest:
    """The same page, where it shows no exception."""
    assert [e.message for e in app.exception] == []
    return app
