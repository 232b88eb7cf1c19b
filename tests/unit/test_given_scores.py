"""Scores of other tools: matched by id and content, kept as they are, and made effect tables of."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

import stagelens
from stagelens.analyses.removal.exporting import export
from stagelens.cli import app
from stagelens.contracts import BASE, SetError, StageLensError
from stagelens.effects.agreement import Judged, agreement, agreements, judged, kappas
from stagelens.effects.given_scores import Added, Obtained, add_scores, with_direction
from stagelens.effects.given_tables import all_tables
from stagelens.effects.results import load_result
from stagelens.effects.scores import mean_scores
from stagelens.effects.stored_scores import stored_scores
from stagelens.runs.logs import read_log
from stagelens.runs.logs.log import content_of
from stagelens.runs.run import Run
from tests.support.checkpoints import language_models

PROMPTS = ["What is 2?", "Who are you?", "Why?", "Is it so?"]
IDS = ["two", "who", "why", "so"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return stagelens.assemble(language_models(tmp_path / "models"), tmp_path / "run")


def table(path: Path, scores: Any, ids: Any = IDS, prompts: Any = PROMPTS, **columns: Any) -> Path:
    rows = {"id": ids, "prompt": prompts, "score": scores, **columns}
    kept = {name: list(values) for name, values in rows.items() if values is not None}
    pd.DataFrame(kept).to_csv(path, index=False)
    return path


def added(run: Run, path: Path, model: str, **options: Any) -> Added:
    log = with_direction(read_log(path), "higher", 0.0, 1.0, "", options.pop("name", "judge"))
    if model.startswith("without"):
        options.setdefault("obtained", Obtained(estimator="task-vector"))
    return add_scores(run, log, model, options.pop("set_name", "prompts"), **options)


def test_scores_are_the_logs_and_effects_follow(run: Run, tmp_path: Path) -> None:
    given = {
        "final": [1.0, 0.1 + 0.2, 0.0, 1.0],
        "without:sft": [0.0, 0.3, 0.0, 1.0],
        f"after:{BASE}": [0.0, 0.0, 0.0, 0.5],
    }
    # In another order, which must not matter.
    turned = [3, 1, 0, 2]
    for model, scores in given.items():
        path = table(
            tmp_path / "judged.csv",
            [scores[n] for n in turned],
            [IDS[n] for n in turned],
            [PROMPTS[n] for n in turned],
        )
        found = added(run, path, model)
        assert found.new_set == (model == "final")
    examples = run.evaluation_set("prompts")
    order = examples.table([])["example_id"].tolist()
    said = [each.input["text"] for each in examples.examples()]
    assert said == [PROMPTS[IDS.index(name)] for name in order]
    (score,) = stored_scores(run, "prompts").values()
    facts = score.facts["task-vector"]
    result = load_result(run, "prompts", "scores", facts.estimator, facts.settings)
    assert result is not None
    rows = result.table.set_index("example_id").loc[IDS]
    assert set(rows["stage"]) == {"sft"} and set(rows["behaviour"]) == {"score:judge"}
    np.testing.assert_array_equal(rows["final"], given["final"])
    np.testing.assert_array_equal(rows["without"], given["without:sft"])
    np.testing.assert_array_equal(rows["effect"], np.subtract(given["final"], given["without:sft"]))
    assert result.behaviours["score:judge"].better == "higher"
    assert result.trust["sft"].trust == "estimated"
    assert mean_scores(run, result)["n"].tolist() == [4]
    assert score.boundaries is not None
    there = load_result(run, "prompts", "score-boundaries", "", score.boundaries.settings)
    assert there is not None
    assert there.table["boundary"].unique().tolist() == [BASE, "dpo"]


def test_a_mismatch_is_refused_by_name_and_nothing_is_kept(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    added(run, table(path, [1, 0, 1, 0]), "final")
    flipped = [PROMPTS[1], PROMPTS[0], *PROMPTS[2:]]
    for options, told in (
        ({"prompts": flipped}, r"the prompts of 'two', 'who' are not .* from character 3 on"),
        ({"ids": ["two", "who", "why", "other"]}, "lacks: 'other'"),
    ):
        columns = {"ids": IDS, "prompts": PROMPTS, **options}
        with pytest.raises(SetError, match=told):
            added(run, table(path, [1, 0, 1, 0], **columns), "without:sft")
    contents = [content_of(text) for text in flipped]
    with pytest.raises(SetError, match="the prompts of 'two', 'who' are not"):
        added(run, table(path, [1, 0, 1, 0], prompts=None, sha256=contents), "without:sft")
    assert {model for model in _models(run)} == {"final"}
    right = [content_of(text) for text in PROMPTS]
    added(run, table(path, [1, 0, 1, 0], prompts=None, sha256=right), "without:sft")
    assert {model for model in _models(run)} == {"final", "without:sft"}


def _models(run: Run) -> list[str]:
    (models,) = all_tables(run, run.evaluation_set("prompts")).values()
    return models


def test_rows_without_contents_are_never_joined_by_position(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    added(run, table(path, [1, 0, 1, 0]), "final")
    table(path, [1, 0, 1, 0], prompts=None)
    with pytest.raises(SetError, match=r"does not say what 'two', 'who', 'why', \.\.\. is"):
        added(run, path, "without:sft")
    found = added(run, path, "without:sft", by_id=True)
    assert "examples were matched by id alone: the file has no contents to compare" in found.notes
    numbers = [0, 1, 2, 3]
    added(run, table(path, [1, 0, 1, 0], ids=numbers), "final", set_name="numbered")
    table(path, [1, 0, 1, 0], ids=numbers, prompts=None)
    with pytest.raises(SetError, match="by their position only"):
        added(run, path, "without:sft", set_name="numbered", by_id=True)


def test_references_have_to_be_the_same(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    added(run, table(path, [1, 0, 1, 0], reference=["2", "me", "so", "no"]), "final")
    assert run.evaluation_set("prompts").columns == ("reference",)
    other = table(path, [1, 0, 1, 0], reference=["3", "me", " so ", "no"])
    with pytest.raises(SetError, match="the references of 'two' are not those"):
        added(run, other, "without:sft")


def test_a_part_of_the_examples_has_no_score_and_is_counted(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    added(run, table(path, [1, 0, 1, 0]), "final")
    found = added(run, table(path, [0, 1], IDS[:2], PROMPTS[:2]), "without:dpo")
    assert found.notes[0] == "2 of 4 examples of 'prompts' have no score"
    (result,) = found.results
    assert result.table["effect"].isna().sum() == 2
    assert mean_scores(run, result)[["n", "missing"]].values.tolist() == [[2, 2]]


def test_samples_of_a_prompt_have_a_mean(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    twice = {"ids": IDS * 2, "prompts": PROMPTS * 2, "sample": [0] * 4 + [1] * 4}
    added(run, table(path, [1, 0, 1, 0, 0, 0, 1, None], **twice), "final")
    (result,) = added(run, table(path, [0, 0, 0, 0]), "without:sft").results
    rows = result.table.set_index("example_id").loc[IDS]
    np.testing.assert_array_equal(rows["final"], [0.5, 0.0, 1.0, np.nan])
    np.testing.assert_allclose(rows["sd"][:2], [np.sqrt(0.5), 0.0])


def test_other_scores_are_replaced_only_where_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    added(run, table(path, [1, 0, 1, 0]), "final")
    added(run, path, "final")  # the same ones change nothing
    table(path, [1, 1, 1, 0])
    with pytest.raises(StageLensError, match="has other scores by 'judge' already, from judged"):
        added(run, path, "final")
    added(run, path, "final", replacing=True)
    (found,) = judged(run, "prompts").values()
    assert found.rows["value"].sum() == 3


def test_an_exported_model_says_which_it_is(run: Run, tmp_path: Path) -> None:
    folders, _ = export(run, ["final", "without:sft"], tmp_path / "out", "task-vector")
    path = table(tmp_path / "judged.csv", [1, 0, 1, 0])
    wrong = Obtained(folders["final"])
    with pytest.raises(StageLensError, match="is the model final, not without:sft"):
        added(run, path, "without:sft", obtained=wrong)
    with pytest.raises(StageLensError, match="nothing says how the model without:sft was obtained"):
        added(run, path, "without:sft", obtained=Obtained())
    with pytest.raises(StageLensError, match="was not written by stagelens export"):
        added(run, path, "final", obtained=Obtained(tmp_path))
    other = stagelens.assemble(language_models(tmp_path / "more", ["a", "b"]), tmp_path / "other")
    with pytest.raises(StageLensError, match="was exported from another run"):
        added(other, path, "final", obtained=wrong)
    added(run, path, "final", obtained=wrong)
    right = Obtained(folders["without:sft"])
    (result,) = added(run, path, "without:sft", obtained=right).results
    assert result.facts.estimator == "task-vector"
    assert "as whoever added" not in result.trust["sft"].reason


def test_a_direction_has_to_be_known_and_scores_in_range(run: Run, tmp_path: Path) -> None:
    path = table(tmp_path / "judged.csv", [1, 0, 5, 0])
    with pytest.raises(SetError, match="say so: --better higher"):
        add_scores(run, read_log(path), "final", "prompts")
    with pytest.raises(SetError, match="judge of example 'why' is 5, which is out of the range"):
        added(run, path, "final")
    with pytest.raises(SetError, match="has no prompts to make one of"):
        added(run, table(path, [1, 0, 1, 0], prompts=None), "final")


def test_agreement_is_that_of_scikit_learn_with_an_interval_over_prompts(
    run: Run, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    ids = [f"p{number}" for number in range(120)]
    prompts = [f"prompt {number}" for number in range(120)]
    judge = random.integers(0, 2, 120)
    person = np.where(random.random(120) < 0.85, judge, 1 - judge)
    path = tmp_path / "judged.csv"
    added(run, table(path, judge, ids, prompts), "final")
    added(run, table(path, person, ids, prompts), "final", name="person")
    (found,) = agreements(run, "prompts")
    assert found.answers == 120 and not found.reason
    assert found.kappa == pytest.approx(cohen_kappa_score(judge, person))
    assert found.same == pytest.approx((judge == person).mean())
    assert found.low < found.kappa < found.high
    counts = np.bincount(2 * judge + person, minlength=4)
    assert kappas(counts[None]) == pytest.approx(found.kappa)
    assert np.isnan(kappas(np.array([[5, 0, 0, 0]]))).all()
    # Fleiss, Cohen and Everitt's standard error in large samples, roughly.
    share, chance = (judge == person).mean(), 0.5
    error = np.sqrt(share * (1 - share) / 120) / (1 - chance)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    done = CliRunner().invoke(app, ["scores", str(run.path), "--set", "prompts", "--json"])
    assert done.exit_code == 0, done.output
    (said,) = json.loads(done.output)["agreement"]
    assert said["kappa"] == pytest.approx(found.kappa)


def test_other_answers_are_not_compared_and_what_is_turned_is_said(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "judged.csv"
    said = ["a", "b", "c", "d"]
    added(run, table(path, [1, 0, 1, 0], answer=said), "final")
    log = read_log(table(path, [0, 1, 0, 0], answer=[*said[:3], "other"]))
    add_scores(run, with_direction(log, "lower", 0.0, 1.0, "", "bad"), "final", "prompts")
    (found,) = agreements(run, "prompts")
    assert (found.answers, found.turned, found.kappa, found.same) == (3, True, 1.0, 1.0)
    known = judged(run, "prompts")
    many = known["score:judge"].rows.assign(value=np.linspace(0, 1, 4))
    wide = Judged(known["score:judge"].kind, many)
    clusters = {name: number for number, name in enumerate(IDS)}
    alike = agreement("a", wide, "b", known["score:judge"], clusters)
    assert alike.answers == 4
    sampled = Judged(wide.kind, wide.rows, sampled=True)
    assert "several answers" in agreement("a", sampled, "b", wide, clusters).reason


def test_the_commands_add_and_list(run: Run, tmp_path: Path) -> None:
    path = table(tmp_path / "judged.csv", [1, 0, 1, 0])
    given = ["add-scores", str(run.path), str(path), "--set", "prompts", "--name", "judge"]
    more = ["--better", "higher", "--lowest", "0", "--highest", "1"]
    runner = CliRunner()
    done = runner.invoke(app, [*given, *more, "--model", "final"])
    assert done.exit_code == 0, done.output
    assert "4 examples of set 'prompts' (a new set, made of the log): judge" in done.output
    without = ["--model", "without:sft", "--estimator", "task-vector"]
    done = runner.invoke(app, [*given, *more, *without])
    assert done.exit_code == 0, done.output
    assert "score:judge (higher is better), means over prompts" in done.output
    done = runner.invoke(app, ["scores", str(run.path), "--set", "prompts"])
    assert "score:judge was added of the models" in done.output
    # Tables are made anew of what was given.
    for stored in (run.path / "results" / "tables").glob("*.parquet"):
        stored.unlink()
    done = runner.invoke(app, ["scores", str(run.path), "--set", "prompts"])
    assert "means over prompts" in done.output


def test_scores_fit_a_set_that_the_run_has(tmp_path: Path, run: Run) -> None:
    with closing(stagelens.Recorder(run.path, run.task, resume=True)) as recorder:
        inputs = {"prompt": PROMPTS, "completion": [" 2", " me", " so", " no"]}
        recorder.add_set("own", inputs=inputs, ids=IDS)
    path = table(tmp_path / "judged.csv", [1, 0, 1, 0], reference=["2", "me", "so", "no"])
    found = added(run, path, "final", set_name="own")
    assert not found.new_set
