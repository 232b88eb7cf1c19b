"""Pin to findings: the small button beside every chart and table, and its dialog.

A page's frame calls :func:`enter` with what the page shows; ``components.show`` and
``components.table`` draw the button. Until somebody presses it, nothing is computed or written:
what is kept (figure, rows, trust, filters, the link back) is put together when *Pin* is pressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pandas as pd
import streamlit as st

from stagelens.charts import Chart
from stagelens.charts.style import short
from stagelens.contracts import StageLensError
from stagelens.estimators.stage_trust import StageTrust
from stagelens.report.figures import kept
from stagelens.report.finding import LONGEST_NOTE, FindingView, Rows, Seen
from stagelens.report.store import FindingStore, new_id
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Source
from stagelens.ui.server import settings
from stagelens.wording.sentences import Sentence

from . import state
from .escaping import plain, shown
from .folding import OPEN

STYLE = (
    '<style>[class*="st-key-pinnable-"]{position:relative}'
    '[class*="st-key-pin-to-"]{position:absolute;top:0;right:-1rem;z-index:2;width:1rem!important}'
    '[class*="st-key-pin-to-"] button{opacity:.55;min-height:1.6rem;min-width:0;width:1rem;'
    "padding:0;position:relative}"
    '[class*="st-key-pin-to-"] button *{gap:0}'
    '[class*="st-key-pin-to-"] button:is(:hover,:focus-visible){opacity:1}'
    '[class*="st-key-pin-to-"] button p{position:absolute;left:0;width:1px;height:1px;'
    "overflow:hidden;clip-path:inset(50%);white-space:nowrap}</style>"
)
"""The button lies beside the right edge of what it pins, in the margin of the page or card, and
takes no room; its words are for people who do not see its icon."""

_SCENE = state.session_key("scene")
_DRAFT = state.session_key("pinning")
_PINNED = state.session_key("pinned")

_WHERE = (
    *(state.RUN, state.PAGE, "set", "estimator", "estimate", "measure", "behaviour", "trusted"),
    *(state.VIEW, state.PART, "credit", state.OFF, state.WALL, state.LEAF, "other-leaf"),
)
"""Query parameters that say what is looked at; all others are filters."""

_FILTERS = {
    "by": "groups by",
    "answers": "final answer",
    "side": "credit or blame",
    "changed": "answer changes without the stage",
    "strength": "strength of effect",
    "q": "search",
    "sort": "sorted by",
    "left-out": "without",
    "together": "taken as one",
    "t-q": "search in training data",
    "t-label": "label in training",
    "t-doubt": "label doubted by",
    "t-else": "also",
    "t-side": "helped or hurt",
    "t-column": "column",
    "t-sort": "training data by",
    "t-by": "training data grouped by",
    "trained": "training example",
    "next-target": "target of the choice",
    "next-behaviour": "to become better",
    "next-keep": "kept",
    "next-draws": "draws of the proof",
    "next-distinct": "one of those alike",
}
"""Query parameter to its name for people, where these differ."""


Content: TypeAlias = Chart | pd.DataFrame | Callable[[], Chart] | None
"""What can be pinned, or a function that makes it then; None for sentences alone."""


@dataclass(frozen=True)
class Scene:
    """What a page shows.

    Attributes:
        title: Of the page.
        at: The run folder.
        set_name: The evaluation set.
        noun: What an example is called.
        estimate: Whose effects are shown; None where the page shows no single one.
    """

    title: str
    at: Source
    set_name: str
    noun: str
    estimate: str | None


@dataclass(frozen=True)
class About:
    """What a chart or table shows, where the page alone does not say.

    Attributes:
        title: In a few words; by default the beginning of its takeaway.
        behaviour: What was measured.
        sentences: Stage effects in the sentence form; made when somebody pins.
        observed: The models that all of it was measured on, where nothing is estimated.
        estimator: By which estimates; by default the page's.
        trust: What is known of the counterfactuals that are shown; by default that of the page's.
        trust_of: The behaviour that each of these is about, where they are about several.
        filters: What was asked of the examples, by name; by default what the URL says.
        own: Whether it shows an own example, which is in no set.
    """

    title: str = ""
    behaviour: str = ""
    sentences: Callable[[], Sequence[Sentence]] = tuple
    observed: str = ""
    estimator: str | None = None
    trust: Sequence[StageTrust] | None = None
    trust_of: Sequence[str] = ()
    filters: Mapping[str, str] | None = None
    own: bool = False


@dataclass(frozen=True)
class Draft:
    """Something that is about to be pinned, as it was when the button was drawn.

    ``content`` may be a function that makes a chart, where the page shows markup in its place.
    """

    key: str
    scene: Scene
    about: About
    said: str
    content: Content
    config: Mapping[str, Any]
    query: Mapping[str, str]

    @property
    def title(self) -> str:
        """In a few words."""
        said = re.split(r"[.:] ", self.said, maxsplit=1)[0].rstrip(".")
        return short(self.about.title or said, 160)


def enter(scene: Scene) -> None:
    """Say what the page shows; called by its frame before anything is drawn."""
    st.session_state[_SCENE] = scene
    draft = st.session_state.get(_DRAFT)
    # A dialog that was left by turning to another page must not open again there.
    if draft is not None and draft.scene.title != scene.title:
        st.session_state.pop(_DRAFT)
    # Kept over the rerun that closes the dialog, and said only now.
    if (title := st.session_state.pop(_PINNED, None)) is not None:
        st.toast(
            f"Pinned: {plain(title)}. It is now on the Report page.", icon=":material/push_pin:"
        )


@contextmanager
def pinnable(
    key: str,
    content: Content,
    said: str,
    about: About | None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """The place of a chart, a table or sentences, with its button beside it.

    Args:
        key: Of the chart or table; no other on the page has it.
        content: What is pinned, or a function that makes it.
        said: Its takeaway.
        about: What it shows, where the page alone does not say.
        config: The ``column_config`` of a table.
    """
    kind = "table" if isinstance(content, pd.DataFrame) else "chart"
    with st.container(key=f"pinnable-{kind}-{key}"):
        yield
        scene: Scene | None = st.session_state.get(_SCENE)
        if scene is None or settings.read_only():
            return
        query = {name: str(value) for name, value in st.query_params.items()}
        draft = Draft(key, scene, about or About(), said, content, config or {}, query)
        st.button(
            plain(f"Pin to findings: {draft.title}"),
            key=f"pin-to-{key}",
            icon=":material/push_pin:",
            type="tertiary",
            help="Pin to findings: keep this as it is, with a note, for the report.",
            on_click=_begin,
            args=(draft,),
        )
        begun: Draft | None = st.session_state.get(_DRAFT)
        # The draft of the click, not the new one: what was seen is what is pinned.
        if begun is not None and begun.key == key:
            _dialog(begun)


def _begin(draft: Draft) -> None:
    st.session_state[_DRAFT] = draft


def _end() -> None:
    st.session_state.pop(_DRAFT, None)


@st.dialog("Pin to findings", icon=":material/push_pin:", on_dismiss=_end)
def _dialog(draft: Draft) -> None:
    st.html(f"<b style='overflow-wrap:anywhere'>{shown(draft.title)}</b>")
    note = st.text_area(
        "Note",
        key="pin-note",
        max_chars=LONGEST_NOTE,
        placeholder="What it means, or what to do about it",
        help="Shown beside the finding in the report, where you can change it.",
    )
    if st.button("Pin", key="pin-it", type="primary", icon=":material/push_pin:"):
        try:
            FindingStore(loaders.run(draft.scene.at)).pin(_seen(draft), (note or "").strip())
        except StageLensError as error:
            st.error(plain(str(error)), icon=":material/error:")
            return
        st.session_state[_PINNED] = draft.title
        _end()
        st.rerun()


def _seen(draft: Draft) -> Seen:
    """Everything that a finding keeps, put together."""
    scene, about = draft.scene, draft.about
    run = loaders.run(scene.at)
    # What was measured rests on no estimate, whatever the page shows beside it.
    estimate = None if about.observed else scene.estimate
    digest = loaders.evaluation_set(scene.at, scene.set_name).digest
    trust = about.trust
    if trust is None and estimate is not None:
        found = loaders.effects(scene.at, scene.set_name, estimate)
        known = {} if found is None else found.trust
        trust = [known[stage.name] for stage in run.stages if stage.name in known]
    kind: Literal["chart", "table", "sentences"] = "table"
    if draft.content is None:
        kind, figure, rows = "sentences", None, Rows()
    elif isinstance(draft.content, pd.DataFrame):
        figure, rows = None, _rows(draft.content, draft.config)
    else:
        kind, chart = "chart", draft.content
        figure, rows = kept(chart if isinstance(chart, Chart) else chart())
    return Seen(
        id=new_id(),
        kind=kind,
        title=draft.title,
        said=draft.said,
        sentences=tuple(about.sentences()),
        run_name=run.title,
        run_digest=run.digest,
        set_name="an own example" if about.own else scene.set_name,
        set_digest="" if about.own else digest,
        noun=scene.noun,
        behaviour=about.behaviour,
        estimator=(estimate or "") if about.estimator is None else about.estimator,
        trust=tuple(trust or ()),
        trust_of=tuple(about.trust_of),
        observed=about.observed,
        filters=dict(_filters(draft.query) if about.filters is None else about.filters),
        view=_view(draft),
        figure=figure,
        rows=rows,
    )


def _rows(frame: pd.DataFrame, config: Mapping[str, Any]) -> Rows:
    """The rows of a table under the names, and with the formats, that the page prints."""
    config = {name: own for name, own in config.items() if name in frame and isinstance(own, dict)}
    named = {name: str(own.get("label") or name) for name, own in config.items()}
    if len({*frame.columns} - {*named} | {*named.values()}) < frame.shape[1]:
        named = {}  # two columns would have one name
    formats = {
        named.get(name, name): str((own.get("type_config") or {}).get("format") or "")
        for name, own in config.items()
    }
    # Of formats, those in the manner of printf; Streamlit's named ones mean nothing elsewhere.
    printed = {name: form for name, form in formats.items() if "%" in form}
    return Rows.of(frame.rename(columns=named), printed)


def _filters(query: Mapping[str, str]) -> dict[str, str]:
    # What is folded open is no filter either.
    own = {name: value for name, value in query.items() if not name.startswith(OPEN)}
    return {_FILTERS.get(name, name): value for name, value in own.items() if name not in _WHERE}


def _view(draft: Draft) -> FindingView:
    scene = draft.scene
    # Controls at their default are not in the URL, and another default may be there tomorrow:
    # a set that comes first by name, an estimator that is better.
    query = {"set": scene.set_name, **draft.query}
    if scene.estimate is not None:
        query["estimator"] = scene.estimate
    if scene.at.leaf:
        query[state.LEAF] = scene.at.leaf
    # A finding lies in its run's folder, which another server calls by another name.
    query.pop(state.RUN, None)
    # The file behind a page is named after its title, and its URL after the file.
    page = "" if scene.title == "Overview" else scene.title.replace(" ", "_")
    return FindingView(page=page, title=scene.title, query=query)
