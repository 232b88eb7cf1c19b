"""One bar on top of every page: the same choices everywhere, kept by pages and by links."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.ui.pieces import components, state
from tests.pages.reading import check, table, words

PAGES = [path for path, *_ in components.PAGES]
EXAMPLES, REPORT = "pages/1_Examples.py", "pages/5_Report.py"
GATE = "pages/6_Regression_gate.py"
CHOSEN = {
    "set": "test",
    "measure": "loss",
    "by": "group",
    "group": "stamped",
    "stage": "shortcut",
    "estimator": "task-vector",
}
LINK = "run=digits&" + urlencode(CHOSEN)
MORE = [
    *((EXAMPLES, f"view={view}") for view in (state.OWN, state.COMPARED)),
    *((EXAMPLES, f"example=stamped-003&look={look}") for look in (state.WHEN, state.INPUT)),
    ("pages/2_Spurious_features.py", f"part={state.WHERE}"),
    ("pages/3_Remove_a_stage.py", "remove-1=100"),
]


def shown(app: AppTest) -> dict[str, str | None]:
    """The controls of the bar, from left to right, with what they show."""
    keys = [each.key for each in app.selectbox if each.key in state.BAR]
    return {key: app.selectbox(key=key).value for key in keys}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_same_bar_with_what_the_link_chose(
    open_page, demo: Path, page: str
) -> None:
    app = check(open_page(demo.parent, LINK, page))
    # Of a report, or a gate with choices of its own, only the set changes what it begins with.
    assert shown(app) == ({"set": "test"} if page in (REPORT, GATE) else CHOSEN)
    assert {**CHOSEN, "run": "digits"}.items() <= dict(app.query_params).items()


@pytest.mark.parametrize("page", [EXAMPLES, "pages/4_Trust.py"])
def test_without_a_choice_every_page_begins_with_the_same(open_page, demo: Path, page: str) -> None:
    found = shown(check(open_page(demo.parent, "run=digits", page)))
    at_first = {"measure": "accuracy", "group": None, "stage": None, "estimator": "replay"}
    assert found == {**CHOSEN, **at_first}


_FOLDED = {
    "app.py": "loss · stamped · replay",
    "pages/3_Remove_a_stage.py": "stamped · replay",
    "pages/4_Trust.py": "loss",
    REPORT: "",
    GATE: "",
}


def test_a_choice_is_kept_when_pages_change_also_where_it_is_not_looked_at(
    open_page, demo: Path
) -> None:
    app = check(open_page(demo.parent, "run=digits", EXAMPLES))
    for key in ("measure", "group", "stage"):
        app.selectbox(key=key).select(CHOSEN[key])
        check(app.run())
    chosen = {key: CHOSEN[key] for key in ("measure", "group", "stage")}
    for page in PAGES:
        check(app.switch_page(page).run())
        # Narrow windows fold the bar: its line says what the page looks at.
        assert _FOLDED.get(page, "loss · stamped · shortcut · replay") in words(app)
        held = {key: value for key, value in app.query_params.items() if key in state.SHARED}
        assert held == chosen


def test_what_is_chosen_no_more_leaves_the_address(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&group=stamped&measure=loss", EXAMPLES))
    check(app.selectbox(key="group").select(None).run())
    assert dict(app.query_params) == {"run": "digits", "measure": "loss"}


def test_a_browser_that_has_not_heard_of_a_choice_does_not_undo_it(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits", EXAMPLES))
    check(app.selectbox(key="group").select("stamped").run())
    del app.query_params["group"]  # as it was when the choice was made
    check(app.selectbox(key="measure").select("loss").run())
    assert app.selectbox(key="group").value == "stamped"
    assert app.query_params["group"] == "stamped" and app.query_params["measure"] == "loss"
    # Once it has heard, an address without the group is a link to all groups.
    check(app.run())
    del app.query_params["group"]
    assert check(app.run()).selectbox(key="group").value is None


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("stage=nope", "This run has no stage nope; all are shown."),
        ("group=nope", "Set test has no group nope by group; all are shown."),
        ("by=nope", "Set test has no groups by nope; group is shown instead."),
        ("measure=nope", "Set test has no behaviour nope; accuracy is shown instead."),
        ("estimator=nope", "by the estimator nope; replay is shown instead."),
    ],
)
def test_what_a_link_names_in_vain_is_told(open_page, demo: Path, link: str, said: str) -> None:
    app = check(open_page(demo.parent, f"run=digits&{link}", EXAMPLES))
    assert said in words(app)
    for page in PAGES:
        assert said in words(check(app.switch_page(page).run()))


def test_a_name_in_a_link_is_no_markup(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&stage=![](https://example.org/x.png)"))
    (told,) = [each.value for each in app.warning if "no stage" in each.value]
    assert "![](" not in told


def test_where_nothing_was_measured_nothing_is_said_to_be_shown_instead(
    open_page, demo_copy: Path
) -> None:
    shutil.rmtree(demo_copy / "results")
    link = "run=digits&measure=margin&estimator=replay"
    said = words(check(open_page(demo_copy.parent, link, "pages/5_Report.py")))
    assert said.count("nothing has been measured on it yet") == 2 and "are shown" not in said


def test_stages_switched_since_a_page_was_turned_to_are_what_links_keep(
    open_page, demo: Path
) -> None:
    app = check(open_page(demo.parent, "run=digits&off=shortcut"))
    # A click on a card, and the way back.
    app.session_state[components._GOING] = EXAMPLES, {"run": "digits", "off": "shortcut"}
    check(app.run())
    switched = AppTest.from_function(_switch_another)
    for key in ("off", state.session_key("off")):
        if key in app.session_state:
            switched.session_state[key] = app.session_state[key]
    check(switched.run())
    assert switched.session_state["links keep"] == "adapt"


def _switch_another() -> None:
    import streamlit as st

    from stagelens.ui.pieces import state

    state.switch_off(["adapt"])
    st.session_state["links keep"] = state.kept()["off"]


def test_another_run_begins_with_all_stages_and_no_block_chosen(open_page, demo_copy: Path) -> None:
    link = f"run=digits&block=2&off=adapt&part={state.NETWORK_PART}"
    app = check(open_page(demo_copy.parent, link, "pages/2_Spurious_features.py"))
    (leave,) = [each for each in app.button if each.label.startswith("Open another")]
    check(leave.click().run())
    assert dict(app.query_params) == {}


def test_what_another_set_lacks_is_told_and_comes_back(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&group=stamped", EXAMPLES))
    app.selectbox(key="set").select("mixed-up")
    said = "has no group stamped by group; all are shown."
    assert said in words(check(app.run()))
    assert said in words(check(app.switch_page("app.py").run()))
    app.selectbox(key="set").select("test")
    check(app.run())
    assert app.selectbox(key="group").value == "stamped" and said not in words(app)


def test_a_choice_in_place_of_a_missing_one_is_kept(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&group=stamped&set=mixed-up", EXAMPLES))
    app.selectbox(key="group").select("swapped" if "swapped" in options(app) else options(app)[0])
    picked = check(app.run()).selectbox(key="group").value
    assert "has no group" not in words(app)
    app.selectbox(key="measure").select("loss")
    assert check(app.run()).selectbox(key="group").value == picked


def options(app: AppTest) -> list[str]:
    return list(app.selectbox(key="group").options)


@pytest.mark.parametrize(
    ("page", "before"),
    [
        (EXAMPLES, "behaviour=margin"),
        ("pages/2_Spurious_features.py", "gap=margin"),
        ("pages/2_Spurious_features.py", f"part={state.WHERE}&behaviour=margin"),
        ("pages/4_Trust.py", "trusted=margin"),
    ],
)
def test_links_of_earlier_versions_open_what_they_did(
    open_page, demo_copy: Path, page: str, before: str
) -> None:
    # A copy: maps that a page computes are stored with the run.
    app = check(open_page(demo_copy.parent, f"run=digits&{before}", page))
    assert app.selectbox(key="measure").value == "margin"
    assert not [each for each in app.warning if "has no" in each.value]


# --------------------------------------------------------------------------------- in-app links


def links(app: AppTest) -> list[tuple[str, dict[str, str]]]:
    """Every link to a page of the dashboard: its words, and its query."""
    found = [(each.proto.label, each.proto.query_string) for each in app.get("page_link")]
    for body in (each.proto.body for each in app.get("html")):
        # A link without words says what it leads to when it is pointed at.
        found += [
            (said, query)
            for tag in re.findall(r"<a [^>]*>", body)
            for query in re.findall(r"href='[^'?]*\?([^']*)'", tag)
            for said in [" ".join(re.findall(r"(?:aria-label|title)='([^']*)'", tag))]
        ]
    for frame in (each.value for each in app.dataframe):
        for name in frame:
            cells = frame[name].map(str)
            found += [("", cell.partition("?")[2]) for cell in cells[cells.str.contains(r"\?run=")]]
    return [(label, dict(parse_qsl(html.unescape(query)))) for label, query in found]


@pytest.mark.parametrize("page", PAGES)
def test_in_app_links_keep_what_is_chosen(open_page, demo: Path, page: str) -> None:
    walk(check(open_page(demo.parent, LINK, page)))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "link"), MORE)
def test_in_app_links_of_every_view_keep_what_is_chosen(
    open_page, demo_copy: Path, page: str, link: str
) -> None:
    walk(check(open_page(demo_copy.parent, f"{LINK}&{link}", page)))


def walk(app: AppTest) -> None:
    """Look at all links of a page."""
    found = links(app)
    assert len(found) >= len(PAGES)
    for label, query in found:
        assert query["run"] == "digits"
        for key, value in CHOSEN.items():
            assert query[key] == value or query[key] in label, (label, key)


def test_the_links_of_the_demo_say_what_they_change(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&measure=margin&estimator=task-vector"))
    told = [each for each in links(app) if "hurts" in each[0]]
    assert len(told) == 2
    for label, query in told:
        assert (query["measure"], query["estimator"]) == ("margin", "task-vector")
        for key in ("set", "group", "stage"):
            assert query.get(key, "test") in ("test", *label.split()), (label, key)


def test_the_demo_lands_on_what_its_sentence_counts(open_page, demo: Path) -> None:
    (query,) = [query for label, query in links(check(open_page(demo.parent, "run=digits")))
                if "stamped images shortcut hurts" in label]  # fmt: skip
    app = check(open_page(demo.parent, urlencode(query), EXAMPLES))
    assert {"group": "stamped", "stage": "shortcut"}.items() <= shown(app).items()
    cells = table(app)
    assert cells["id"].str.startswith("stamped-").all() and len(cells)
    assert cells["answer"].str.startswith("✗").all()
