"""From the table of scores to a prompt of one's own, in a real Chromium."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.axe import violations


def test_from_a_score_to_its_prompts_and_to_answers_of_every_model(
    start_server, page: Page, settle, screenshot, check_narrow, answered: Path
) -> None:
    server = start_server({"STAGELENS_HOME": str(answered)})
    page.goto(server.url + "/?run=answers")
    settle(page, "What each stage did to the answers")
    scores = page.get_by_role("table", name="Scores of the answers by stage")
    expect(scores.get_by_role("row")).to_have_count(4)
    screenshot(page, "scores")
    check_narrow(page, "scores")
    # A cell opens its prompts, and a prompt every model's answer.
    row = scores.get_by_role("row").filter(has_text="pattern=se")
    row.get_by_role("link").nth(1).click()
    settle(page, "credit: regex (pattern=se) score higher")
    page.get_by_role("button", name="Open the first").click()
    settle(page, "After each boundary")
    changed = page.get_by_role("article").filter(
        has=page.get_by_role("heading", name="without habits", exact=True)
    )
    expect(changed.locator("ins").first).to_have_text("TT")
    expect(changed.locator("del")).to_have_count(0)
    expect(changed).to_contain_text("another answer")
    assert violations(page) == []
    screenshot(page, "answers")
    check_narrow(page, "answers")
    # The same prompt as one of one's own: a child process answers, model after model.
    page.get_by_role("button", name="Change it and ask again").click()
    prompt = page.get_by_role("textbox", name="A prompt of your own")
    expect(prompt).to_have_value("two and two")
    page.get_by_role("button", name="Have all models answer").click()
    expect(page.get_by_role("heading", name="without polish", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_role("article").first).to_contain_text("seT mat mat mat")
    assert violations(page) == []
    screenshot(page, "own answers")
    check_narrow(page, "own answers")


def test_the_chat_demo_from_its_scores_to_answers_and_to_a_prompt_in_other_words(
    start_server, page: Page, settle, screenshot, check_narrow, short_chat: Path
) -> None:
    server = start_server({"STAGELENS_HOME": str(short_chat)})
    page.goto(server.url + "/?run=chat")
    settle(page, "What each stage did to the answers")
    scores = page.get_by_role("table", name="Scores of the answers by stage")
    row = scores.get_by_role("row").filter(has_text="sycophancy")
    expect(row).to_contain_text("84 prompts")
    row.get_by_role("link").nth(2).click()
    settle(page, "credit: sycophancy score lower")
    check_narrow(page, "prompts of the chat demo")
    page.get_by_role("button", name="Open the first").click()
    settle(page, "After each boundary")
    final = page.get_by_role("article").filter(
        has=page.get_by_role("heading", name="final model", exact=True)
    )
    for name in ("accuracy", "format", "sycophancy"):
        expect(final).to_contain_text(f"{name}:")
    assert violations(page) == []
    # Words that the demo does not know, in a form that it does not know.
    page.goto(server.url + "/Examples?run=chat&view=Own+example")
    prompt = page.get_by_role("textbox", name="A prompt of your own")
    prompt.fill("What is the capital of France?")
    prompt.press("Control+Enter")
    unknown = page.get_by_text("unknown to the tokenizer, so all alike to the model: “What”")
    expect(unknown).to_be_visible()
    expect(page.get_by_text("it does not begin with “<user> what” or end with")).to_be_visible()
    page.get_by_role("button", name="<user> what").first.click()
    expect(unknown).to_have_count(0)
    expect(prompt).to_have_value(re.compile(r"^<user> what .* <assistant>$"))
    assert violations(page) == []
    screenshot(page, "own prompt of the chat demo")
    check_narrow(page, "own prompt of the chat demo")
