"""Pieces that every page is made of: frame, badges, sentences, jobs, empty and error states."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler
from streamlit.delta_generator import DeltaGenerator

from stagelens.charts import EITHER_STYLE, Chart, Markup
from stagelens.charts.style import color_of, see_through
from stagelens.compute.bounded import NoAnswer, no_panic
from stagelens.contracts import StageLensError
from stagelens.ui.server import interrupted_jobs, settings, signing_in, uploads
from stagelens.wording.sentences import Sentence
from stagelens.wording.trust_words import trust_word

from . import glossary, links, pinning, state
from .escaping import plain, shown
from .pinning import About
from .trust_marks import trust_html

# Named here, because Streamlit's own navigation would call the first page app.
PAGES = (
    ("app.py", "Overview", ":material/insights:"),
    ("pages/1_Examples.py", "Examples", ":material/grid_view:"),
    ("pages/2_Spurious_features.py", "Spurious features", ":material/troubleshoot:"),
    ("pages/3_Remove_a_stage.py", "Remove a stage", ":material/content_cut:"),
    ("pages/4_Trust.py", "Trust", ":material/verified:"),
    ("pages/6_Regression_gate.py", "Regression gate", ":material/rule:"),
    ("pages/5_Report.py", "Report", ":material/description:"),
)

EXAMPLES, FEATURES = PAGES[1][0], PAGES[2][0]
_GOING = state.session_key("going")
"""The page that is turned to in the next run, and what it shall show."""
_SIDEBAR = 264
_FITTING = 3
"""Columns of a table that a narrow window has room for."""
_STYLE = (
    '<style>[data-testid="stTab"][data-selected],'
    '[data-testid="stButtonGroup"] button[data-selected]'
    ",[data-testid='stSliderThumbValue'],[data-testid='stSliderThumbValue'] *"
    "{color:inherit!important}"
    '[data-testid="stCaptionContainer"]{color:inherit!important;opacity:.8}'
    '[data-testid="stHeading"] :is(h1,h2,h3){overflow:hidden;overflow-wrap:anywhere}'
    ".sl-text{overflow-wrap:anywhere;overflow:hidden;margin:0}.sl-muted{opacity:.75;font-size:.9em}"
    ':is([data-testid="stFileUploaderDropzoneInstructions"],[data-testid="stMetricLabel"],'
    ".stMarkdownBadge,.st-key-draw-on button) *{white-space:normal;overflow:visible}"
    ".stMarkdownBadge{white-space:normal!important}"
    ':is([data-testid="stPageLink"] a,[data-testid="stElementToolbarButton"] button):focus-visible'
    "{outline:2px solid currentColor;outline-offset:1px}"
    '[class*="st-key-finding-"] h2{font-size:1.25rem}</style>'
)
"""The accent is dark enough for white text on it, which makes it illegible as text on the dark
background: what is selected, and a slider's value, keep the page's own colour and are marked by an
edge. Captions are as pale as can still be read (4.5:1). No heading is wider than its column."""


def start_page(title: str) -> None:
    """Page configuration and navigation; the first call of every page."""
    uploads.guard()
    st.set_page_config(
        page_title=f"{title} - StageLens",
        # An emoji, since a :material/: icon of a page is fetched from outside.
        page_icon="🔍",
        layout="wide",
        initial_sidebar_state=_SIDEBAR,
    )
    st.html(EITHER_STYLE + _STYLE + pinning.STYLE + links.STYLE)
    links.follow()
    # Before anything of a run is read; it stops the page for people who have not signed in.
    signing_in.gate()
    state.begin()
    _turn(title)
    state.arrive(title)
    with st.sidebar:
        st.html("<div style='font-size:1.25rem;font-weight:600'>StageLens</div>")
        for path, label, icon in PAGES:
            st.page_link(path, label=label, icon=icon, width="stretch", query_params=here())
        glossary.link()
        signing_in.way_out()
        if settings.read_only():
            st.caption(f":material/lock: {settings.READ_ONLY}")
    _left_over()


def here(**more: str) -> dict[str, str] | None:
    """Query parameters of a link to a page of the open run: all that is chosen, but for changes.

    Where there are changes, but no example among them, a link opens a list, and closes the example.
    """
    reference = state.reference()
    if not reference:
        return more or None
    closed = {state.EXAMPLE: ""} if more and state.opened() else {}
    return {state.RUN: reference, **state.kept(), **closed, **more}


def go(page: str, **changes: str) -> None:
    """Turn to a page, as a link with these changes would."""
    # In a run of its own: a fragment may not turn to another page.
    st.session_state[_GOING] = page, here(**changes) or {}
    st.rerun()


def _turn(title: str) -> None:
    """Go on to where the last run was to end, from the page with this title."""
    page, query = st.session_state.pop(_GOING, (None, {}))
    if (page, title) in [each[:2] for each in PAGES]:
        # Streamlit lets nobody set a parameter that belongs to a control of the same page.
        state.take_along(query)
    elif page is not None:
        st.switch_page(page, query_params=query)


def address(page: str, **more: str) -> str:
    """The same as the address of a page, for links that are markup or cells of a table."""
    # Relative, so that it also works where the dashboard is served below a path.
    return f"{page}?{urlencode(here(**more) or {}, quote_via=quote)}"


def run_in_sidebar(name: str) -> None:
    """The open run's name, and the way to another one."""
    with st.sidebar:
        st.divider()
        st.caption("Run")
        st.html(f"<div style='font-weight:600;overflow-wrap:anywhere'>{html.escape(name)}</div>")
        st.button(
            "Open another run",
            icon=":material/folder_open:",
            on_click=state.open_reference,
            args=(None,),
            width="stretch",
        )


