"""Where in the input a stage's effect sits, as a person meets it."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect


def test_from_the_gallery_of_a_stage_to_the_map_of_one_example(
    server, page: Page, settle, screenshot
) -> None:
    link = "part=Where+in+the+input&group=stamped&estimator=task-vector&of-stage=mislabelled"
    page.goto(f"{server.url}/Spurious_features?run=digits&{link}")
    charts = page.get_by_role("figure", name=re.compile("Where in example .* sits"))
    expect(charts).to_have_count(6)
    page.get_by_role("combobox", name="Stage", exact=True).click()
    page.get_by_role("option", name="shortcut", exact=True).click()
    expect(page.get_by_text("of the effect of shortcut on the margin")).to_be_visible()
    settle(page)
    expect(charts).to_have_count(6)
    assert "stage=shortcut" in page.url and "of-stage" not in page.url
    screenshot(page, "where-gallery")
    page.set_viewport_size({"width": 420, "height": 1200})
    settle(page)
    overflow = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 1
    page.set_viewport_size({"width": 1280, "height": 1600})
    page.get_by_role("link", name=re.compile("^stamped-")).first.click()
    settle(page, "Which part of the input carries the effect")
    expect(charts).to_have_count(1)
    expect(page.get_by_text(re.compile(r"Effect \S+ = pixels \S+ \+ baseline"))).to_be_visible()
    assert "/Examples" in page.url and "look=Where" in page.url
    alt = re.compile("example stamped-.* the effect of shortcut on the margin sits")
    expect(page.get_by_role("figure", name=alt)).to_be_attached()
    screenshot(page, "where-example")
