"""The bar on top of every page: leaf, set, behaviour, groups, one group, stage and estimator.

It is drawn by ``open_workspace``, so that it stands at the same place on every page, with the same
choices; all of them are in the URL, and are kept when pages change. What a page does not look at
is shown there too, but cannot be changed on that page, so that nothing jumps; a page that looks at
none of it but the set shows the set alone. A choice that the run, or its set, does not have is
told, and comes back with a set that has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from stagelens.charts.style import short
from stagelens.contracts import SCORE, Behaviour
from stagelens.ui.pieces import components, state

OVERVIEW = "Overview"
"""The page that has the name of its run as its title."""

LEAF = state.LEAF
SET, MEASURE, BY, GROUP, STAGE, ESTIMATOR = state.BAR
"""Keys of the controls, and their names in links."""

_STYLE = (
    "<style>"
    # Streamlit leaves 6 rem for a header that holds one small menu.
    '[data-testid="stMainBlockContainer"]{padding:1rem 3.5rem 5rem}'
    '[data-testid="stHeader"]{background:transparent;pointer-events:none}'
    '[data-testid="stHeader"] :is(button,a,[data-testid="stStatusWidget"]){pointer-events:auto}'
    ".st-key-top{gap:.4rem}"
    '.st-key-heading [data-testid="stHeading"] h1{font-size:1.5rem;padding:0;white-space:nowrap;'
    "text-overflow:ellipsis}"
    ".st-key-heading{padding-right:5rem;flex-wrap:nowrap}"
    ".sl-facts{opacity:.75;font-size:.8125rem;line-height:1.25;overflow:hidden;"
    "overflow-wrap:anywhere;display:-webkit-box;-webkit-line-clamp:2;-webkit-box-orient:vertical}"
    ".st-key-bar{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);gap:.5rem}"
    '.st-key-bar [data-testid="stWidgetLabel"]{color:inherit;min-height:1.1rem;margin-bottom:.1rem}'
    '.st-key-bar [data-testid="stWidgetLabel"] p{font-size:.75rem;white-space:nowrap}'
    ".st-key-bar input{font-size:.875rem;padding-top:.25rem;padding-bottom:.25rem}"
    ".st-key-bar .react-aria-ComboBox>[role=group]{min-height:2rem;height:2rem}"
    ".st-key-folded{display:none}"
    "@media (max-width:1100px){.st-key-bar{grid-auto-flow:row;"
    "grid-template-columns:repeat(3,minmax(0,1fr))}}"
    "@media (max-width:640px){"
    '[data-testid="stMainBlockContainer"]{padding:3.25rem 1rem 4rem}'
    ".st-key-heading{padding-right:0;flex-wrap:wrap;gap:0 .6rem}"
    ".sl-facts{-webkit-line-clamp:3}"
    ".st-key-folded{display:flex;flex-wrap:nowrap}"
    ".st-key-bar{display:none;grid-template-columns:repeat(2,minmax(0,1fr))}"
    ".st-key-top:has(.st-key-folded details[open]) .st-key-bar{display:grid}"
    ".st-key-folded summary{cursor:pointer;font-weight:600;white-space:nowrap}}"
    "</style>"
)
"""One row where there is room; in a narrow window a line that says what is chosen, and opens. The
line opens in the browser alone, so that it stays open while somebody chooses."""

_ALONE = 240
"""Width of the set's control where it stands alone, in pixels."""

_HELP = {
    LEAF: "The model whose history is looked at: the stages from the base to it. Training branched "
    "off, so this run has several.",
    SET: "The examples that behaviours are measured on.",
    BY: "Examples that share a value of this column form a group. A saved slice divides the set in "
    "two: its examples, and the others.",
    GROUP: "Look only at the examples of one group or one saved slice; without a choice, at all of "
    "them, or on the Overview at the group that the first headline is about.",
    STAGE: "The stage that is looked at; without a choice, all of them, or the one with the "
    "strongest effects.",
    ESTIMATOR: "An estimator is a way to obtain a counterfactual: the model as it would be had a "
    "stage's updates not happened, all later stages run as they were. Replay runs the recorded "
    "steps again and is the ground truth; coarse-replay does so cheaply, within a budget; "
    "task-vector is free and approximate. The Trust page compares them. A stage that the chosen "
    "one has not come to is shown by the best of the others.",
}
_LABELS = {
    LEAF: "Leaf",
    SET: "Evaluation set",
    MEASURE: "Behaviour",
    BY: "Groups by",
    GROUP: "Group",
    STAGE: "Stage",
    ESTIMATOR: "Estimator",
}


