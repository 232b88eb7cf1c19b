"""Answers of every model to a set of prompts, stored once, and their scores as effect tables."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from stagelens.compute.helpers import Helper, Item
from stagelens.contracts import BASE, SetError
from stagelens.effects import answers
from stagelens.effects.answers import Choosing, answer
from stagelens.effects.prompts import prompts_of, questions_of
from stagelens.effects.results import load_result, stored_results
from stagelens.effects.scores import boundary_scores, mean_scores, score_settings, scored
from stagelens.measuring.choices import multiple_choice
from stagelens.measuring.generation import Generation, generate
from stagelens.measuring.scorers import find_scorer
from stagelens.runs.run import Run
from tests.support.text_runs import COMPLETIONS, PROMPTS, STAGES, record_prompts

HOW = Generation(max_tokens=4)
CHOICES = [" the mat", " make four", " barked"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = record_prompts(tmp_path_factory.mktemp("answers") / "run", ("replay",))
    run = stagelens.open_run(path)
    with closing(stagelens.Recorder(path, run.task, resume=True)) as recorder:
        recorder.add_set(
            "choices",
            texts=list(PROMPTS[:3]),
            ids=["mat", "four", "barked"],
            columns={"reference": CHOICES, "choices": [json.dumps(CHOICES)] * 3},
        )
    return path


@pytest.fixture
def run(recorded: Path) -> Run:
    return stagelens.open_run(recorded)


def test_every_model_answers_as_it_does_by_itself(run: Run) -> None:
    found = answer(run, "test", HOW)
    after = [f"after:{name}" for name in (BASE, *STAGES[:-1])]
    assert list(found.models) == ["final", *after, *(f"without:{name}" for name in STAGES)]
    prompts = prompts_of(run.evaluation_set("test"))
    model = run.task.build_empty(run.last.facts.build_config)
    for name, weights in (
        ("final", run.last.end().model),
        (f"after:{STAGES[0]}", run.stages[0].end().model),
        # Without the last stage the model is what it started from.
        (f"without:{STAGES[-1]}", run.last.start().model),
    ):
        own = generate(run.task, model, weights, prompts, HOW)
        table = found.models[name]
        assert table["answer"].tolist() == [each.text for (each,) in own.values()]
        assert table["example_id"].tolist() == list(prompts)
    assert len({tuple(table["answer"]) for table in found.models.values()}) > 2


def test_scores_are_an_effect_table_that_is_found_again(run: Run) -> None:
    scorer = find_scorer("contains", {"ignore_case": False})
    found = answer(run, "test", HOW)
    result = scored(run, "test", found, HOW, scorer)
    assert result.behaviours["score:contains"].better == "higher"
    assert [result.trust[name].trust for name in STAGES] == ["exact"] * 3
    wanted = dict(zip(prompts_of(run.evaluation_set("test")), COMPLETIONS, strict=True))

    def by_hand(model: str) -> np.ndarray:
        rows = found.models[model].itertuples()
        return np.array([float(wanted[r.example_id].strip() in r.answer) for r in rows])

    for stage, rows in result.table.groupby("stage"):
        np.testing.assert_array_equal(rows["final"], by_hand("final"))
        expected = by_hand("final") - by_hand(f"without:{stage}")
        np.testing.assert_array_equal(rows["effect"], expected)
        assert rows["prediction"].tolist() == found.models["final"]["answer"].tolist()
    at = boundary_scores(run, "test", HOW, scorer)
    assert list(at) == [BASE, *STAGES]
    np.testing.assert_array_equal(at[STAGES[-1]], by_hand("final"))
    settings = score_settings(found.settings, HOW, scorer)
    again = load_result(run, "test", "scores", "replay", settings)
    assert again is not None
    pd.testing.assert_frame_equal(again.table, result.table, check_dtype=False)
    # Pages list effects of likelihoods, which stay as they were.
    assert {facts.kind for facts in stored_results(run, "test")} == {"effects"}
    other = score_settings(found.settings, HOW, find_scorer("contains"))
    assert load_result(run, "test", "scores", "replay", other) is None


def test_a_replay_that_is_not_exact_is_judged_by_what_it_repeats(run: Run) -> None:
    found = answer(run, "test", HOW)
    scorer = stagelens.Scorer("length", lambda p, a, r: len(a), highest=99.0)
    final = found.models["final"]
    off = final.assign(answer=final["answer"] + "x" * 50)
    for table, word in ((final, "exact"), (off, "refused")):
        models = {**found.models, f"repeated:{STAGES[0]}": table}
        own = answers.Answers(models, found.trust, found.estimator, found.settings)
        result = scored(run, "test", own, HOW, scorer)
        assert (result.trust[STAGES[0]].trust == "refused") == (word == "refused")
        rows = result.table[result.table["stage"] == STAGES[0]]
        assert rows["effect"].isna().all() == (word == "refused")
        assert result.trust[STAGES[1]].trust == "exact"
        means = mean_scores(run, result).set_index("stage")
        assert means.loc[STAGES[0], "n"] == (0 if word == "refused" else 4)
        assert np.isnan(means.loc[STAGES[0], "low"]) == (word == "refused")


def test_answers_can_be_held_against_another_column(run: Run) -> None:
    found = answer(run, "choices", HOW, stages=[STAGES[-1]])
    final = dict(
        zip(*(found.models["final"][name] for name in ("example_id", "answer")), strict=True)
    )
    for column, wanted in (("reference", CHOICES), ("choices", [json.dumps(CHOICES)] * 3)):
        scorer = find_scorer("exact", {"as": "same", "reference": column})
        own = scored(run, "choices", found, HOW, scorer).table["final"]
        expected = [
            float(a.strip() == w.strip()) for a, w in zip(final.values(), wanted, strict=True)
        ]
        assert own.tolist() == expected
    with pytest.raises(SetError, match=r"no column 'claim'.* it has reference, choices"):
        scored(run, "choices", found, HOW, find_scorer("exact", {"reference": "claim"}))


def test_samples_have_a_mean_and_a_deviation(run: Run) -> None:
    how = Generation(max_tokens=3, samples=4, temperature=3.0)
    found = answer(run, "test", how, stages=[STAGES[0]])
    scorer = stagelens.Scorer("length", lambda p, a, r: len(a), highest=99.0)
    rows = scored(run, "test", found, how, scorer).table
    lengths = found.models["final"]["answer"].str.len().to_numpy().reshape(-1, 4)
    np.testing.assert_allclose(rows["final"], lengths.mean(1))
    np.testing.assert_allclose(rows["sd"], lengths.std(1, ddof=1))


def test_what_was_answered_is_read_and_a_killed_command_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_AT_ONCE", 2)
    how = Generation(max_tokens=2)
    calls: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(len(given[3]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(*given, **more)

    monkeypatch.setattr(answers, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        answer(run, "test", how)
    first = answer(run, "test", how)
    # Seven models of two parts each, of which three were done.
    assert calls == [2] * (4 + 14 - 3)
    again = answer(run, "test", how)
    assert len(calls) == 15
    for name, table in first.models.items():
        pd.testing.assert_frame_equal(table, again.models[name], check_dtype=False)


def test_choices_are_compared_by_likelihood(run: Run) -> None:
    how = Choosing("tokens")
    found = answer(run, "choices", how)
    questions = questions_of(run.evaluation_set("choices"))
    assert [each.right for each in questions] == [0, 1, 2]
    assert set(found.models["final"]["answer"]) <= set(CHOICES)
    rows = scored(run, "choices", found, how, multiple_choice("tokens")).table
    expected = (found.models["final"]["answer"] == pd.Series(CHOICES)).astype(float)
    np.testing.assert_array_equal(rows["final"][:3], expected)
    with pytest.raises(SetError, match="has no choices"):
        answer(run, "test", how)


def test_the_command_answers_scores_and_writes(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.csv"
    given = [
        *("answer", str(recorded), "--set", "test", "--max-tokens", "4", "--out", str(out)),
        *("--scorer", "refusal", "--scorer", 'contains:{"ignore_case": false}'),
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "score:contains (higher is better), means over prompts" in done.output
    assert "Mean score:refusal at each boundary: base 0.000, general" in done.output
    table = pd.read_csv(out, keep_default_na=False)
    assert set(table["model"]) > {"final", "without:habits", "after:base"}
    done = CliRunner().invoke(app, [*given[:6], "--scorer", "regex:pattern=a", "--json"])
    found = json.loads(done.output)
    (score,) = found["scores"]
    assert score["behaviour"] == "score:regex"
    assert [each["trust"] for each in score["stages"]] == ["exact"] * 3
    assert list(score["boundaries"]) == [BASE, *STAGES]
    for each in score["stages"]:
        assert each["n"] == 4 and each["low"] < each["effect"] < each["high"]


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        (["no-such"], "there is no scorer 'no-such'"),
        (["regex:x"], "give a setting as NAME:KEY=VALUE"),
        (["regex:{x"], "are no JSON"),
        (["multiple-choice:norm=words"], "give one of none, tokens, bytes"),
        (["multiple-choice", "exact"], "by a command of its own"),
    ],
)
def test_bad_scorers_are_told_before_anything_is_computed(scorer: list[str], told: str) -> None:
    given = [word for each in scorer for word in ("--scorer", each)]
    done = CliRunner().invoke(app, ["answer", "nowhere", *given])
    assert done.exit_code != 0 and told in str(done.exception)


@pytest.mark.slow
def test_processes_together_answer_as_one_does(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    by_itself = Helper.do

    def counted(helper: Helper, item: Item, heard: Any) -> bool:
        ended = by_itself(helper, item, heard)
        done.append(str(item.message.get("answers")))
        return ended

    def once_helped(*given: Any) -> Any:
        # On a busy machine all might be answered before the helper has started.
        until = time.monotonic() + 300
        while len(tables) == 1 and not done and time.monotonic() < until:
            time.sleep(0.05)
        return here(*given)

    here = answers._answered
    monkeypatch.setattr(Helper, "do", counted)
    monkeypatch.setattr(answers, "_answered", once_helped)
    tables: list[pd.DataFrame] = []
    for count in (1, 2):
        copy, out = tmp_path / f"run{count}", tmp_path / f"{count}.parquet"
        shutil.copytree(recorded, copy, ignore=shutil.ignore_patterns("answers"))
        given = ["answer", str(copy), "--set", "test", "--samples", "2", "--max-tokens", "5"]
        found = CliRunner().invoke(app, [*given, "--processes", str(count), "--out", str(out)])
        assert found.exit_code == 0, found.output
        tables.append(pd.read_parquet(out))
        assert bool(done) == (count == 2)
    assert set(done) <= set(tables[0]["model"])
    # To the last bit of the gaps between logits.
    pd.testing.assert_frame_equal(*tables, check_exact=True)
