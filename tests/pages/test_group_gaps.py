"""Group gaps on the page *Spurious features*, on the real demo."""

from __future__ import annotations

from pathlib import Path

from stagelens.analyses.spurious.gaps import group_gaps
from stagelens.effects.results import load_result
from stagelens.runs.run import open_run
from tests.pages.reading import check, drawn, figures, labels, words

PAGE = "pages/2_Spurious_features.py"
STAGES = ["pretrain", "shortcut", "mislabelled", "adapt"]


def test_the_gap_is_told_with_and_without_the_stage_that_made_it(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&estimator=replay", PAGE))
    result = load_result(open_run(demo), "test", "effects", "replay")
    assert result is not None
    gaps = group_gaps(result.table, STAGES, ["group"]).metrics.gaps.set_index("model")["gap"]
    said = words(app)
    assert f"images is {100 * gaps['final model']:.0f} points" in said.replace(" ", " ")
    assert "without shortcut it would be" in said and "exact" in said
    assert gaps["without shortcut"] < gaps["final model"] / 2
    assert "Training noise not known" in said
    assert "Accuracy of 2 groups under every model. final model: clean" in drawn(app)[0]


def test_groups_cross_with_the_label_and_errors_stay_by_group(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&crossed=true&left-out=shortcut", PAGE))
    assert "Accuracy of 20 groups" in drawn(app)[0] and "clean ·" in drawn(app)[0]
    assert [f["alt"].split(":")[0] for f in figures(app)] == [
        "Errors by class, final model",
        "Errors by class, without shortcut",
    ]
    assert len(figures(app)[0]["data"][0]["y"]) == 2


def test_the_gap_can_be_one_of_margins_and_of_the_label_alone(open_page, demo: Path) -> None:
    app = check(open_page(demo.parent, "run=digits&measure=margin", PAGE))
    assert "The gap in mean margin between" in words(app)
    app = check(open_page(demo.parent, "run=digits&by=label", PAGE))
    assert "Accuracy of 10 groups" in drawn(app)[0]
    assert "Cross label with the label" not in labels(app) and not figures(app)


def test_nonsense_in_the_link_is_ignored(open_page, demo: Path) -> None:
    link = "run=digits&gap=<b>&crossed=perhaps&errors=9&left-out=nobody"
    assert "The gap in accuracy between" in words(check(open_page(demo.parent, link, PAGE)))


def test_a_set_without_groups_says_what_it_lacks(open_page, demo_copy: Path) -> None:
    from stagelens.effects.computing import attribute
    from stagelens.runs.sets.writer import write_set
    from stagelens.tasks.image_classification import ImageClassification

    run = open_run(demo_copy)
    task = run.task
    assert isinstance(task, ImageClassification)
    images = [e.input["image"] for e in run.evaluation_set("test").examples()][:30]
    write_set(demo_copy, task, "bare", images=images)
    attribute(open_run(demo_copy), "bare", "task-vector")
    app = check(open_page(demo_copy.parent, "run=digits&set=bare", PAGE))
    assert "no labels, so no accuracy against labels." in words(app)
