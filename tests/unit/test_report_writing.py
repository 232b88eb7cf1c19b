"""What people write in a report: titles, notes, author and summary; and how it is found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stagelens.report.cover import Cover, read_cover, write_cover
from stagelens.report.finding import FindingEdit
from stagelens.report.page import Report, Section, as_html
from stagelens.report.rows import as_json
from stagelens.report.store import FindingStore
from stagelens.runs.run import open_run
from tests.support.findings import finding
from tests.support.report_pages import page_of, report_of


@pytest.fixture(autouse=True)
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, so 5 MB of plotly.js need not be read."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "const Plotly = {};")


def test_a_finding_is_titled_by_what_it_claims_until_somebody_says_otherwise() -> None:
    several = finding()  # whose first sentence is about the first stage, not the strongest
    assert several.claim == "" and several.title == several.seen.title
    one = finding(("one",))
    first = str(one.seen.sentences[0]).rstrip(".")
    assert one.title == first != one.seen.title
    article = page_of(as_html(report_of(one))).all("article")[0]
    assert article.all("h3")[0].all("bdi")[0].text == first
    assert article.text.count(first) == 1 and one.seen.title in article.text
    edited = one.model_copy(update={"history": (FindingEdit(at=1, title="It learned <stamps>"),)})
    article = page_of(as_html(report_of(edited))).all("article")[0]
    assert article.all("h3")[0].text.strip() == "It learned <stamps>"
    assert first in article.text
    back = (*edited.history, FindingEdit(at=2, title=""))
    assert edited.model_copy(update={"history": back}).title == first
    assert json.loads(as_json(report_of(edited)))["findings"][0]["claim"] == "It learned <stamps>"


def test_notes_and_summary_are_markdown_that_can_do_nothing() -> None:
    note = (
        "**Look** at [this](https://example.org) and [that](javascript:alert(1)) "
        "![x](https://example.org/x.png)\n\n- <b>one</b>\n- two\n\n# No heading"
    )
    one = finding().model_copy(update={"history": (FindingEdit(at=1, note=note),)})
    cover = Cover(title="Why <3s>", author="Ada & co", summary=f"Short.\n\n{note}")
    root = page_of(as_html(Report("mine", "d" * 64, [Section("", "", [one])], cover=cover)))
    assert [each.text for each in root.all("h1")] == ["Why <3s>"]
    assert "By Ada & co" in root.text
    for place in (root.all(of="note")[0], root.all(of="summary")[0]):
        assert [each.text for each in place.all("strong")] == ["Look"]
        # A picture is no more than a link to it.
        links = place.all("a")
        assert [each.attributes["href"] for each in links] == [
            "https://example.org",
            "https://example.org/x.png",
        ]
        assert all(each.attributes["rel"] == "noopener noreferrer" for each in links)
        assert not any(place.all(tag) for tag in ("img", "b", "script", "h1", "h2"))
        assert len(place.all("li")) == 2 and "<b>one</b>" in place.text


def test_contents_lead_to_every_section_and_claim(whole: Report) -> None:
    root = page_of(as_html(whole))
    (contents,) = root.all("nav")
    places = {each.attributes.get("id") for each in root.all()}
    links = [each.attributes["href"] or "" for each in contents.all("a")]
    assert all(link.startswith("#") and link[1:] in places for link in links)
    led, *followed = whole.sections
    claims = {f"#finding-{each.id}" for section in followed for each in section.findings}
    assert led.leads and claims <= set(links)
    # What people pinned stands before the contents, which list what follows.
    (main,) = root.all("main")
    order = [each for each in main.all() if each.tag in ("article", "nav")]
    assert [each.tag for each in order[: len(led.findings) + 1]] == [
        *["article"] * len(led.findings),
        "nav",
    ]
    assert not {f"#finding-{each.id}" for each in led.findings} & set(links)
    assert not page_of(as_html(report_of(finding()))).all("nav")


def test_digests_stand_at_the_end(whole: Report) -> None:
    root = page_of(as_html(whole))
    assert not root.all("header")[0].all(of="digest") and not root.all("main")[0].all(of="digest")
    assert root.all("footer")[0].all(of="digest")[0].text == whole.run_digest


def test_the_cover_is_kept_with_the_run_field_by_field(copied: Path) -> None:
    run = open_run(copied)
    assert read_cover(run) == (Cover(), [])
    write_cover(run, title="One", author="Ada")
    write_cover(run, title="Two")
    assert read_cover(run) == (Cover(title="Two", author="Ada"), [])
    assert FindingStore(run).read().kept == []
    last = sorted((copied / "findings" / "cover" / "edits").iterdir())[-1]
    last.write_text(last.read_text().replace("Two", "2"))
    cover, problems = read_cover(run)
    assert cover.title == "One" and "was changed after it was written" in problems[0]
