"""What the tabs below an example show: when, which data, and examples side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from stagelens.analyses.contributions.computing import contribute
from stagelens.analyses.contributions.contribution_table import (
    Question,
    Stored,
    contributions_path,
)
from stagelens.analyses.contributions.horizon_table import SHARE, HorizonFacts, horizons_path
from stagelens.analyses.without_data.chosen import Chosen
from stagelens.analyses.without_data.first_order import first_order
from stagelens.effects.results import load_result
from stagelens.runs import fact_tables
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from stagelens.wording.numbers import signed_text
from tests.pages.reading import check, figures, words
from tests.support.made_checks import store_check

PAGE = "pages/1_Examples.py"
LINK = "run=digits&set=mixed-up&measure=margin&estimator=replay"
STAGES = ["pretrain", "shortcut", "mislabelled", "adapt"]


@pytest.fixture(scope="module")
def effects(demo: Path) -> pd.DataFrame:
    result = load_result(open_run(demo), "mixed-up", "effects", "replay")
    assert result is not None
    return result.table[result.table["behaviour"] == "margin"]


@pytest.fixture(scope="module")
def hurt(effects: pd.DataFrame) -> str:
    """The example that the stage mislabelled hurts most."""
    rows = effects[effects["stage"] == "mislabelled"]
    return str(rows.loc[rows["effect"].idxmin(), "example_id"])


@pytest.fixture(scope="module")
def asked(demo: Path, hurt: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stored]:
    """A copy of the demo that was asked about that example, and the answer."""
    path = Path(shutil.copytree(demo, tmp_path_factory.mktemp("home") / "digits"))
    question = Question(ids=(hurt,))
    return path, contribute(open_run(path), "mixed-up", question, "margin", since="mislabelled")


def test_without_an_answer_the_way_to_it_is_offered(open_page, demo_copy: Path, hurt: str) -> None:
    link = f"{LINK}&example={hurt}&look=When&within=adapt"
    app = check(open_page(demo_copy.parent, link, PAGE))
    (path,) = figures(app)
    assert path["alt"].startswith("Margin observed. base: ") and "after adapt: " in path["alt"]
    assert "through the 15 recorded steps" in words(app) and "Predicted: " in words(app)
    button = next(b for b in app.button if b.label == "Compute the contributions")
    check(button.click().run())
    job = jobs.find(
        (
            *("contributions", str(demo_copy), "--set", "mixed-up", "--behaviour", "margin"),
            *("--since", "adapt", f"--example={hurt}"),
        )
    )
    assert job is not None
    job._reaper.join(400)
    assert job.status().state == "done", job.log()
    assert "its 15 steps together" in words(check(app.run()))


def test_steps_are_held_against_the_stages_effect(
    open_page, asked: tuple[Path, Stored], effects: pd.DataFrame, hurt: str
) -> None:
    path, found = asked
    app = check(open_page(path.parent, f"{LINK}&example={hurt}&look=When&within=mislabelled", PAGE))
    effect = effects.set_index(["example_id", "stage"]).loc[(hurt, "mislabelled"), "effect"]
    total = found.linearised("mislabelled")
    behaviour = found.facts.behaviour.behaviour()
    said = words(app)
    for name, value in (
        ("effect of mislabelled", effect),
        ("its 42 steps together", total),
        ("not explained to first order", effect - total),
    ):
        assert f"{name} {signed_text(value, behaviour)}" in re.sub(r"\s+", " ", said)
    assert "● exact, by replay" in said
    observed, steps = figures(app)
    assert observed["alt"].startswith("Margin observed.")
    assert f"together {signed_text(total, behaviour)}, rough; the stage's effect is" in steps["alt"]
    bars = next(trace for trace in steps["data"] if trace["type"] == "bar")
    assert len(bars["customdata"]) == 42
    assert "after step 11 of mislabelled: " in observed["alt"]  # a checkpoint
    assert [b.label for b in app.button].count("Estimate how far it holds") == 1


def test_how_far_first_order_holds(open_page, asked: tuple[Path, Stored], hurt: str) -> None:
    path, found = asked
    run = open_run(path)
    examples, facts = run.evaluation_set("mixed-up"), found.facts
    errors = [0.01, 0.02, 0.9, 3.0]
    link = f"{LINK}&example={hurt}&within=mislabelled"
    assert any(
        one.label == "Estimate how far it holds"
        for one in check(open_page(path.parent, f"{link}&look=Which+data", PAGE)).button
    )
    table = pd.DataFrame(
        {"horizon": pd.array([1, 4, 42, None], dtype="Int64"), "windows": 1, "first_order": 0.1,
         "neglected": 0.01, "expected_error": errors, "gradients": 10.0}
    )  # fmt: skip
    told = HorizonFacts(
        run_digest=facts.run_digest, set_digest=facts.set_digest, stage="mislabelled", count=1,
        behaviour=facts.behaviour, share=SHARE, left_out=20, steps=42, later=15, seconds=1.0,
    )  # fmt: skip
    place = horizons_path(run, examples, "margin", [hurt], "mislabelled", SHARE)
    fact_tables.write(place, table, told)
    smooth = store_check(run, "mislabelled", "mixed-up", 1.0)
    app = check(open_page(path.parent, f"{link}&look=When", PAGE))
    curve = figures(app)[-1]
    assert "4 steps later: about 2 %, nine of ten at most " in curve["alt"]
    assert curve["alt"].endswith("the final model: about 300 %.")  # beyond what was measured
    assert curve["data"][0]["marker"]["symbol"] == ["square"] * 2 + ["diamond-open"] * 2
    tall = curve["data"][0]["error_y"]["array"]
    assert tall[1] > 0 and tall[3] == 0
    assert "runs that it was not chosen on" in re.sub(r"\s+", " ", words(app))
    for look in ("When", "Which+data"):
        warned = check(open_page(path.parent, f"{link}&look={look}", PAGE)).warning
        beyond = [str(each.value) for each in warned if "first order neglects" in str(each.value)]
        assert len(beyond) == 1 and "holds for the effect 4 steps later" in beyond[0]
        assert "no expected errors as large were measured" in beyond[0]
    # The graver check is told first, and smoothness is no pass by itself.
    app = check(open_page(path.parent, f"{link}&look=Which+data", PAGE))
    said = re.sub(r"\s+", " ", words(app))
    assert "The warning above counts. The smoothness check passes" in said
    assert re.search(r"it says nothing of the size, or of .* alone\.", said)
    assert any("Hurt most" in each.value for each in app.subheader)
    fact_tables.write(place, table.assign(expected_error=3.0), told)
    app = check(open_page(path.parent, f"{link}&look=Which+data", PAGE))
    assert any("not even of the next step" in str(each.value) for each in app.warning)
    assert not any("Hurt most" in each.value for each in app.subheader)
    for each in (place, smooth):
        each.unlink()


def test_the_training_examples_that_helped_and_hurt_are_shown(
    open_page, asked: tuple[Path, Stored], hurt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = asked
    link = f"{LINK}&example={hurt}&look=Which+data&within=mislabelled"
    app = check(open_page(path.parent, link, PAGE))
    rows = found.part("example", "mislabelled")
    said = re.sub(r"\s+", " ", words(app))
    behaviour = found.facts.behaviour.behaviour()
    carried = found.part("carried", "mislabelled")["value"].item()
    assert f"carried momentum and decay: {signed_text(carried, behaviour)}" in said
    worst, best = rows.iloc[-1], rows.iloc[0]
    for side, row in (("Hurt most", worst), ("Helped most", best)):
        card = said[said.index(f"{signed_text(row['value'], behaviour)}") :][:200]
        assert side in said or any(side in each.value for each in app.subheader)
        assert f"label {row['label']}" in card and f"before the stage {row['before']}" in card
    differ = rows["label"] != rows["answer"]
    assert f"in the whole stage {differ.sum()} of {len(rows)}" in said
    bodies = [e.proto.body for e in app.get("html")]
    assert sum(body.count("alt='A training image'") for body in bodies) == 16
    app.toggle(key="all-data").set_value(True)
    bodies = [e.proto.body for e in check(app.run()).get("html")]
    assert sum(body.count("alt='A training image'") for body in bodies) == 40
    # Another kind of curvature has an answer of its own.
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    app.selectbox(key="curvature").set_value("gauss-newton")
    next(b for b in check(app.run()).button if b.label == "Compute the contributions").click()
    check(app.run())
    assert started[0][-1] == "--curvature=gauss-newton" and f"--example={hurt}" in started[0]
    assert app.selectbox(key="curvature").value == "gauss-newton"


def test_rankings_are_not_shown_where_a_check_says_that_first_order_says_nothing(
    open_page, asked: tuple[Path, Stored], hurt: str, tmp_path: Path, monkeypatch
) -> None:
    path = Path(shutil.copytree(asked[0], tmp_path / "digits"))
    run, started = open_run(path), []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    link = f"{LINK}&example={hurt}&look=Which+data&within=mislabelled"
    app = check(open_page(path.parent, link, PAGE))
    check(app.button(key="check-smoothness-which").click().run())
    smoothness = ("smoothness", str(path), "--stage", "mislabelled", "--set", "mixed-up")
    assert started == [smoothness]
    for goes_on, smooth in ((-1.0, False), (1.0, True)):
        store_check(run, "mislabelled", "mixed-up", goes_on)
        app = check(open_page(path.parent, link, PAGE))
        said = re.sub(r"\s+", " ", words(app))
        assert f"smoothness {goes_on:.2f}" in said
        titles = [each.value for each in app.subheader]
        assert any("Hurt most" in title for title in titles) == smooth
        assert "Without some of them" in titles
        assert ("First order says nothing here" in said) != smooth
        assert ("those that hurt most" in app.selectbox(key="without-kind").options) == smooth


@pytest.mark.parametrize(
    ("filters", "options"),
    [
        ("", ()),
        ("label=4", ("--group=label=4",)),
        ("label=9&group=digit+9", ("--group=group=digit 9", "--group=label=9")),
        ("q=clean-05", ()),
    ],
)
def test_the_mean_of_what_the_filters_leave_is_asked_about_as_a_group_where_it_is_one(
    open_page,
    demo: Path,
    effects: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    filters: str,
    options: tuple[str, ...],
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda arguments, title: started.append(arguments))
    ids = [name for name in effects["example_id"].unique() if "clean-05" in name]
    options = options if "q=" not in filters else tuple(f"--example={name}" for name in ids)
    mean = "look=Which+data&within=adapt&about=Mean+of+the+examples+shown"
    app = open_page(demo.parent, f"{LINK}&{filters}&example=clean-044&sort=id&{mean}", PAGE)
    next(b for b in check(app).button if b.label == "Compute the contributions").click()
    check(app.run())
    at = ("contributions", str(demo), "--set", "mixed-up", "--behaviour", "margin")
    assert started == [(*at, "--since", "adapt", *options)]


def side_by_side(app: AppTest) -> list[str]:
    named = app.query_params.get("beside", [])
    return [named] if isinstance(named, str) else named


def test_examples_are_put_side_by_side_and_taken_away_again(
    open_page, demo: Path, effects: pd.DataFrame, hurt: str
) -> None:
    other = next(name for name in effects["example_id"] if name != hurt)
    link = f"{LINK}&example={hurt}&look=Side+by+side&beside={other}"
    app = check(open_page(demo.parent, link, PAGE))
    next(b for b in app.button if b.label == "Add to side by side").click()
    said = words(check(app.run()))
    assert side_by_side(app) == [other, hurt]
    largest = effects[effects["example_id"].isin([hurt, other])]["effect"].abs().max()
    widths = [
        float(width)
        for e in app.get("html")
        for width in re.findall(r"width:([\d.]+)%;background", e.proto.body)
    ]
    assert len(widths) == 2 * len(STAGES) and max(widths) == 50.0
    effect = effects.set_index(["example_id", "stage"])["effect"]
    expected = [50 * abs(effect[name, s]) / largest for name in (other, hurt) for s in STAGES]
    assert widths == pytest.approx(expected, abs=0.01)
    assert said.count("Without ") == 2  # one for each, of its strongest stage
    app.button(key=f"beside-without-{other}").click()
    check(app.run())
    assert side_by_side(app) == [hurt]


def test_a_link_compares_at_most_five_examples_of_its_set(
    open_page, demo: Path, effects: pd.DataFrame
) -> None:
    ids = effects["example_id"].unique()[:6].tolist()
    link = f"{LINK}&example={ids[5]}&look=Side+by+side&beside=nope"
    app = open_page(demo.parent, link, PAGE)
    assert "Nothing here yet" in words(check(app)) and side_by_side(app) == []
    app.query_params["beside"] = ["nope", *ids]
    check(app.run())
    assert side_by_side(app) == ids[:5]
    button = next(b for b in app.button if b.label == "Add to side by side")
    assert button.disabled


@pytest.mark.parametrize(("name", "said"), [("comments", "label"), ("prompts", "Completion")])
def test_training_texts_are_shown_as_text(
    open_page, text_runs: Path, tmp_path: Path, name: str, said: str
) -> None:
    path = Path(shutil.copytree(text_runs / name, tmp_path / name))
    run = open_run(path)
    behaviour = run.task.behaviour_kinds[0].name
    example = run.evaluation_set("test").examples(1, 2)[0].example_id
    found = contribute(run, "test", Question(ids=(example,)), behaviour, since="polish")
    texts = [json.loads(each) for each in found.part("example", "polish")["content"].dropna()]
    assert texts
    link = f"run={name}&set=test&behaviour={behaviour}&example={example}&within=polish"
    app = check(open_page(tmp_path, f"{link}&look=Which+data", PAGE))
    shown = words(app)
    assert said in shown and "carried momentum and decay" in shown
    for content in (texts[0], texts[-1]):
        assert all(text in shown for text in content.values())
    # Means over tokens have a first order too. What lacks it is shown, and computed again.
    assert (
        found.complete
        and not found.facts.no_rest
        and np.isfinite(first_order(found, Chosen("polish", ("0-0",)), "rest")[0])
    )
    again = "Compute it again"
    assert again not in [button.label for button in app.button]
    where = contributions_path(run, run.evaluation_set("test"), behaviour, [example], "polish")
    old = found.table[found.table["part"] != "batch"].drop(columns=["micros", "terms", "share"])
    fact_tables.write(where, old, found.facts)
    assert again in [button.label for button in check(app.run()).button]


@pytest.mark.slow
def test_the_answer_without_some_examples_stands_beside_first_order(
    open_page, asked: tuple[Path, Stored], hurt: str
) -> None:
    path, found = asked
    link = f"{LINK}&example={hurt}&look=Which+data&within=mislabelled"
    app = check(open_page(path.parent, link, PAGE))
    said = words(app)
    assert "it is not a new training without them" in said
    chosen = f"that hurt example {hurt} most"
    assert f"To first order these 20 examples {chosen} made for" in said
    rows = found.part("example", "mislabelled").nsmallest(20, "value")
    ids = {f"{step}-{place}" for step, place in zip(rows["step"], rows["position"], strict=True)}
    (button,) = [each for each in app.button if each.label.startswith("Replay without them")]
    check(button.click().run())
    (file,) = (path / "results" / "training-data").glob("ids-*.txt")
    assert set(file.read_text().split("\n")) == ids
    job = jobs.find(
        (
            *("without-data", str(path), "--stage", "mislabelled", "--set", "mixed-up"),
            *("--divisor", "rest", "--ids", str(file), "--words", chosen),
        )
    )
    assert job is not None
    job._reaper.join(400)
    assert job.status().state == "done", job.log()
    said = words(check(app.run()))
    assert (
        f"Without 20 examples of mislabelled {chosen}, the margin would be" in said
        and "● exact" in said
    )
    assert f"120 of {found.part('example', 'mislabelled')['uses'].sum():,} uses" in said
    assert "Without 20 training examples of mislabelled the answer " in said
    # Other examples are another question; a filter is asked by its text.
    kind = next(each for each in app.selectbox if each.label == "Leave out")
    check(kind.select("a filter").run())
    box = next(each for each in app.text_input if each.label == "Filter")
    check(box.set_value("label=").run())
    assert any("a value is missing" in each.value for each in app.error)
    check(box.set_value("label=4").run())
    assert "examples labelled 4 made for" in words(app)