def show(
    chart: Chart,
    key: str,
    about: About | None = None,
    opens: Callable[[str], Mapping[str, str]] | None = None,
) -> None:
    """A chart, as wide as its container, with its takeaway as alternative text.

    It can be pinned to findings as it is. Where the page's estimate, its trust or its filters are
    not those of the chart, ``about`` gives the chart's own; ``chart.rows`` are its numbers in
    exports.

    Args:
        chart: What to draw.
        key: Unique among the charts and tables of the page.
        about: What the chart shows, where the page alone does not say.
        opens: From the id of a point or a bar to what the Examples page shows at a click on it, as
            query parameters; None where a click opens nothing.
    """
    opened = state.session_key(f"opened-{key}")

    def clicked() -> None:
        for point in st.session_state[key]["selection"]["points"][:1]:
            ids = chart.figure.data[point["curve_number"]].ids
            if ids is not None:  # a line that is drawn beside the points stands for no example
                st.session_state[opened] = str(ids[point["point_index"]])

    on_select: dict[str, Any] = {"on_select": clicked, "selection_mode": "points"}
    with pinning.pinnable(key, chart, chart.alt, about):
        st.plotly_chart(
            chart.figure,
            # The figures set all colours themselves, for light and dark at once.
            theme=None,
            key=key,
            alt=chart.alt,
            config={"displayModeBar": False},
            **(on_select if opens is not None else {}),
        )
    picked = st.session_state.pop(opened, None)
    if picked is not None and opens is not None:
        # Not in the callback, where no other page can be turned to.
        go(EXAMPLES, **opens(picked))


def drawn(markup: Markup, key: str, chart: Callable[[], Chart], about: About | None = None) -> None:
    """A chart as markup, which costs the browser less; what is pinned is the chart.

    Args:
        markup: What to show.
        key: Unique among the charts and tables of the page.
        chart: Makes the chart.
        about: What it shows, where the page alone does not say.
    """
    with pinning.pinnable(key, chart, markup.alt, about):
        st.html(markup.html)


def heading_html(text: str) -> str:
    """A third-level heading in markup; looks like Streamlit's own."""
    return (
        "<h3 style='font-size:1.25rem;font-weight:600;margin:0;padding:.5rem 0;"
        f"overflow-wrap:anywhere'>{shown(text)}</h3>"
    )


def table(
    frame: pd.DataFrame,
    key: str,
    alt: str,
    about: About | None = None,
    kept: pd.DataFrame | None = None,
    tints: Mapping[str, Sequence[float]] | None = None,
    **options: Any,
) -> None:
    """A table that can be pinned to findings: call this instead of ``st.dataframe``.

    Args:
        frame: Its rows, as they are shown and pinned.
        key: Unique among the charts and tables of the page.
        alt: What the table says, units included, in a sentence.
        about: What it shows, where the page alone does not say.
        kept: The rows to pin, where those on the page hold links, for instance.
        tints: Column to a gain for each row, from -1 to 1: cells that say ▲ or ▼ get the blue of
            credit or the orange of blame as their background, the stronger the larger it is. NaN
            is neither.
        options: Passed to ``st.dataframe``, ``column_config`` for instance.
    """
    frame = _one_kind(frame)
    config = options.get("column_config") or {}
    if len(frame.columns) > _FITTING:
        # What a row is about stays where the others scroll.
        first = str(frame.columns[0])
        own = config.get(first) or {}
        told = {"label": own} if isinstance(own, str) else own
        options["column_config"] = {**config, first: {**told, "pinned": True}}
    with pinning.pinnable(key, frame if kept is None else kept, alt, about, config):
        shown = frame if tints is None else _tinted(frame, tints, config)
        st.dataframe(shown, key=key, alt=alt, **{"hide_index": True, **options})


def _tinted(
    frame: pd.DataFrame, tints: Mapping[str, Sequence[float]], config: Mapping[str, Any]
) -> Styler:
    """The table with its backgrounds."""
    kinds = {
        name: (own.get("type_config") or {}).get("type")
        for name, own in config.items()
        if name in frame and isinstance(own, dict)
    }
    pictures = [name for name, kind in kinds.items() if kind == "image"]
    # Of a styled table every cell is sent twice, as it is and as it is printed: pictures are drawn
    # from the first, and are most of such a table.
    return frame.style.apply(_backgrounds, None, gains=tints).format(lambda _: "", subset=pictures)


