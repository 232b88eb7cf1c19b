"""From checkpoint folders to an open run, through the form on the start page."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.checkpoints import classifiers, labelled_texts


def test_checkpoint_folders_become_a_run_that_is_looked_at(
    start_server, page: Page, settle, screenshot, tmp_path: Path
) -> None:
    home, models = tmp_path / "home", tmp_path / "models"
    classifiers(models)
    labelled_texts(models / "texts.jsonl")
    server = start_server({"STAGELENS_HOME": str(home), "STAGELENS_ROOTS": str(models)})
    page.goto(server.url)
    settle(page, "Make a run from checkpoints")
    page.get_by_text("Make a run from checkpoints").click()
    page.get_by_role("button", name="Add a stage").click()
    for number, name in enumerate(("base", "sft", "missing")):
        what = "Base" if number == 0 else f"Stage {number}"
        page.get_by_label(f"{what}: name").fill(name)
        page.get_by_label(f"{what}: checkpoint folder").fill(name)
    page.get_by_label("Name of the run").fill("mine")
    page.get_by_role("textbox", name="Evaluation file").fill("texts.jsonl")
    page.get_by_role("textbox", name="Evaluation file").press("Enter")
    settle(page, "Columns of the evaluation file")
    page.get_by_role("button", name="Make the run").click()
    settle(page, "Stage 2: there is no folder missing")
    screenshot(page, "assemble-refused")
    page.get_by_label("Stage 2: name").fill("dpo")
    page.get_by_label("Stage 2: checkpoint folder").fill("dpo")
    page.get_by_role("button", name="Make the run").click()
    expect(page.get_by_role("heading", name="mine", level=1)).to_be_visible()
    settle(page, "assembled from checkpoints: no steps recorded")
    assert "run=mine" in page.url
