"""Draws of the recipe on the pages: intervals at once, and the choice of run or recipe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stagelens.effects.draws import interval_over_draws
from stagelens.runs.run import open_run
from stagelens.ui.server import jobs
from tests.pages.reading import boards, check, figures, words
from tests.support.coalitions import store
from tests.support.made_draws import write_drawn_coalitions, write_draws

TRUST = "pages/4_Trust.py"
RECIPE = "chance=of+this+recipe"


@pytest.fixture
def drawn(demo_copy: Path) -> Path:
    """The demo with five draws, in which effects are 1.6 to 2.4 times those of the run."""
    write_draws(open_run(demo_copy), "test", [1.6, 1.8, 2.0, 2.2, 2.4])
    return demo_copy


def test_one_run_says_that_nothing_is_known_of_others_and_how_to_know(open_page, demo) -> None:
    said = words(check(open_page(demo.parent, "run=digits&estimator=task-vector")))
    assert "One run: whether it would happen again is not known." in said
    assert "of this recipe" not in said
    app = check(open_page(demo.parent, "run=digits", TRUST))
    assert "One run: not known." in words(app)
    assert any("stagelens draws" in code.value for code in app.code)


def test_a_headline_has_its_interval_at_once(open_page, drawn: Path) -> None:
    said = words(check(open_page(drawn.parent, "run=digits&estimator=replay")))
    pattern = (
        r"Without shortcut, accuracy on stamped images would be (\d+) points higher in this run "
        r"\( ● exact, by replay ; 447 images\); of this recipe \d+ points higher on average, "
        r"95 %: (\d+) to (\d+) points higher over 5 redraws; "
        r"this one differs by \d+ points, which is (?:not )?unusual: single trainings"
    )
    found = re.search(pattern, said.replace("\xa0", " "))
    assert found is not None
    effect, low, high = map(int, found.groups())
    made = interval_over_draws([effect * each for each in (1.6, 1.8, 2.0, 2.2, 2.4)])
    assert (low, high) == (pytest.approx(made.low, abs=2), pytest.approx(made.high, abs=2))
    assert "with an interval over 5 redraws of the recipe that leaves out zero" in said
    assert "In brackets: the interval" not in said  # brackets hold the count alone


def test_of_the_recipe_bars_and_sentences_are_means_over_draws(open_page, drawn: Path) -> None:
    link = "run=digits&estimator=replay"
    run, recipe = (check(open_page(drawn.parent, f"{link}{more}")) for more in ("", f"&{RECIPE}"))
    assert run.segmented_control(key="chance").value == "in this run"
    said = words(recipe).replace("\xa0", " ")
    assert "Means over 5 redraws of this recipe" in said
    assert re.search(r"points higher, 95 %: \d+ to \d+ over 5 redraws \(447 images\)", said)
    effects = [
        next(one.value for one in app.dataframe if "stage effect" in one.value.columns)
        for app in (run, recipe)
    ]
    of_run, of_recipe = (each.query("group == 'all'")["stage effect"] for each in effects)
    assert of_recipe.tolist() == pytest.approx((2 * of_run).tolist())
    assert figures(run)[0]["alt"] != figures(recipe)[0]["alt"]
    # Five draws, each fifth apart: intervals are nearly as wide as the means, and leave out zero.
    trusts = next(one.value for one in recipe.dataframe if "stage effect" in one.value.columns)
    assert set(trusts["trust"]) == {"rough"}  # of known sign, so that they are stated
    assert "rough (±48 % over draws)" in said
    shown = [boards(app)[0] for app in (run, recipe)]
    own = ["are of this run, not of its recipe" in board["title"] for board in shown]
    assert own == [False, True]  # its models answer as before, and it says so
    # What lies between stages is known of the recorded run alone, and is called so.
    note = "Of this run: draws of the recipe keep no model between stages"
    assert said.count(note) == 2 and note not in words(run)
    own, other = (
        next(one.value for one in app.dataframe if "right because" in one.value.columns)
        for app in (run, recipe)
    )
    pd.testing.assert_frame_equal(own, other)


def test_an_effect_whose_interval_holds_zero_is_no_finding(open_page, demo_copy: Path) -> None:
    write_draws(open_run(demo_copy), "test", [-1.0, 1.0, 0.2, 0.4])
    app = check(open_page(demo_copy.parent, "run=digits&estimator=replay"))
    said = words(app)
    assert "No stage stands out on this behaviour." in said
    assert "The interval over 4 redraws of the recipe holds zero, so no finding" in said
    assert "so it is not known to come again" in said  # of the demo's story
    (alt, *_) = [one["alt"] for one in figures(app)]
    assert "the interval over 4 redraws holds zero" in alt and "training noise" not in alt
    app = check(open_page(demo_copy.parent, f"run=digits&estimator=replay&{RECIPE}"))
    (alt, *_) = [one["alt"] for one in figures(app)]
    assert alt.count("no clear change: the interval includes zero") == 4
    assert ": credit" not in alt


def test_no_effect_on_a_gap_is_named_whose_interval_holds_zero(open_page, demo_copy: Path) -> None:
    page = "pages/2_Spurious_features.py"
    link = "run=digits&estimator=replay"
    before = words(check(open_page(demo_copy.parent, link, page)))
    write_draws(open_run(demo_copy), "test", [-1.0, 1.0, 0.2, 0.4])
    after = words(check(open_page(demo_copy.parent, link, page)))
    assert "no stage changes it by more than chance" in after
    assert "no stage changes it by more than chance" not in before
    assert "so does its interval over draws of the recipe" in after


def test_two_draws_give_no_interval_and_govern_nothing(open_page, demo_copy: Path) -> None:
    write_draws(open_run(demo_copy), "test", [-1.0, 1.0])
    said = words(check(open_page(demo_copy.parent, "run=digits&estimator=replay")))
    assert "No stage stands out" not in said and "over 2 redraws" not in said
    app = check(open_page(demo_copy.parent, f"run=digits&estimator=replay&{RECIPE}"))
    assert "chance" not in {one.key for one in app.segmented_control}
    assert "Means over" not in words(app)
    said = words(check(open_page(demo_copy.parent, "run=digits", TRUST)))
    assert "Fewer than 3 give no interval." in said


def test_the_trust_page_shows_every_kind_of_draw_with_its_spread(open_page, drawn: Path) -> None:
    write_draws(open_run(drawn), "test", [0.9, 1.0, 1.1], "given earlier")
    app = check(open_page(drawn.parent, "run=digits", TRUST))
    said = words(app)
    assert "The table is of all images." in said
    assert "5 redraws of this recipe: batches drawn with replacement" in said
    assert "3 redraws given the earlier stages as recorded: batches in other orders" in said
    assert "the weights that the first stage began from are those recorded" in said
    assert "In its place stand the intervals over 5 redraws of this recipe" in said
    assert "Mean effects on the accuracy beyond the noise: pretrain, " in said
    assert "Noise not known" not in said and "within training noise" not in said
    # Nothing that is shown rests on the estimate, whose verdicts are grey.
    assert "coarse-replay 1/4 is not in use: the other pages show effects by replay." in said
    badges = [one.value for one in app.markdown if "-badge[" in one.value]
    assert badges and all(one.startswith(":gray-badge[") for one in badges)
    assert "under a second" in said and " 0 ms" not in said
    tables = [one.value for one in app.dataframe if "mean over draws" in one.value.columns]
    assert len(tables) == 2
    for one in tables:
        assert (one["95 % low"] <= one["mean over draws"]).all()
        assert (one["mean over draws"] <= one["95 % high"]).all()
        assert (one["sd over draws"] > 0).all() and set(one["finding"]) == {"yes"}


def test_of_the_recipe_nothing_of_this_run_alone_is_told_as_its(open_page, drawn: Path) -> None:
    shutil.rmtree(drawn / "results" / "coalitions", ignore_errors=True)
    store(open_run(drawn), "test")
    link = "run=digits&estimator=replay"
    assert "Together these effects are" in words(check(open_page(drawn.parent, link)))
    link += f"&{RECIPE}"
    assert "Together these effects are" not in words(check(open_page(drawn.parent, link)))
    said = words(check(open_page(drawn.parent, f"{link}&credit=Share")))
    assert "These numbers are of this run alone" in said


def test_shares_of_the_recipe_have_intervals_over_draws(
    open_page, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(jobs, "start", lambda words, title, **_: started.append(tuple(words)))
    link = f"run=digits&wall=all&measure=margin&{RECIPE}&credit=Share"
    app = check(open_page(drawn.parent, link))
    assert "5 draws of every set of stages, 75 stage passes" in words(app)
    (button,) = [one for one in app.button if one.label == "Compute shares of the recipe"]
    check(button.click().run())
    words_asked = ("--set", "test", "--number", "5", "--shares")
    assert started == [("draws", str(drawn), *words_asked)]
    write_drawn_coalitions(open_run(drawn), "test", [0.8, 0.9, 1.0, 1.1, 1.2])
    app = check(open_page(drawn.parent, link))
    said = words(app)
    assert "These numbers are of this run alone" not in said
    assert "Over 5 redraws of the recipe, training as a whole made the mean margin on all" in said
    # Of 2 that the first does and 1 that the second takes away with it, half each.
    assert "pretrain +1.50 (95 %: " in said and "shortcut −0.50 (95 %: " in said
    assert "shortcut does its harm only because pretrain came before" in said
    assert "(95 % over 5 redraws of the recipe) leaves out zero" in said
    rows = next(one.value for one in app.dataframe if "alone" in one.value.columns)
    assert (rows["low"][:2] < rows["share"][:2]).all() and (
        rows["share"][:2] < rows["high"][:2]
    ).all()
    assert rows["share"].sum() == pytest.approx(1.0)
    waterfall = figures(app)
    assert any(one["alt"].startswith("Share of each stage in the margin") for one in waterfall)
    seen = words(check(open_page(drawn.parent, link.replace("Share", "Seen+after"))))
    assert "These numbers are of this run alone" not in seen
