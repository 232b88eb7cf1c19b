"""An own example has the effects that an example of the set has, within a limit on memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import stagelens
from stagelens.analyses.own_example import Answer, answer, own_example
from stagelens.contracts import Example, Refused, RunError, TaskError
from stagelens.effects.computing import attribute
from stagelens.effects.results import Result, ResultFacts
from stagelens.estimators.registry import estimators
from stagelens.measuring.loaded_weights import LoadedWeights
from tests.support.loops import BATCH_NORM, Plan, make_batches, make_task, record_plans, train
from tests.support.small_texts import TEXTS, language

PLENTY = 2**30
COUNT = 40


def adamw(model: torch.nn.Module, _before: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    """Three gentle stages, and a set of labelled and unlabelled examples."""
    path = tmp_path_factory.mktemp("own") / "run"
    plans = [Plan(name, adamw, batches=12) for name in ("first", "second", "third")]
    run = record_plans(path, make_task(), plans)
    images, labels = make_batches(1, seed=5, size=COUNT)[0]
    given = [None if row % 10 == 3 else int(label) for row, label in enumerate(labels)]
    recorder = stagelens.Recorder(path, run.task, resume=True)
    recorder.add_set("test", images=images, labels=given)
    recorder.close()
    return stagelens.open_run(path)


def rows_of(result: Result, example: Example) -> pd.DataFrame:
    rows = result.table[result.table["example_id"] == example.example_id]
    return rows.reset_index(drop=True)


@pytest.mark.parametrize("estimator", estimators())
def test_an_example_of_the_set_has_the_effects_of_its_table(
    run: stagelens.Run, estimator: str
) -> None:
    result = attribute(run, "test", estimator)
    loaded = LoadedWeights(PLENTY)
    for example in run.evaluation_set("test").examples()[:3]:
        own = answer(run, example, result.facts, loaded)
        expected = rows_of(result, example)
        assert list(own.table.columns) == list(expected.columns)
        for column in ("stage", "behaviour", "estimator", "prediction", "prediction_without"):
            assert own.table[column].tolist() == expected[column].tolist()
        for column in ("final", "without", "effect", "confidence", "confidence_without"):
            np.testing.assert_allclose(own.table[column], expected[column], rtol=1e-5, atol=1e-6)
        assert own.trust == result.trust


def test_twins_that_have_a_say_in_the_table_have_the_same_say(run: stagelens.Run) -> None:
    facts = attribute(run, "test", "coarse-replay").facts
    assert max(stage.twins_share for stage in facts.stages) > 0
    deaf = [stage.model_copy(update={"twins_share": 0.0}) for stage in facts.stages]
    example = run.evaluation_set("test").examples()[0]
    heard, unheard = (
        answer(run, example, f, LoadedWeights(PLENTY)).table
        for f in (facts, facts.model_copy(update={"stages": deaf}))
    )
    assert not np.allclose(heard["effect"], unheard["effect"], rtol=1e-3)


def test_without_a_table_it_is_the_task_vector(run: stagelens.Run) -> None:
    example = run.evaluation_set("test").examples()[0]
    own = answer(run, example, None, LoadedWeights(PLENTY))
    expected = rows_of(attribute(run, "test", "task-vector"), example)
    np.testing.assert_allclose(own.table["effect"], expected["effect"], rtol=1e-5, atol=1e-6)
    assert [trust.trust for trust in own.trust.values()] == ["estimated", "estimated", "exact"]


def test_without_a_label_the_final_models_answer_is_the_label(run: stagelens.Run) -> None:
    facts = attribute(run, "test", "task-vector").facts
    example = run.evaluation_set("test").examples()[3]
    assert example.label is None
    own = answer(run, example, facts, LoadedWeights(PLENTY))
    said = own.table["prediction"].iloc[0]
    assert (own.label, own.label_given) == (said, False)
    given = answer(run, replace(example, label=said), facts, LoadedWeights(PLENTY))
    assert (given.label, given.label_given) == (said, True)
    pd.testing.assert_frame_equal(own.table, given.table)


def test_a_refused_stage_has_no_numbers(run: stagelens.Run) -> None:
    facts = attribute(run, "test", "coarse-replay").facts
    first, *others = facts.stages
    refused = first.model_copy(update={"trust": "refused", "reason": "It diverged."})
    facts = facts.model_copy(update={"stages": [refused, *others]})
    own = answer(run, run.evaluation_set("test").examples()[0], facts, LoadedWeights(PLENTY))
    rows = own.table[own.table["stage"] == "first"]
    assert rows["effect"].isna().all() and rows["prediction_without"].isna().all()
    assert own.table.loc[own.table["stage"] != "first", "effect"].notna().all()
    assert own.trust["first"].reason == "It diverged."


def test_a_counterfactual_that_is_gone_is_named(run: stagelens.Run, tmp_path: Path) -> None:
    facts = attribute(run, "test", "replay").facts
    known: ResultFacts = facts.model_copy(update={"settings": {"budget": 0.3}})
    known = known.model_copy(update={"estimator": "coarse-replay"})
    with pytest.raises(Refused, match="without first by coarse-replay is no longer in the run"):
        answer(run, run.evaluation_set("test").examples()[0], known, LoadedWeights(PLENTY))


def test_an_example_that_does_not_fit_the_task_is_refused(run: stagelens.Run) -> None:
    example = Example("x", {"image": np.zeros((3, 3), np.float32)})
    with pytest.raises(TaskError, match="1 x 3 x 3"):
        answer(run, example, None, LoadedWeights(PLENTY))


def test_weights_that_are_not_those_of_the_tasks_model_are_refused(run: stagelens.Run) -> None:
    other = stagelens.open_run(run.path, make_task({"kind": "mlp", "hidden": [7]}))
    # The recorded stages name their own configuration; another task may build what it likes.
    other.task.build_model = lambda config=None: torch.nn.Linear(2, 2)  # type: ignore[method-assign]
    with pytest.raises(RunError, match="only the built model has bias, weight"):
        answer(other, run.evaluation_set("test").examples()[0], None, LoadedWeights(PLENTY))


def test_batch_statistics_are_those_of_each_model(tmp_path: Path) -> None:
    run = record_plans(tmp_path, make_task(BATCH_NORM), [Plan("first", adamw), Plan("then", adamw)])
    images, labels = make_batches(1, seed=5, size=8)[0]
    recorder = stagelens.Recorder(tmp_path, run.task, resume=True)
    recorder.add_set("test", images=images, labels=labels.tolist())
    recorder.close()
    result = attribute(run, "test", "replay")
    loaded = LoadedWeights(PLENTY)
    for example in run.evaluation_set("test").examples():
        own = answer(run, example, result.facts, loaded)
        expected = rows_of(result, example)
        np.testing.assert_allclose(own.table["effect"], expected["effect"], rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    """A language model in three stages."""
    task, model = language()
    path = tmp_path_factory.mktemp("spoken") / "run"
    recorder = stagelens.Recorder(path, task, name="spoken")
    for name in ("first", "second", "third"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = [task.batch([text, "birds sing"]) for text in TEXTS] * 2
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, batches, stage=stage)
    recorder.add_set("test", texts=list(TEXTS))
    recorder.close()
    return stagelens.open_run(path)


@pytest.mark.parametrize("estimator", ["task-vector", "coarse-replay", "replay"])
def test_effects_per_token_sum_to_the_effect_on_the_log_likelihood(
    spoken: stagelens.Run, estimator: str
) -> None:
    result = attribute(spoken, "test", estimator)
    example = spoken.evaluation_set("test").examples()[3]
    tokens = answer(spoken, example, result.facts, LoadedWeights(PLENTY)).tokens
    assert tokens is not None and "".join(tokens.tokens) == TEXTS[3]
    rows = rows_of(result, example).query("behaviour == 'log-likelihood'").set_index("stage")
    assert np.nansum(tokens.final) == pytest.approx(rows["final"].iloc[0], rel=1e-5)
    for stage in ("first", "second", "third"):
        effect = tokens.effects[stage]
        assert np.isnan(effect).tolist() == np.isnan(tokens.final).tolist()
        assert np.nansum(effect) == pytest.approx(rows.loc[stage, "effect"], abs=1e-4)


def test_a_completion_is_asked_after_its_prompt(spoken: stagelens.Run) -> None:
    content = {"prompt": "two and two", "completion": " make four", "rejected": " bark"}
    example = own_example(spoken.task, content, None)
    own = answer(spoken, example, None, LoadedWeights(PLENTY))
    assert own.tokens is not None and "".join(own.tokens.tokens) == "two and two make four"
    assert (own.label, own.label_given) == (None, False)
    assert np.isnan(own.tokens.final[0]) and np.isfinite(own.tokens.final[-1])
    preference = own.table.query("behaviour == 'preference'")
    assert np.isfinite(preference["effect"]).all()


def test_a_refused_stage_has_no_numbers_per_token(spoken: stagelens.Run) -> None:
    facts = attribute(spoken, "test", "coarse-replay").facts
    first, *others = facts.stages
    refused = first.model_copy(update={"trust": "refused"})
    facts = facts.model_copy(update={"stages": [refused, *others]})
    example = spoken.evaluation_set("test").examples()[0]
    tokens = answer(spoken, example, facts, LoadedWeights(PLENTY)).tokens
    assert tokens is not None and np.isnan(tokens.effects["first"]).all()
    assert np.isfinite(tokens.effects["third"][1:]).all()


# ------------------------------------------------------------------------------------- memory


def weights(kilobytes: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(256 * kilobytes)}


def test_what_was_used_least_recently_goes_first() -> None:
    loaded = LoadedWeights(10 * 1024)
    read: list[str] = []

    def ask(name: str, kilobytes: int) -> None:
        def load() -> dict[str, torch.Tensor]:
            assert loaded.used + 1024 * kilobytes <= loaded.limit  # room was made before
            read.append(name)
            return weights(kilobytes)

        loaded.get(name, 1024 * kilobytes, load)
        assert loaded.used <= loaded.limit

    for name in ("a", "b", "a", "c", "a", "b"):
        ask(name, 4)
    assert read == ["a", "b", "c", "b"]


def test_what_is_larger_than_the_limit_is_used_and_not_kept() -> None:
    loaded = LoadedWeights(10 * 1024)
    loaded.get("small", 1024, lambda: weights(1))
    assert loaded.get("large", 11 * 1024, lambda: weights(11))["weight"].nbytes == 11 * 1024
    assert loaded.used == 0


def test_nothing_but_the_loaded_weights_stays_in_memory(run: stagelens.Run) -> None:
    loaded = LoadedWeights(PLENTY)
    final = run.last.end().model
    with loaded.lock, loaded.module_with(run, final) as module:
        worn = dict(module.named_parameters())
        assert all(worn[name].data_ptr() == final[name].data_ptr() for name in worn)
    assert all(tensor.numel() == 0 for tensor in module.parameters())


@pytest.mark.parametrize("limit", [0, 3000, PLENTY])
def test_the_limit_changes_no_number(run: stagelens.Run, limit: int) -> None:
    facts = attribute(run, "test", "coarse-replay").facts
    example = run.evaluation_set("test").examples()[1]
    loaded = LoadedWeights(limit)
    expected = answer(run, example, facts, LoadedWeights(PLENTY)).table
    for _ in range(2):
        pd.testing.assert_frame_equal(answer(run, example, facts, loaded).table, expected)
        assert loaded.used <= limit


@pytest.mark.slow
def test_sessions_that_ask_at_once_each_get_their_own_answer(run: stagelens.Run) -> None:
    facts = attribute(run, "test", "coarse-replay").facts
    examples = run.evaluation_set("test").examples()[:8]
    alone = [answer(run, example, facts, LoadedWeights(PLENTY)) for example in examples]
    loaded = LoadedWeights(4000)

    def ask(number: int) -> Answer:
        return answer(run, examples[number % 8], facts, loaded)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(64)))
    for number, own in enumerate(together):
        pd.testing.assert_frame_equal(own.table, alone[number % 8].table)
