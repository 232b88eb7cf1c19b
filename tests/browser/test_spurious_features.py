"""The page *Spurious features* as a person meets it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import violations
from tests.browser.turning import LEAVE, TURNED


@pytest.mark.essential
def test_the_gap_between_groups_is_read_with_and_without_each_stage(
    server, page: Page, settle, screenshot
) -> None:
    page.goto(f"{server.url}/?run=digits")
    settle(page, "Credit and blame")
    page.get_by_role("link", name="Spurious features").click()
    settle(page, "The gap in accuracy between")
    expect(page.get_by_text(re.compile("without shortcut it would be"))).to_be_visible()
    chart = page.get_by_role("figure", name=re.compile("Accuracy of 2 groups under every model"))
    expect(chart.first).to_be_attached()
    screenshot(page, "group-gaps")
    page.get_by_role("combobox", name="Behaviour", exact=True).click()
    page.get_by_role("option", name="margin", exact=True).click()
    settle(page, "The gap in mean margin between")
    page.get_by_text("Cross group with the label").click()
    settle(page, re.compile("stamped · "))
    assert "measure=margin" in page.url and "crossed=true" in page.url
    page.reload()
    settle(page, "The gap in mean margin between")


def test_features_are_looked_for_and_their_examples_opened(
    server, page: Page, settle, screenshot, check_narrow
) -> None:
    page.goto(f"{server.url}/Spurious_features?run=digits&estimator=task-vector")
    settle(page, "The gap in accuracy between")
    page.get_by_role("tab", name="Found without metadata").click()
    found = page.get_by_text(re.compile("What is most closely associated with the effect of"))
    expect(found).to_be_visible()
    settle(page)
    chart = page.get_by_role("figure", name=re.compile("Where the effect of .* sits"))
    expect(chart.first).to_be_attached()
    assert "part=Found+without+metadata" in page.url
    assert violations(page) == []
    screenshot(page, "features")
    check_narrow(page, "features")
    example = page.get_by_role("link").filter(has=page.get_by_role("img", name="Example ")).first
    page.evaluate(LEAVE)
    example.click()
    settle(page, "Effect of each stage")
    assert page.evaluate(TURNED)
    assert "/Examples" in page.url and "example=" in page.url
