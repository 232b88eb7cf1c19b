"""LoRA on transformers models: a history of full, adapted and merged stages, as users train it."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

import stagelens
from stagelens.effects.computing import attribute, boundaries
from stagelens.estimators.registry import estimators
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.sets.writer import write_set
from stagelens.tasks.adapters import adapter_config, with_adapter
from tests.support.adapted import merged
from tests.support.loops import Plan, differing_state, record_plans, run_plans
from tests.support.small_texts import CLASSES, TEXTS, classification, language

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")

ON_BERT = LoraConfig(r=2, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS)
ON_GPT2 = LoraConfig(
    r=2, lora_dropout=0.1, target_modules=["c_attn", "wte"], task_type=TaskType.CAUSAL_LM
)


def adamw(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)


def sgd(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def classified(count: int, seed: int) -> list[Any]:
    task, draw = classification()[0], random.Random(seed)
    return [task.batch(draw.sample(TEXTS, 3), draw.choices(CLASSES, k=3)) for _ in range(count)]


def spoken(count: int, seed: int) -> list[Any]:
    task, draw = language()[0], random.Random(seed)
    return [task.batch(draw.sample(TEXTS, 3)) for _ in range(count)]


SETTINGS = {"coarse-replay": {"budget": 1.0}}
CASES = {
    "bert": (classification, classified, ON_BERT),
    "gpt2": (language, spoken, ON_GPT2),
}


@pytest.fixture(scope="module", params=CASES)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The task, the stages, and the recorded run."""
    make, data, config = CASES[request.param]
    task = make()[0]

    def adapted(model: nn.Module) -> nn.Module:
        return get_peft_model(model, config)

    plans = [
        Plan("full", adamw, data=data),
        Plan("lora", adamw, prepare=adapted, data=data),
        Plan("after", sgd, prepare=merged, data=data),
    ]
    path = tmp_path_factory.mktemp("texts") / "run"
    return task, plans, record_plans(path, task, plans)


def test_replay_is_bit_for_bit_with_and_without_every_stage(history: Any) -> None:
    task, plans, run = history
    assert [stage.facts.boundary.adapters for stage in run.stages] == [[], ["added"], ["merged"]]
    for stage in run.stages:
        assert measure_deviation(task, stage).bitwise
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


@pytest.mark.slow
def test_every_estimator_gives_effects_of_a_run_that_is_opened_from_its_folder(
    history: Any,
) -> None:
    _, _, recorded = history
    run = stagelens.open_run(recorded.path)
    labels = None if run.task.name == "causal-lm" else list(CLASSES[:2])
    write_set(run.path, run.task, "test", texts=list(TEXTS[:2]), labels=labels)
    for estimator in estimators():
        found = attribute(run, "test", estimator, settings=SETTINGS.get(estimator))
        assert found.trust["lora"].trust in ("estimated", "exact"), (estimator, found.trust)
        of_lora = found.table[found.table["stage"] == "lora"]
        assert of_lora.groupby("behaviour")["effect"].apply(lambda e: e.abs().max() > 0).any()
    assert list(boundaries(run, "test").table["boundary"].unique()) == [
        "base",
        "full",
        "lora",
        "after",
    ]


def test_an_adapter_is_added_without_a_warning_about_names_of_other_libraries() -> None:
    """It is added while a training is recorded, which did not call for it."""
    model = classification()[0].build_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert adapter_config(with_adapter(model, ON_BERT.to_dict()))["r"] == 2
