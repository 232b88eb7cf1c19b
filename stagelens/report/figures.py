"""Figures kept in files: what is drawn of them, what they hold, and how much room they take.

Anybody may have written a file, so a figure is drawn only if it asks nothing of the network: its
kinds of traces are known, and its pictures are part of it.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stagelens.charts.arrays import values_of
from stagelens.charts.style import Chart
from stagelens.charts.svg.drawing import as_svg
from stagelens.charts.svg.writing import Undrawable
from stagelens.contracts import RunError

from .finding import Rows

TRACES = frozenset(
    ("bar", "box", "contour", "heatmap", "histogram", "image", "scatter", "scattergl", "violin")
)
"""Kinds of traces that need nothing but their data; maps would fetch tiles and shapes."""

MOST_MARKS = 1_500
"""Most marks of one trace in a report; of more, an even selection is drawn, and it says so."""

_LARGEST_UNPACKED = 2_000_000
"""Most characters of a figure before it is packed: what a browser still draws at once."""
_TOO_LARGE = "The picture is too large for a report; its rows are in the JSON"
_UNTOLD = "what a pointer reads at each mark is left out for room"
_MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
_FEW_MARKS = 300
_WIDTHS = {"in-wide": 700, "in-narrow": 388}
"""Where a picture is shown, and how wide it is drawn: the column of a page, and a phone's."""
_DIGITS = 4
"""Significant digits of thinned marks' places: a thousandth of an axis cannot be seen."""

_PICTURES = ("source", "sourcesrc")
_TAG = re.compile(r"<[^>]*>")


def kept(chart: Chart) -> tuple[dict[str, Any], Rows]:
    """What a finding keeps of a chart: its figure as plotly's JSON, and its rows."""
    # Our own charts need no validation here; what comes from a file passes check_figure().
    figure: dict[str, Any] = json.loads(chart.figure.to_json(validate=False))
    return figure, Rows.of(drawn_rows(figure) if chart.rows is None else chart.rows)


def check_figure(figure: Mapping[str, Any], path: Path) -> None:
    """Check that a figure can be drawn without asking anything of the network.

    Raises:
        RunError: It cannot be; names the file.
    """
    traces = figure.get("data")
    if not isinstance(traces, list) or not isinstance(figure.get("layout"), dict):
        raise RunError(f"{path}: figure: it has no data or no layout")
    for trace in traces:
        kind = trace.get("type", "scatter") if isinstance(trace, dict) else None
        if kind not in TRACES:
            raise RunError(f"{path}: figure: a trace is of the kind {kind!r}, which is not drawn")
    for value in _pictures(figure):
        if not (isinstance(value, str) and value.startswith("data:image/")):
            raise RunError(f"{path}: figure: a picture in it lies elsewhere, and is not fetched")


