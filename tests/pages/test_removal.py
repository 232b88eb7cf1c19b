"""The page Remove a stage on the real demo: by hand, by preset, targeted, checked and saved."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.removal import measurements
from stagelens.effects.results import load_result, save_result
from stagelens.runs.run import open_run
from stagelens.ui.removal import edited_models
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, words

PAGE = "pages/3_Remove_a_stage.py"
LINK = "run=digits&set=test"


@pytest.fixture(scope="module")
def measured(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with the grid of its best estimate measured."""
    folder = Path(shutil.copytree(demo, tmp_path_factory.mktemp("removal") / "digits"))
    run = open_run(folder)
    stages = [stage.name for stage in run.stages]
    measurements.measure_edits(
        run, run.evaluation_set("test"), measurements.grid("replay", {}, stages)
    )
    return folder


def press(app: AppTest, label: str) -> AppTest:
    next(b for b in app.button if b.label == label).click()
    return check(app.run())


def strengths(app: AppTest) -> dict[str, int]:
    return {s.label.removeprefix("Strength of "): s.value for s in app.slider}


def offers(app: AppTest) -> list[str]:
    return [b.label for b in app.button if b.label.startswith("Remove the worst stage")]


def badges(app: AppTest) -> str:
    return " ".join(m.value for m in app.markdown)


def finished(app: AppTest) -> AppTest:
    """The page after the jobs that it started."""
    for job in list(jobs.registry()._jobs.values()):
        deadline = time.monotonic() + 120
        while job.running and time.monotonic() < deadline:
            time.sleep(0.1)
        # The page cancels a measurement itself where its strengths were changed meanwhile.
        assert job.status().state in ("done", "cancelled"), job.status().error
    return check(app.run())


def test_it_says_what_removal_is_and_which_examples_are_shown(open_page, measured) -> None:
    app = check(open_page(measured.parent, LINK, PAGE))
    said = words(app)
    assert "Removal is an edit of the weights" in said and "estimate" not in said
    # Nothing was chosen automatically, so there is one number: that of the whole set.
    assert "Figures are of all 894 images of set test" in said
    assert "Nothing is taken out yet" in said
    assert strengths(app) == dict.fromkeys(("pretrain", "shortcut", "mislabelled", "adapt"), 0)


def test_what_is_shown_is_called_what_it_is(open_page, measured) -> None:
    replayed = words(check(open_page(measured.parent, f"{LINK}&remove-1=100", PAGE)))
    assert "This is the model that training without shortcut gives, by replay." in replayed
    assert "guided by an estimate" not in replayed and "not a cure" not in replayed
    partly = words(check(open_page(measured.parent, f"{LINK}&remove-1=75", PAGE)))
    assert "an edit between models that were really trained" in partly and "not a cure" in partly


def test_a_last_stage_that_is_taken_out_whole_is_no_estimate(open_page, measured) -> None:
    link = f"{LINK}&estimator=task-vector&remove-3=100"
    said = words(check(open_page(measured.parent, link, PAGE)))
    assert "This is the model that training without adapt gives." in said
    assert (
        "estimate" not in said
        and "There is nothing to check, because it is exact. The last stage" in said
    )


def test_one_number_has_one_truth(open_page, measured) -> None:
    """By hand it is that of the headline; the preset's is told apart where it stands."""
    run = open_run(measured)
    table = load_result(run, "test", "effects", "replay").table
    own = table[(table["stage"] == "shortcut") & (table["behaviour"] == table["behaviour"].iloc[0])]
    own = own[own["example_id"].str.startswith("stamped")]
    labels = run.evaluation_set("test").table().set_index("example_id")["label"]
    label = own["example_id"].map(labels)
    right = [100 * (own[name] == label).mean() for name in ("prediction", "prediction_without")]
    app = check(open_page(measured.parent, f"{LINK}&remove-1=100", PAGE))
    metrics = {metric.label: metric for metric in app.metric}
    stamped = metrics["Accuracy, stamped \\(worst before\\)"]
    assert stamped.value == f"{right[1]:.1f} %"
    assert stamped.delta == f"{right[1] - right[0]:+.1f} points"
    app = check(open_page(measured.parent, LINK, PAGE))
    said = words(press(app, "Remove the worst stage for stamped images"))
    assert "on the 454 held-back images. On all 894" in said
    assert f"stamped {right[0]:.1f} % before, {right[1]:.1f} % after" in said
    assert "validation part (440 images)" in said and "report part (454 images)" in said


def test_the_preset_takes_out_the_stage_with_the_planted_stamp(open_page, measured) -> None:
    app = check(open_page(measured.parent, LINK, PAGE))
    assert "answers stamped images worst; choose another group above" in words(app)
    app = press(app, "Remove the worst stage for stamped images")
    assert strengths(app) == {"pretrain": 0, "shortcut": 100, "mislabelled": 0, "adapt": 0}
    assert "exact: measured" in badges(app)
    said = words(app)
    changed, mended, broken = map(
        int, re.search(r"(\d+) answers changed: (\d+) mended .*, (\d+) broken", said).groups()
    )
    assert mended > 3 * broken and mended + broken <= changed
    metrics = {metric.label: metric for metric in app.metric}
    delta = metrics["Accuracy, stamped \\(worst before\\)"].delta
    assert float(delta.split()[0]) > 20
    assert float(metrics["Gap, clean to stamped"].delta.split()[0].replace("−", "-")) < -20