def _backgrounds(frame: pd.DataFrame, gains: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The style of every cell of a table."""
    styles = pd.DataFrame("", index=frame.index, columns=frame.columns)
    for name, of_rows in gains.items():
        styles[name] = [
            f"background-color: {see_through(color_of(gain), tint(gain))}"
            # Neither where it is noise, nor where its sign is not known: the mark says which.
            if str(cell)[:1] in ("▲", "▼") and gain == gain
            else ""
            for cell, gain in zip(frame[name], of_rows, strict=True)
        ]
    return styles


def tint(gain: float) -> float:
    """How strong a background is: seen when small, and text on the largest has a contrast of 5."""
    return 0.06 + 0.3 * min(abs(gain), 1.0) ** 0.5


def _one_kind(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with columns of text and numbers as text: Arrow keeps one kind in a column."""
    for name in (each for each in frame if pd.api.types.is_object_dtype(frame[each])):
        texts = frame[name].map(lambda cell: isinstance(cell, str))
        if texts.any() and not texts[frame[name].notna()].all():
            frame = frame.assign(**{name: frame[name].map(str, na_action="ignore")})
    return frame


def sentence_html(sentence: Sentence, brief: bool = False) -> str:
    """A sentence with its stage, group and amount emphasised; everything from data escaped.

    Args:
        sentence: What to say.
        brief: Print the word of the trust without its figures.
    """
    weight = {"plain": "", "stage": "i", "group": "b", "amount": "b"}
    words = []
    for part in sentence.parts:
        if part.kind == "seal" and sentence.trust is not None:
            words.append(trust_html(sentence.trust, sentence.behaviour, seal=part.text))
            continue
        tag = weight[part.kind]
        # Names may be written from right to left; isolated, they do not turn the words around them.
        text = shown(part.text) if part.kind == "plain" else f"<bdi>{shown(part.text)}</bdi>"
        words.append(f"<{tag}>{text}</{tag}>" if tag else text)
    if sentence.trust is not None and not sentence.is_sealed:
        known, behaviour = sentence.trust, sentence.behaviour
        named = known.estimator == "replay" or trust_word(known, behaviour) != "exact"
        by = f", by {known.estimator}" if named else ""
        words.append(f" {trust_html(known, behaviour, brief, by)}")
    return "".join(words)


def sentences(items: Sequence[Sentence], size: str = "1rem", brief: bool = False) -> None:
    """Sentences one under the other."""
    st.html(sentences_html(items, size, brief))


def sentences_html(items: Sequence[Sentence], size: str = "1rem", brief: bool = False) -> str:
    """Sentences one under the other, as markup."""
    lines = "".join(f"<div>{sentence_html(item, brief)}</div>" for item in items)
    return (
        f"<div style='font-size:{size};line-height:1.5;display:flex;flex-direction:column;"
        "overflow:hidden;overflow-wrap:anywhere;"
        f"gap:.4em'>{lines}</div>"
    )


def text_block(text: str, muted: bool = False) -> None:
    """Words from a data set or a run folder, never read as markup."""
    st.html(text_html(text, muted))


def aside() -> DeltaGenerator:
    """A row for a lesser button and what it costs, below each other in narrow windows."""
    return st.container(horizontal=True, vertical_alignment="center", gap="small")


def text_html(text: str, muted: bool = False) -> str:
    """Words from a data set or a run folder as markup, in which they are shown as they are."""
    return f"<p class='sl-text{' sl-muted' if muted else ''}'>{shown(text)}</p>"


@contextmanager
def errors_told() -> Iterator[None]:
    """Show an error within the block in words, in place of what could not be shown."""
    try:
        # A panic would end the page's thread, and the page would seem to run for ever.
        with no_panic():
            yield
    except StageLensError as error:
        error_state(str(error))
    except NoAnswer as error:
        error_state(f"a library {error}; the server's log says more")


def error_state(message: str) -> None:
    """Something that the user can put right; the message says how."""
    st.error(plain(message), icon=":material/error:")


# ---------------------------------------------------------------------------------------- jobs


def only_shown() -> bool:
    """Whether nothing can be computed in the background here; says so in place of a job."""
    if settings.read_only():
        st.info(settings.READ_ONLY, icon=":material/lock:")
    return settings.read_only()


def _left_over() -> None:
    """What was cut short when the last server ended; shown until it is dismissed."""
    for number, left in enumerate(interrupted_jobs.found()):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning(
                f"The server stopped while this was running: {plain(left.title)}. What was "
                "finished is kept; its page lets you start the rest again.",
                icon=":material/restart_alt:",
            )
            st.button("Dismiss", key=f"left-{number}", on_click=left.dismiss)