@dataclass(frozen=True)
class Bar:
    """What is chosen on top of the page.

    Attributes:
        behaviour: Accuracy where nothing has been measured yet.
        by: The column that groups come from, also a slice's; None where there are no groups.
        group: The one group that is looked at; None for all.
        stage: The one stage that is looked at; None for any.
    """

    behaviour: Behaviour
    by: str | None = None
    group: str | None = None
    stage: str | None = None


@dataclass
class Row:
    """The bar while it is drawn: the controls in their places, whatever is known first.

    Attributes:
        unused: Control to the reason why this page does not look at it; None where it looks at
            none of them but the set, and shows that alone.
        facts: What the page looks at, as one line beside its title.
    """

    unused: Mapping[str, str] | None
    facts: str = ""
    _places: dict[str, DeltaGenerator] = field(default_factory=dict)
    _told: list[str] = field(default_factory=list)
    _chosen: dict[str, str] = field(default_factory=dict)

    def place(self, *keys: str) -> None:
        """Make room for these controls, from left to right."""
        if self.unused is not None or keys in ((SET,), (LEAF,)):
            self._places.update({key: st.container(gap=None) for key in keys})

    def pick(
        self,
        key: str,
        options: Sequence[str],
        missing: str,
        none: str | None = None,
        help: str = "",
    ) -> str | None:
        """One control.

        Args:
            key: Which.
            options: To choose from; the first is chosen at first, unless ``none`` is given.
            missing: Said of a choice that is not among them: its words with ``{asked}`` in it.
            none: Stands for no choice.
            help: What it is; by default what the control says everywhere.
        """
        asked = state.chosen(key)
        if asked is not None and asked not in options:
            self._tell(key, missing.format(asked=short(asked, 60)), options, none)
        begin = options[0] if options and none is None else None
        picked = asked if asked in options else begin
        if key in self._places:
            state.prepare(key, picked)
            with self._places[key]:
                closed = (self.unused or {}).get(key, "")
                st.selectbox(
                    _LABELS[key],
                    options,
                    format_func=score_last if key == MEASURE else str,
                    index=None if none is not None else 0,
                    placeholder=none or "Not known yet",
                    key=key,
                    on_change=state.take,
                    args=(key,),
                    disabled=bool(closed) or not options,
                    help=" ".join(filter(None, (help or _HELP[key], closed))),
                )
        if picked is not None and key not in (self.unused or {}):
            self._chosen[key] = picked
        return picked

    def _tell(self, key: str, missing: str, options: Sequence[str], none: str | None) -> None:
        instead = "all are shown" if none is not None else f"{(*options, '')[0]} is shown instead"
        if key in (MEASURE, ESTIMATOR) and not options:
            instead = "nothing has been measured on it yet"
        self._told.append(f"{missing}; {instead}.")

    def tell(self) -> None:
        """Say which choices are not there, below the bar."""
        if self._told:
            said = "  \n".join(components.plain(each) for each in self._told)
            st.warning(said, icon=":material/link_off:")

    def words(self) -> str:
        """What is chosen of that which the page looks at, in a line."""
        keys = [key for key in (LEAF, MEASURE, GROUP, STAGE, ESTIMATOR) if key in self._chosen]
        shown = {MEASURE: score_last}
        return " · ".join(shown.get(key, str)(self._chosen[key]) for key in keys)


@contextmanager
def top(title: str, unused: Mapping[str, str] | None) -> Iterator[Row]:
    """The title of the page and the bar; within, the bar is filled.

    Args:
        title: Of the page.
        unused: Control to the reason why this page does not look at it; None where it looks at
            none of them but the set, and shows that alone.
    """
    row = Row(unused)
    st.html(_STYLE)
    with st.container(key="top"):
        with st.container(horizontal=True, vertical_alignment="center", key="heading"):
            st.title(components.plain(title), anchor=False, width="content")
            facts = st.empty()
        if unused is None:
            with st.container(width=_ALONE):
                yield row
        else:
            with st.container(horizontal=True, vertical_alignment="center", key="folded"):
                line = st.empty()
                st.html("<details><summary>Change</summary></details>", width="content")
            with st.container(key="bar"):
                yield row
            line.html(f"<div>{components.shown(row.words())}</div>")
        facts.html(f"<div class='sl-facts'>{components.shown(row.facts)}</div>")
        row.tell()


def score_last(name: str) -> str:
    """A behaviour as controls show it: the name of a score first, which is what fits."""
    own = name.removeprefix(SCORE)
    return name if own == name else f"{own} (score)"


def behaviours_help(behaviours: Mapping[str, Behaviour]) -> str:
    """What each behaviour is."""
    return "One number per example measured on a model. " + " ".join(
        f"**{components.plain(each.name)}** ({each.better} is better): "
        f"{components.plain(each.description)}"
        for each in behaviours.values()
    )
