"""The dossier on the Report page: files, counts, and what people say of the run."""

from __future__ import annotations

import json
from pathlib import Path

from stagelens.report.dossier.computing import count
from stagelens.runs import described
from stagelens.runs.run import open_run
from tests.pages.reading import check, words

PAGE = "pages/5_Report.py"


def test_answers_are_kept_with_the_run_and_only_those_that_changed(open_page, demo_copy) -> None:
    run = open_run(demo_copy)
    app = check(open_page(demo_copy.parent, "run=digits", page=PAGE))
    # Somebody else answers while the form is open.
    described.keep(run, described.from_given(run, {"purpose": "to teach"}, "other"))
    app.text_area(key="said--responsible-0").set_value("The digits group")
    check(_button(app, "Keep answers").click().run())
    said = described.answers(run)
    assert (said.responsible, said.purpose) == ("The digits group", "to teach")
    check(app.selectbox(key="describe").set_value("shortcut").run())
    app.text_area(key="said-shortcut-by-1").set_value("Ada")
    check(_button(app, "Keep answers").click().run())
    assert described.answers(run).of("shortcut").by == "Ada"
    assert "3 of 39 questions answered" in words(app)


def test_a_number_that_is_none_is_told_and_nothing_is_kept(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, "run=digits", page=PAGE))
    app.text_area(key="said--base_operations-0").set_value("a lot")
    check(_button(app, "Keep answers").click().run())
    assert "give one like 3e21" in words(app)
    assert described.answers(open_run(demo_copy)).base_operations is None


def test_counting_is_offered_until_it_is_done(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, "run=digits", page=PAGE))
    assert [each.label for each in app.button if each.key == "count-operations"] == ["Count it"]
    count(open_run(demo_copy))
    check(app.run())
    assert not [each for each in app.button if each.key == "count-operations"]


def test_a_damaged_description_is_told_and_the_page_stays(open_page, demo_copy: Path) -> None:
    (demo_copy / described.FILE).write_text(json.dumps({"purpose": 1}))
    app = check(open_page(demo_copy.parent, "run=digits", page=PAGE))
    assert "description.json" in words(app)


def _button(app, label: str):
    return next(each for each in app.button if each.label == label)