def _pictures(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key in _PICTURES and each is not None:
                yield each
            else:
                yield from _pictures(each)
    elif isinstance(value, list):
        for each in value:
            if isinstance(each, Mapping | list):
                yield from _pictures(each)


# ------------------------------------------------------------------------------------- values


def drawn_rows(figure: Mapping[str, Any]) -> pd.DataFrame:
    """What a figure is drawn from, one row per mark, for charts that come without rows.

    Args:
        figure: As plotly's JSON.

    Returns:
        ``trace``, ``x``, ``y``, ``z`` of heatmaps, and ``said``: the text under the pointer.
    """
    parts = []
    for trace in figure["data"]:
        x, y, z = (values_of(trace.get(axis)) for axis in ("x", "y", "z"))
        said = values_of(trace.get("customdata"))
        if z and isinstance(z[0], list):
            # Plotly numbers rows and columns where a heatmap has no axis values of its own.
            across = x or list(range(len(z[0])))
            down = y or list(range(len(z)))
            told = said if said and isinstance(said[0], list) else [[None] * len(r) for r in z]
            part = [
                (trace.get("name"), a, d, value, words)
                for d, row, line in zip(down, z, told, strict=False)
                for a, value, words in zip(across, row, line, strict=False)
            ]
        else:
            count = max(len(x), len(y))
            # One text for the whole trace says nothing about its single marks.
            told = said if len(said) == count else [None] * count
            x, y = x or list(range(count)), y or list(range(count))
            part = [
                (trace.get("name"), a, b, None, words)
                for a, b, words in zip(x, y, told, strict=False)
            ]
        parts += part
    rows = pd.DataFrame(parts, columns=["trace", "x", "y", "z", "said"])
    rows["said"] = [_bare(words) for words in rows["said"]]
    return rows.dropna(axis="columns", how="all")


def _bare(words: object) -> str | None:
    """The text under the pointer, without plotly's markup."""
    if not isinstance(words, str):
        return None
    return html.unescape(_TAG.sub("", words.replace("<br>", "; ")))


# ---------------------------------------------------------------------------------- for a report


def packed(text: str) -> str:
    """Text as a page holds it: compressed by gzip, in base64, so safe between script tags."""
    # No time of day in it, so that the same figure is the same text.
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def fitted(figure: Mapping[str, Any], room: int) -> tuple[str | None, str]:
    """A figure as a report draws it: without WebGL, and within its room.

    Args:
        figure: As plotly's JSON.
        room: Bytes that it may take when packed.

    Returns:
        The packed JSON, None if it does not fit; and what was left out, empty if nothing was.
    """
    traces, said = _thinned(figure, MOST_MARKS)
    for trace in traces:
        # WebGL traces compile scripts while they run, which the page's security policy forbids.
        if trace.get("type") == "scattergl":
            trace["type"] = "scatter"
    small = {"data": traces, "layout": figure["layout"]}
    whole = _json(small)
    if len(whole) > _LARGEST_UNPACKED:
        return None, _TOO_LARGE
    text = packed(whole)
    # What only a pointer shows goes first.
    if len(text) > room:
        for trace in traces:
            for name in ("customdata", "hovertemplate", "hovertext"):
                trace.pop(name, None)
            trace["hoverinfo"] = "skip"
        text = packed(_json(small))
        said.append(_UNTOLD)
    if len(text) > room:
        return None, _TOO_LARGE
    return text, _sentence(said)


def drawn(
    figure: Mapping[str, Any], name: str, title: str, said: str, room: int
) -> tuple[str | None, str]:
    """A figure as pictures that need no script: one for wide windows and paper, one for narrow.

    Args:
        figure: As plotly's JSON.
        name: No other of the page has it.
        title: What it shows.
        said: Its takeaway.
        room: Bytes that both may take.

    Returns:
        Both, None if they do not fit or cannot be drawn; and what was left out, or why there is no
        picture, empty if all is there.
    """
    left_out: list[str] = []
    for most, told in ((MOST_MARKS, True), (MOST_MARKS, False), (_FEW_MARKS, False)):
        traces, left_out = _thinned(figure, most)
        small = {"data": traces, "layout": figure["layout"]}
        try:
            text = "".join(
                _in_window(which, as_svg(small, width, f"{name}{which}", title, said, told))
                for which, width in _WIDTHS.items()
            )
        except Undrawable as error:
            why = f"{error} is drawn in interactive reports only; its numbers are in the table"
            return None, why[:1].upper() + why[1:]
        except _MALFORMED:  # a file that somebody wrote, of which plotly would draw a part
            return (
                None,
                "The figure is not as plotly writes it; its numbers are in the table",
            )
        if len(text.encode()) <= room:
            return text, _sentence(left_out if told else [*left_out, _UNTOLD])
    return None, _TOO_LARGE


def _in_window(which: str, svg: str) -> str:
    return f'<div class="{which}">{svg}</div>'


def _sentence(said: Sequence[str]) -> str:
    told = "; ".join(said)
    return told[:1].upper() + told[1:]


def _thinned(figure: Mapping[str, Any], most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The traces with at most so many marks each, and what is left out."""
    said = []
    traces = [dict(trace) for trace in figure["data"]]
    for trace in traces:
        count = max(len(values_of(trace.get("x"))), len(values_of(trace.get("y"))))
        if trace.get("mode") == "markers" and count > most:
            _thin(trace, count, most)
            name = f" of {trace['name']}" if trace.get("name") else ""
            said.append(f"{most:,} of {count:,} marks{name} are drawn")
    return traces, said


def _thin(trace: dict[str, Any], count: int, most: int) -> None:
    """Keep evenly spread marks of a trace, in every array that has one value per mark."""
    kept = np.linspace(0, count - 1, most).round().astype(int).tolist()

    def of(value: Any) -> Any:
        # Sizes, colours and symbols of single marks are arrays in nested objects.
        if isinstance(value, dict) and "bdata" not in value:
            return {key: of(each) for key, each in value.items()}
        values = values_of(value)
        return [values[at] for at in kept] if len(values) == count else value

    for key in list(trace):
        trace[key] = of(trace[key])
    for axis in ("x", "y"):
        if isinstance(trace.get(axis), list):
            trace[axis] = [
                float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
                for value in trace[axis]
            ]


def _json(figure: Mapping[str, Any]) -> str:
    # allow_nan=False: JSON.parse in the browser would stop at a NaN.
    return json.dumps(figure, separators=(",", ":"), allow_nan=False)
