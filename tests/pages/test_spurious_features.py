"""Features found without metadata, on the page and on the real demo."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stagelens
from stagelens.analyses.spurious.feature_table import FeatureFacts
from stagelens.analyses.spurious.features import find_features
from stagelens.analyses.spurious.ranking import strongest
from stagelens.analyses.spurious.representations import representations
from stagelens.contracts import RunError
from stagelens.effects.computing import attribute
from stagelens.effects.given_scores import Obtained, add_scores, with_direction
from stagelens.effects.results import load_result
from stagelens.runs import fact_tables
from stagelens.runs.logs import read_log
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from tests.pages.reading import check, figures, labels, words
from tests.support.hostile import MARKUP
from tests.support.small_texts import TEXTS
from tests.support.text_runs import record_comments, record_prompts

PAGE = "pages/2_Spurious_features.py"
LINK = "run=digits&estimator=task-vector&part=Found+without+metadata"


@pytest.fixture(scope="module")
def searched(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, with features looked for in the effects by task vector."""
    folder = tmp_path_factory.mktemp("searched") / "digits"
    shutil.copytree(demo, folder)
    find_features(open_run(folder), "test", "task-vector")
    return folder


@pytest.mark.slow
def test_the_search_starts_by_itself_and_its_result_is_shown(open_page, demo_copy: Path) -> None:
    app = check(open_page(demo_copy.parent, LINK, PAGE))
    job = jobs.find(("features", str(demo_copy), "--set", "test", "--estimator", "task-vector"))
    assert job is not None
    assert "Which features go with a stage's effect" in words(app)
    job._reaper.join(400)
    assert job.status().state == "done", job.log()
    check(app.run())
    assert "What is most closely associated with the effect of" in words(app)


@pytest.mark.slow
def test_a_feature_comes_with_its_figures_its_rules_and_its_examples(
    open_page, searched: Path
) -> None:
    app = check(open_page(searched.parent, f"{LINK}&stage=shortcut&kind=Patches", PAGE))
    said = words(app)
    assert "What is most closely associated with the effect of shortcut : the patch" in said
    assert "at least 10 of either" in said and "false discovery rate at most 5 %" in said
    assert "the training noise is not known" in said
    cards = [e.proto.body for e in app.get("html") if "stamped-" in e.proto.body]
    assert any("Examples?run=digits" in body and "border:2px solid" in body for body in cards)
    assert "Where the effect of shortcut on the margin sits" in figures(app)[0]["alt"]
    assert "without rows" in figures(app)[0]["alt"]


def test_columns_are_shown_only_where_they_are_asked_for(open_page, searched: Path) -> None:
    said = words(check(open_page(searched.parent, f"{LINK}&stage=shortcut", PAGE)))
    assert "Group = stamped" not in said
    link = f"{LINK}&stage=shortcut&kind=Columns"
    assert "Group = stamped" in words(check(open_page(searched.parent, link, PAGE)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("", "Shown are columns, which are metadata: of what needs none ("),
        ("&kind=Patches", "Features that pass are among other kinds: Columns ("),
    ],
)
def test_where_only_columns_pass_they_are_shown_or_named(
    open_page, searched: Path, tmp_path: Path, kind: str, said: str
) -> None:
    shutil.copytree(searched, tmp_path / "digits")
    for path in (tmp_path / "digits" / "results" / "features").glob("*.parquet"):
        facts, table = fact_tables.read(path, FeatureFacts, ("kind",)) or (None, None)
        assert facts is not None and table is not None
        passes = table["passes"] & (table["kind"] == "column")
        assert passes.any() and not passes.all()
        fact_tables.write(path, table.assign(passes=passes), facts)
    link = f"{LINK}&stage=shortcut{kind}"
    found = words(check(open_page(tmp_path, link, PAGE)))
    assert said in found and "nothing that was tested" not in found
    assert ("Group = stamped" in found) == (not kind)
    assert ("None of the patches that was tested goes with the effect" in found) == bool(kind)