def test_the_preset_is_not_offered_where_nothing_tells_which_stage_is_worst(
    open_page, measured, monkeypatch
) -> None:
    # As where a group is so small that all of its examples are in the report part.
    monkeypatch.setattr(edited_models, "report_rows", lambda *_: np.ones(894, dtype=bool))
    app = check(open_page(measured.parent, f"{LINK}&group=stamped", PAGE))
    assert "No labelled example of stamped is in the validation part" in words(app)
    assert not offers(app)


def test_without_labels_no_edit_is_chosen_by_the_page(open_page, short_chat: Path) -> None:
    """Nothing says what serves a group of prompts better, so nothing is offered that would ask."""
    app = check(open_page(short_chat, "run=chat&by=group&remove-mode=Targeted", PAGE))
    said = words(app)
    assert not offers(app) and "Targeted" not in said and "Presets" not in said
    assert "Nothing is taken out yet. Raise a strength to see which answers change." in said
    assert "None of these examples has a label" in said


def test_figures_of_a_strength_that_was_computed_are_exact_at_once(open_page, measured) -> None:
    link = f"{LINK}&remove-1=75"
    app = check(open_page(measured.parent, link, PAGE))
    assert strengths(app)["shortcut"] == 75
    alts = [figure["alt"] for figure in figures(app)]
    assert "exact: measured" in badges(app) and "a preview" not in badges(app)
    assert any("Confusion matrix of the edited" in alt for alt in alts)
    assert any("Calibration of final model and edited" in alt for alt in alts)


def test_a_large_model_shows_a_preview_while_a_job_measures(
    open_page, measured, monkeypatch
) -> None:
    monkeypatch.setattr(edited_models, "_AT_ONCE", 0)
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, *_, **__: started.append(arguments))
    app = check(open_page(measured.parent, f"{LINK}&remove-1=60&remove-2=35", PAGE))
    assert "a preview, interpolated between computed strengths" in badges(app)
    assert "exact: measured" not in badges(app)
    assert all("≈" in metric.value for metric in app.metric)
    (arguments,) = started
    assert arguments[:6] == ("remove", str(measured), "--set", "test", "--estimator", "replay")
    assert arguments[6:10] == ("--stage", "shortcut", "--strength", "0.6")


def test_every_flipped_answer_links_to_its_example(open_page, measured) -> None:
    app = check(open_page(measured.parent, f"{LINK}&remove-1=100", PAGE))
    table = next(d.value for d in app.dataframe if "change" in d.value)
    assert len(table) == 12 and set(table["change"]) <= {"✓ mended", "✗ broken", "other"}
    for link in table["example"]:
        query = dict(parse_qsl(link.removeprefix("Examples?")))
        assert (query["run"], query["set"]) == ("digits", "test")
        assert re.fullmatch(r"(clean|stamped)-\d{3}", query["example"])


@pytest.mark.slow
def test_an_edit_is_settled_by_replay(open_page, measured, tmp_path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "home" / "digits"))
    for file in (folder / measurements.FOLDER).iterdir():
        file.unlink()
    link = f"{LINK}&estimator=task-vector&remove-1=100"
    app = check(open_page(folder.parent, link, PAGE))
    assert "the edit above only estimates it" in words(app)
    assert "This is an edit guided by an estimate" in words(app)
    app = finished(press(app, "Check by replay"))
    said = words(app)
    assert "Settled: the edited model and the model that was really trained without" in said
    assert any("replay without shortcut" in figure["alt"] for figure in figures(app))
    app = check(open_page(folder.parent, f"{LINK}&remove-1=100", PAGE))
    assert "This edit is the replay itself" in words(app)


@pytest.mark.slow
def test_a_targeted_edit_is_searched_shown_and_saved(open_page, measured, tmp_path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "home" / "digits"))
    app = check(open_page(folder.parent, f"{LINK}&remove-mode=Targeted", PAGE))
    assert next(m.value for m in app.multiselect) == ["shortcut"]
    app = finished(press(app, "Find the smallest edit"))
    said = words(app)
    assert "Found on the validation part" in said and "exact: measured" in badges(app)
    assert any("Strength by layer. shortcut" in figure["alt"] for figure in figures(app))
    app = finished(press(app, "Save"))
    (saved,) = (folder.parent / "edited").iterdir()
    assert "layers" in json.loads((saved / "stagelens_edit.json").read_text())
    assert {"README.md", "config.json", "model.safetensors"} <= {f.name for f in saved.iterdir()}
    app = press(app, "Save")
    assert "nothing is ever overwritten" in words(app)


def test_a_name_that_leads_elsewhere_is_refused(open_page, measured) -> None:
    app = check(open_page(measured.parent, f"{LINK}&remove-1=100", PAGE))
    next(t for t in app.text_input if t.label == "Name of the folder").set_value("../elsewhere")
    app = press(app, "Save")
    assert "is not a usable name" in words(app)
    assert not (measured.parent / "edited").exists()


def test_a_refused_stage_has_no_strength(open_page, measured, tmp_path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "home" / "digits"))
    run = open_run(folder)
    result = load_result(run, "test", "effects", "replay")
    assert result is not None
    stages = [
        t.model_copy(update={"trust": "refused", "reason": "No batches."})
        if t.stage == "shortcut"
        else t
        for t in result.facts.stages
    ]
    facts = result.facts.model_copy(update={"stages": stages})
    save_result(run, type(result)(facts, result.table))
    app = check(open_page(folder.parent, LINK, PAGE))
    slider = next(s for s in app.slider if s.label == "Strength of shortcut")
    assert slider.disabled
