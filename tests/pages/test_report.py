"""Pinning on any page, and the Report page: notes, order, taking out, export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.report import provenance
from stagelens.report.cover import read_cover
from stagelens.report.finding import Finding
from stagelens.report.store import Findings, FindingStore
from stagelens.runs.run import open_run
from tests.pages.reading import check, drawn, figures, words
from tests.support.findings import seen

PAGE = "pages/5_Report.py"
EXAMPLES = "pages/1_Examples.py"
EVIL = '<img src=x onerror="alert(1)"> ![](https://example.org/x.png) :red[x] **b**'


def stored(demo: Path) -> Findings:
    return FindingStore(open_run(demo)).read()


def pin(app: AppTest, key: str, note: str = "") -> AppTest:
    """Press a pin, write a note, and pin."""
    check(app.button(key=f"pin-to-{key}").click().run())
    if note:
        app.text_area(key="pin-note").set_value(note)
    return check(app.button(key="pin-it").click().run())


def pinned(demo: Path, count: int, **changes: Any) -> list[Finding]:
    """Findings of the demo, pinned by somebody else."""
    store = FindingStore(open_run(demo))
    made = [store.pin(seen(title=f"Finding {n}", **changes), f"note {n}") for n in range(count)]
    for number, each in enumerate(made):
        store.edit(each, title=f"Finding {number}")
    return made


def notes(app: AppTest) -> list[Any]:
    return [each for each in app.text_area if str(each.key).startswith("note-")]


def titles(app: AppTest) -> list[str]:
    return [each.value.replace("\\", "") for each in app.header]


def test_a_chart_of_the_overview_is_kept_as_it_was(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, "run=digits&group=stamped&measure=margin"))
    shown = figures(app)[0]
    pin(app, "bars", "Look *here*")
    assert "Credit and blame" in app.toast[0].value
    (found,) = stored(demo_copy).kept
    kept, run = found.seen, open_run(demo_copy)
    assert found.note == "Look *here*"
    assert kept.figure is not None and kept.figure["data"] == shown["data"]
    assert kept.said == shown["alt"] and kept.behaviour == "margin"
    assert kept.run_digest == run.digest
    assert kept.set_digest == run.evaluation_set("test").digest
    assert kept.estimator == "replay" and [t.trust for t in kept.trust] == ["exact"] * 4
    assert kept.filters == {"group": "stamped"}
    assert "Without shortcut, the mean margin on stamped images" in str(kept.sentences[1])
    assert kept.rows.columns[0] == "stage" and len(kept.rows.values) == 4
    assert kept.view.page == "" and kept.view.query["group"] == "stamped"
    assert kept.view.query["estimator"] == "replay"
    pin(app, "headlines")
    (headlines,) = [one for one in stored(demo_copy).kept if one.seen.kind == "sentences"]
    assert headlines.title == headlines.claim != "" and headlines.seen.figure is None


def test_what_was_measured_and_not_estimated_is_told_apart(open_page, demo_copy: Path) -> None:
    pin(check(open_page(demo_copy.parent, "run=digits")), "time-line")
    (found,) = stored(demo_copy).kept
    assert found.seen.observed and not found.seen.trust and not found.seen.estimator


def test_a_table_of_examples_is_kept_with_its_filters(open_page, demo_copy: Path) -> None:
    asked = "run=digits&side=blame&stage=shortcut&show-more=true"  # what is open is no filter
    app = check(open_page(demo_copy.parent, asked, EXAMPLES))
    key = app.dataframe[0].key
    pin(app, key)
    (found,) = stored(demo_copy).kept
    assert found.seen.kind == "table" and found.seen.figure is None
    assert found.seen.filters == {"credit or blame": "blame", "stage": "shortcut"}
    assert found.seen.rows.columns[:2] == ("image", "id") and len(found.seen.rows.values) == 12
    assert found.seen.view.page == "Examples"


def test_charts_of_one_example_say_whose_they_are(open_page, demo_copy: Path) -> None:
    app = check(
        open_page(demo_copy.parent, "run=digits&measure=loss&example=stamped-001", EXAMPLES)
    )
    pin(app, "example-effects")
    (found,) = stored(demo_copy).kept
    assert found.seen.title == "Effect of each stage on example stamped-001"
    assert found.seen.filters == {"example": "stamped-001"}
    assert "Without shortcut, the loss would be" in str(found.seen.sentences[1])


def test_a_table_is_kept_under_the_names_and_formats_of_the_page(
    open_page, demo_copy: Path
) -> None:
    app = check(open_page(demo_copy.parent, "run=digits&remove-1=100", "pages/3_Remove_a_stage.py"))
    pin(app, "remove-flipped")
    (found,) = stored(demo_copy).kept
    assert found.seen.rows.columns[:2] == ("image", "example")
    assert re.fullmatch(r"(clean|stamped)-\d+", str(found.seen.rows.values[0][1]))  # no address
    assert found.seen.filters == {"strength of shortcut": "100 %"}
    assert "the edited weights" in found.seen.observed and found.seen.estimator == "replay"
    # Measured, but no better known than what the edit was made with.
    (known,) = provenance.known(found.seen)
    assert (known.stage, known.word) == ("shortcut", "exact") and "Measured on" in known.meaning


@pytest.mark.parametrize(
    ("page", "link"),
    [
        ("pages/2_Spurious_features.py", ""),
        ("pages/3_Remove_a_stage.py", "&remove-1=100"),
        ("pages/4_Trust.py", ""),
    ],
)
def test_every_chart_and_table_of_the_other_pages_can_be_pinned(
    open_page, demo: Path, page: str, link: str
) -> None:
    app = check(open_page(demo.parent, f"run=digits{link}", page))
    pins = [each.key for each in app.button if (each.key or "").startswith("pin-to-")]
    shown = [*app.get("plotly_chart"), *app.dataframe, *drawn(app)]
    assert len(pins) == len(shown) > 1


def test_trust_of_an_agreement_is_its_own(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, "run=digits&estimate=task-vector", "pages/4_Trust.py"))
    pin(app, "agreement-1")
    (found,) = stored(demo_copy).kept
    assert found.seen.estimator == "task-vector"
    assert [trust.stage for trust in found.seen.trust] == ["shortcut"]


def test_a_run_that_cannot_be_written_says_so(open_page, demo_copy: Path) -> None:
    (demo_copy / "findings").write_text("in the way")
    app = check(open_page(demo_copy.parent, "run=digits"))
    pin(app, "bars")
    assert "something else is in its place" in app.error[0].value.replace("\\", "")


# ------------------------------------------------------------------------------------- the page


def test_without_findings_the_page_says_how_to_pin(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits", PAGE))
    assert "press the pin beside" in words(app)
    assert app.toggle(key="whole").value is True


def test_findings_are_shown_with_everything_that_numbers_need(open_page, demo_copy: Path) -> None:
    pinned(demo_copy, 2)
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    assert titles(app) == ["1. Finding 0", "2. Finding 1"]
    assert [each.value for each in notes(app)] == ["note 0", "note 1"]
    assert len(figures(app)) == 2
    assert app.toggle(key="whole").value is True  # pins leave it as it was
    said = words(app)
    assert "Without one, the mean loss on all images would be" in said
    assert "one: verified (" in said
    assert "set test · loss · by coarse-replay 1/4 · group: stamped" in said
    assert "Recording has continued since" in said  # these are of another run digest


def test_findings_are_moved_and_taken_out_and_put_back(open_page, demo_copy: Path) -> None:
    first, second, third = pinned(demo_copy, 3)
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    check(app.button(key=f"down-{first.id}").click().run())
    assert titles(app) == ["1. Finding 1", "2. Finding 0", "3. Finding 2"]
    check(app.button(key=f"up-{third.id}").click().run())
    assert titles(app) == ["1. Finding 1", "2. Finding 2", "3. Finding 0"]
    check(app.button(key=f"out-{third.id}").click().run())
    assert titles(app) == ["1. Finding 1", "2. Finding 0"]
    assert "Taken out: Finding 2." in words(app)
    check(app.button(key="undo").click().run())
    assert titles(app) == ["1. Finding 1", "2. Finding 2", "3. Finding 0"]
    check(app.button(key=f"out-{second.id}").click().run())
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))  # tomorrow
    check(app.button(key=f"back-{second.id}").click().run())
    assert titles(app) == ["1. Finding 1", "2. Finding 2", "3. Finding 0"]


def test_two_people_who_write_one_note_both_keep_theirs(open_page, demo_copy: Path) -> None:
    (one,) = pinned(demo_copy, 1)
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    FindingStore(open_run(demo_copy)).edit(one, note="theirs")
    notes(app)[0].set_value("mine")
    check(app.run())
    assert notes(app)[0].value == "mine"
    assert "Someone else changed this note" in app.warning[0].value
    assert "theirs" in words(app) and "note 0" in words(app)
    assert [edit.note for edit in stored(demo_copy).kept[0].notes] == ["note 0", "theirs", "mine"]


def test_a_damaged_finding_does_not_take_the_page_down(open_page, demo_copy: Path) -> None:
    bad, _ = pinned(demo_copy, 2)
    (demo_copy / "findings" / bad.id / "seen.json").write_text("{")
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    assert titles(app) == ["1. Finding 1"]
    assert f"findings/{bad.id}/seen.json" in app.warning[0].value.replace("\\", "")


def test_a_figure_that_plotly_does_not_know_is_told(open_page, demo_copy: Path) -> None:
    pinned(demo_copy, 1, figure={"data": [{"type": "bar", "no-such": 1}], "layout": {}})
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    assert "a figure that plotly does not know" in app.error[0].value.replace("\\", "")


def test_nothing_from_a_finding_becomes_markup(open_page, demo_copy: Path) -> None:
    (one,) = pinned(demo_copy, 1, said=EVIL, sentences=(), filters={EVIL: EVIL}, estimator=EVIL)
    FindingStore(open_run(demo_copy)).edit(one, note=EVIL)
    store = FindingStore(open_run(demo_copy))
    store.pin(seen(title=EVIL, set_name=EVIL, kind="table", figure=None))
    store.edit(store.pin(seen(title=EVIL)), removed=True)
    app = check(open_page(demo_copy.parent, "run=digits", PAGE))
    for kind in ("markdown", "caption", "header", "warning", "info"):
        for element in getattr(app, kind):
            text = str(element.value)
            assert "![](" not in text and ":red[" not in text and "**b**" not in text
    for element in app.get("html"):
        assert "<img" not in element.proto.body


def test_title_author_and_summary_are_kept_and_a_finding_is_renamed(
    open_page, demo_copy: Path
) -> None:
    (one,) = pinned(demo_copy, 1)
    app = check(open_page(demo_copy.parent, "run=digits", page=PAGE))
    check(app.text_input(key="cover-title").set_value("Why it says 3").run())
    check(app.text_area(key="cover-summary").set_value("**Take it out.**").run())
    cover, _ = read_cover(open_run(demo_copy))
    assert (cover.title, cover.author, cover.summary) == ("Why it says 3", "", "**Take it out.**")
    check(app.text_input(key=f"title-{one.id}-1").set_value("It learned the stamp").run())
    assert titles(app) == ["1. It learned the stamp"]
    check(app.text_input(key=f"title-{one.id}-2").set_value("").run())
    assert titles(app) == [f"1. {one.title}"]
    assert stored(demo_copy).kept[0].title == one.title