def test_a_search_that_fails_says_why(open_page, demo_copy: Path) -> None:
    run = open_run(demo_copy)
    assert load_result(run, "test", "effects", "task-vector") is not None
    for path in next((demo_copy / "stages").glob("03-*")).glob("*.safetensors"):
        path.write_bytes(b"x" * path.stat().st_size)  # of its size, so that the run still opens
    app = check(open_page(demo_copy.parent, LINK, PAGE))
    job = jobs.find(("features", str(demo_copy), "--set", "test", "--estimator", "task-vector"))
    assert job is not None
    job._reaper.join(400)
    check(app.run())
    assert "The search for features failed" in app.error[0].value and "Try again" in labels(app)


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on texts; a set of 90 of them, half of which hold a word and markup."""
    path = record_comments(tmp_path_factory.mktemp("texts") / "comments", ("task-vector",))
    texts = [f"{TEXTS[n % 5]} {n}{f' barked {MARKUP[0]}' if n % 2 else ''}" for n in range(90)]
    with closing(stagelens.Recorder(path, open_run(path).task, resume=True)) as recorder:
        recorder.add_set("many", texts=texts, labels=["calm"] * 90)
    attribute(open_run(path), "many", "task-vector")
    return path


def test_each_text_is_grouped_by_its_own_vector(comments: Path, monkeypatch) -> None:
    """Texts pass through the model by length, in another order than they have."""
    run = open_run(comments)
    together = representations(run, run.evaluation_set("many"))
    monkeypatch.setattr("stagelens.analyses.spurious.representations.BATCH_SIZE", 1)
    alone = representations(run, run.evaluation_set("many"))
    assert together is not None and alone is not None and len(np.unique(alone, axis=0)) == 10
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_words_are_found_and_shown_in_their_texts(open_page, comments: Path) -> None:
    found = find_features(open_run(comments), "many", "task-vector")
    assert {"word", "cluster"} <= set(found.facts.kinds)
    by_stage = {s.stage: strongest(found, s.stage) for s in found.facts.stages}
    stage = next(s for s, rows in by_stage.items() if (rows["kind"] == "word").any())
    link = "run=comments&set=many&estimator=task-vector&part=Found+without+metadata"
    app = check(open_page(comments.parent, f"{link}&stage={stage}&kind=Words", PAGE))
    assert "What is most closely associated with the effect of" in words(
        app
    ) and "the word" in words(app)
    bodies = [e.proto.body for e in app.get("html")]
    assert any("target='_self'" in body and "<b>" in body for body in bodies)
    assert all("<script" not in body for body in bodies)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stage *habits* cost a score on prompts with a word, but not *general*."""
    path = record_prompts(tmp_path_factory.mktemp("judged") / "prompts", ())
    prompts = [f"{TEXTS[n % 5]} {n}{' barked' if n % 2 else ''}" for n in range(90)]
    inputs = {"prompt": prompts, "completion": [" surely" if n % 3 else " so" for n in range(90)]}
    with closing(stagelens.Recorder(path, open_run(path).task, resume=True)) as recorder:
        recorder.add_set("many", inputs=inputs)
    run, rows = open_run(path), Path(path.parent / "judged.csv")
    ids = run.evaluation_set("many").table([])["example_id"]
    for model, low in (("final", "barked"), ("without:habits", "-"), ("without:general", "barked")):
        scores = [float(low not in text) for text in prompts]
        pd.DataFrame({"id": ids, "prompt": prompts, "score": scores}).to_csv(rows, index=False)
        log = with_direction(read_log(rows), "higher", 0.0, 1.0, "", "judge")
        add_scores(run, log, model, "many", obtained=Obtained(estimator="task-vector"))
    return path


@pytest.mark.slow
def test_words_of_prompts_go_with_an_effect_on_a_score(open_page, judged: Path) -> None:
    run = open_run(judged)
    found = find_features(run, "many", "task-vector", score="score:judge")
    assert found.facts.behaviour.name == "score:judge"
    rows = strongest(found, "habits")
    word = rows[rows["kind"] == "word"].iloc[0]
    assert word["name"] == "barked" and word["mean_with"] == -1 and word["mean_without"] == 0
    assert strongest(found, "general").empty
    assert "surely" not in set(found.table["name"])  # a completion is not what was asked
    link = "run=prompts&set=many&measure=score:judge"
    app = check(open_page(judged.parent, f"{link}&part=Found+without+metadata", PAGE))
    said = words(app)
    assert "the word barked" in said and "judge score" in said and "100 points" in said
    for part, told in (
        ("Group+gaps", "Effects on them by group are there, too"),
        ("Where+in+the+input", "an answer's score is no sum over those"),
    ):
        app = check(open_page(judged.parent, f"{link}&part={part}", PAGE))
        assert told in words(app)
    with pytest.raises(RunError, match="it has score:judge"):
        find_features(run, "many", "task-vector", score="score:other")
