"""Models of draws answer and are scored as those of the run were."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from stagelens.contracts import RunError, Scorer, no_progress
from stagelens.effects.answers import answer
from stagelens.effects.computing import attribute
from stagelens.effects.draws import DrawnEffects
from stagelens.effects.given_scores import add_scores, with_direction
from stagelens.effects.scores import scored
from stagelens.effects.scoring_again import own_scores
from stagelens.effects.stored_scores import stored_scores
from stagelens.measuring.generation import Generation, generate
from stagelens.measuring.models import empty_model
from stagelens.measuring.scorers import find_scorer
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import drawn_models
from stagelens.report.scores import frame, score_rows
from stagelens.runs.logs import read_log
from stagelens.trust import drawing, one_draw
from stagelens.trust.draws import of_recipe, recipe_effects
from tests.support.text_runs import PROMPTS, STAGES, record_prompts

PATTERN = "se|T"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    """Answered, scored by a rule and from a log; drawn without answers, then with them."""
    path = record_prompts(tmp_path_factory.mktemp("drawn") / "run", ())
    run = stagelens.open_run(path)
    attribute(run, "test", "task-vector")
    how = Generation(max_tokens=6)
    scorer = find_scorer("regex", {"pattern": PATTERN, "better": "lower", "as": "habit"})
    scored(run, "test", answer(run, "test", how), how, scorer)
    ids, judged = run.evaluation_set("test").table([])["example_id"], path.parent / "judged.csv"
    pd.DataFrame({"id": ids, "prompt": PROMPTS, "score": [1, 0, 1, 0]}).to_csv(judged, index=False)
    log = with_direction(read_log(judged), "higher", 0.0, 1.0, "", "judge")
    add_scores(run, log, "final", "test")
    return run


@pytest.fixture(scope="module")
def drawn(run: stagelens.Run) -> tuple[DrawnEffects, DrawnEffects]:
    plain = drawing.measure_on_sets(run, ["test"], 3, no_progress)["test"]
    both = drawing.measure_on_sets(run, ["test"], 3, no_progress, answers=True)["test"]
    return plain, both


@pytest.mark.slow
def test_scores_of_draws_are_those_of_their_own_models(
    run: stagelens.Run, drawn: tuple[DrawnEffects, DrawnEffects]
) -> None:
    _, found = drawn
    module, prompts = empty_model(run), dict(enumerate(PROMPTS))
    named = {str(n): text for n, text in prompts.items()}
    how = Generation(max_tokens=6)
    seen = drawing.told_times_seen(run)
    values = {}
    for name, there, weights in drawn_models(run, Draw(1, True), run.stages, seen):
        said = generate(run.task, module, weights, named, how)
        values[name, there] = [bool(re.search(PATTERN, a[0].text)) for a in said.values()]
    own = found.table[(found.table["behaviour"] == "score:habit") & (found.table["draw"] == 1)]
    for stage in STAGES:
        rows = own[own["stage"] == stage]
        np.testing.assert_array_equal(rows["final"], values["", True])
        effect = np.subtract(values["", True], values[stage, False], dtype=float)
        np.testing.assert_array_equal(rows["effect"], effect)


@pytest.mark.slow
def test_draws_that_were_made_without_answers_are_completed_not_changed(
    run: stagelens.Run, drawn: tuple[DrawnEffects, DrawnEffects], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, both = drawn
    measured = both.table[both.table["behaviour"] != "score:habit"]
    keys = ["stage", "behaviour", "draw", "example_id"]
    left, right = (t.sort_values(keys, ignore_index=True) for t in (plain.table, measured))
    pd.testing.assert_frame_equal(left, right)
    assert len(both.table) - len(measured) == 3 * len(STAGES) * len(PROMPTS)
    # What is there is not trained again, with scores or without.
    monkeypatch.setattr(one_draw, "drawn_models", None)
    again = drawing.measure_on_sets(run, ["test"], 3, no_progress, answers=True)["test"]
    pd.testing.assert_frame_equal(again.table, both.table)
    drawing.measure_on_sets(run, ["test"], 3, no_progress)


@pytest.mark.slow
def test_scores_have_intervals_over_draws_wherever_others_have(
    run: stagelens.Run, drawn: tuple[DrawnEffects, DrawnEffects]
) -> None:
    stored = of_recipe(run, "test")
    assert stored is not None and "score:habit" in set(stored[1].table["behaviour"])
    effects = recipe_effects(run, "test")
    assert effects is not None and effects.behaviours["score:habit"].better == "lower"
    row = next(each for each in score_rows(run, "test") if each.called == "habit")
    own = drawn[1].table[drawn[1].table["behaviour"] == "score:habit"]
    means = own.groupby(["stage", "draw"])["effect"].mean()
    for each in row.means.to_dict("records"):
        of_stage = means[each["stage"]]
        assert each["draw_effect"] == pytest.approx(of_stage.mean())
        assert each["drawn"] == "3 redraws"
        low, high = row.over_draws(each)
        # Of a score that is better when lower, credit is a lower score.
        assert np.isnan(low) or low <= -of_stage.mean() <= high
    known = frame([row])
    alike = means.unstack().std(axis=1).to_numpy() == 0
    assert ("redraws low" in known) == (not alike.all())


@pytest.mark.slow
def test_what_cannot_be_scored_again_is_told_by_name(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = own_scores(run, "test")
    assert [each.name for each in found.found] == ["score:habit"]
    assert stored_scores(run, "test")["score:habit"].key == found.found[0].key
    other = Scorer("regex", lambda *_: 0, version=2)
    monkeypatch.setattr("stagelens.effects.scoring_again.find_scorer", lambda *_: other)
    found = own_scores(run, "test")
    assert "the scorer 'regex' that is installed is not the one" in found.left_out["score:habit"]
    # A process that shares the work would else train the draw, and leave the score out.
    with pytest.raises(RunError, match="score:habit: the scorer 'regex' that is installed is not"):
        found.only([stored_scores(run, "test")["score:habit"].key])
    done = CliRunner().invoke(app, ["draws", str(run.path), "--answers", "--number", "1"])
    assert "no set that was asked for has scores" in str(done.exception) + done.output
    done = CliRunner().invoke(app, ["draws", str(run.path), "--answers", "--cost"])
    assert "leave out --cost" in str(done.exception) + done.output


@pytest.mark.slow
def test_the_command_prints_scores_with_the_others(
    run: stagelens.Run, drawn: tuple[DrawnEffects, DrawnEffects]
) -> None:
    options = ["--set", "test", "--answers", "--number", "3"]
    done = CliRunner().invoke(app, ["draws", str(run.path), *options])
    assert done.exit_code == 0, done.output
    assert "score:habit" in done.output
