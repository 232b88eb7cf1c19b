"""From an example to the steps and the training data behind it, and to others beside it."""

from __future__ import annotations

import re
from itertools import pairwise

from playwright.sync_api import Page, expect

from tests.browser.axe import HEADINGS, violations

LINK = "Examples?run=digits&set=mixed-up&measure=margin&estimator=replay&sort=id"


def test_from_an_example_to_its_steps_its_data_and_others_beside_it(
    server, page: Page, settle, screenshot
) -> None:
    page.goto(f"{server.url}/{LINK}&example=clean-044&within=mislabelled")
    settle(page, "Effect of each stage")
    page.get_by_role("tab", name="When").click()
    expect(page.get_by_role("figure", name=re.compile("Margin observed")).first).to_be_attached()
    settle(page)
    page.get_by_role("button", name="Compute the contributions").click()
    expect(page.get_by_text("its 42 steps together")).to_be_visible()
    settle(page)
    chart = page.get_by_role("figure", name=re.compile("Contributions of the 42 steps"))
    expect(chart.first).to_be_attached()
    assert "look=When" in page.url
    screenshot(page, "when")
    page.get_by_role("tab", name="Which data").click()
    settle(page, "Hurt most")
    expect(page.get_by_role("img", name="A training image").first).to_be_visible()
    expect(page.get_by_text(re.compile("carried momentum and decay"))).to_be_visible()
    screenshot(page, "which-data")
    page.get_by_role("button", name="Browse all 200 training examples").click()
    page.get_by_role("button", name="Read the training data").click()
    replay = page.get_by_role("button", name="Replay without the first 20 training examples")
    expect(replay).to_be_visible()
    settle(page, "Groups of training examples")
    replay.click()
    without = "Without 20 training examples of mislabelled the answer to clean-044 is 4 (right)"
    expect(page.get_by_text(without)).to_be_visible()
    settle(page)
    assert "view=Training+data" in page.url
    assert violations(page) == []
    levels = page.evaluate(HEADINGS)
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    screenshot(page, "training-data")
    page.get_by_role("tab", name="Evaluation set").click()
    settle(page, "Hurt most")
    add = page.get_by_role("button", name="Add to side by side")
    add.click()
    expect(page.get_by_role("button", name="In side by side")).to_be_visible()
    settle(page)
    page.keyboard.press("j")
    expect(add).to_be_visible()
    settle(page)
    add.click()
    expect(page.get_by_role("button", name="In side by side")).to_be_visible()
    settle(page)
    page.get_by_role("tab", name="Side by side").click()
    settle(page, "Effect of each stage on the margin, all on the same scale")
    inputs = page.get_by_role("img", name=re.compile("The input of example"))
    expect(inputs).to_have_count(3)  # two side by side, and the chosen one
    assert page.url.count("beside=") == 2
    screenshot(page, "side-by-side")
    page.set_viewport_size({"width": 700, "height": 1200})
    settle(page)
    overflow = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
    assert overflow <= 1
    page.reload()
    settle(page, "Effect of each stage on the margin, all on the same scale")
    expect(inputs).to_have_count(3)
