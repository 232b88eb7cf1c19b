"""What all pages share: help on every control, the glossary, and the demo's story."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from stagelens.ui.pieces import glossary
from tests.pages.reading import check, words

PAGES = {
    "app.py": "",
    "pages/1_Examples.py": "",
    "pages/1_Examples.py?own": "view=Own example",
    "pages/1_Examples.py?compare": "view=Comparison",
    "pages/2_Spurious_features.py": "",
    "pages/2_Spurious_features.py?found": "part=Found without metadata",
    "pages/3_Remove_a_stage.py": "",
    "pages/3_Remove_a_stage.py?targeted": "remove-mode=Targeted",
    "pages/4_Trust.py": "",
}
CONTROLS = (
    *("selectbox", "multiselect", "text_input", "text_area", "slider", "toggle", "number_input"),
    *("radio", "button_group", "pills", "segmented_control", "file_uploader"),
)


def without_help(app: AppTest) -> list[str]:
    """Labels of the controls that explain themselves to nobody."""
    return [
        control.proto.label
        for kind in CONTROLS
        for control in app.get(kind)
        if not control.proto.help
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_control_has_a_help_text(open_page, demo: Path, page: str) -> None:
    app = check(open_page(demo.parent, f"run=digits&{PAGES[page]}", page.partition("?")[0]))
    assert without_help(app) == []
    assert "Glossary" in {button.label for button in app.button}


def test_the_glossary_has_the_words_of_the_pages(open_page) -> None:
    app = open_page(None)
    app.button(key="glossary").click()
    said = words(check(app.run()))
    assert all(meaning in said for meaning in glossary.WORDS.values())
    assert {"stage", "counterfactual", "credit", "blame", "trust", "slice"} <= set(glossary.WORDS)


def test_the_demo_tells_its_story_with_numbers_of_this_run(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&group=stamped"))  # whatever is looked at
    assert "in four sentences" in app.expander[0].label
    said = words(app)
    assert "with a fault planted on purpose: shortcut" in said
    assert "accuracy on 4s and 9s would be" in said


def test_other_runs_and_sets_tell_no_story(open_page, demo: Path, demo_copy: Path) -> None:
    other = demo_copy.rename(demo_copy.with_name("mine"))
    for home, link in ((other.parent, "run=mine"), (demo.parent, "run=digits&set=mixed-up")):
        app = check(open_page(home, link))
        assert not [each for each in app.expander if "four sentences" in each.label]
