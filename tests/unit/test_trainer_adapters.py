"""LoRA in trainings by ``transformers.Trainer``: full, adapted, merged and full again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn

import stagelens
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.states import model_tensors
from tests.support.adapted import merged
from tests.support.loops import differing, differing_state
from tests.support.small_trainings import KINDS, arguments, made, trainer

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")

CONFIGS = {
    "bert": LoraConfig(r=2, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS),
    "gpt": LoraConfig(r=2, target_modules=["c_attn"], task_type=TaskType.CAUSAL_LM),
}


def trained(
    kind: str, folder: Path, record: Path | None = None, without: str | None = None
) -> dict[str, Tensor]:
    """All stages after each other, recorded or by hand; the weights at the end."""

    def adapted(model: nn.Module) -> nn.Module:
        return get_peft_model(model, CONFIGS[kind])

    stages: dict[str, Callable[[nn.Module], nn.Module]] = {
        "full": lambda model: model,
        "lora": adapted,
        "after": merged,
    }
    model, tokenizer = made(kind)
    for number, (stage, change) in enumerate(stages.items()):
        torch.manual_seed(number)
        model = change(model)
        callbacks = [] if record is None else [stagelens.StageRecorderCallback(record, stage=stage)]
        args = arguments(folder / stage, gradient_accumulation_steps=2, seed=number, max_steps=4)
        training = trainer(kind, model, tokenizer, args, seed=number, callbacks=callbacks)
        if stage != without:
            training.train()
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


@dataclass
class History:
    """A recorded training."""

    kind: str
    folder: Path
    run: stagelens.Run


@pytest.fixture(scope="module", params=KINDS)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("trainings")
    trained(request.param, folder, folder / "run")
    return History(request.param, folder, stagelens.open_run(folder / "run"))


def test_the_adapter_is_read_from_the_model(history: History) -> None:
    configs: list[Any] = [stage.facts.build_config for stage in history.run.stages]
    assert (configs[0], configs[2]) == (None, None)
    assert configs[1].keys() == {"peft"}
    operations = [stage.facts.boundary.adapters for stage in history.run.stages]
    assert operations == [[], ["added"], ["merged"]]


def test_replay_reproduces_every_recorded_boundary(history: History) -> None:
    for stage in history.run.stages:
        assert measure_deviation(history.run.task, stage).bitwise
    for before, stage in zip(history.run.stages, history.run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []


@pytest.mark.parametrize("stage", ["full", "lora", "after"])
def test_replay_without_a_stage_is_the_training_without_it(history: History, stage: str) -> None:
    by_hand = trained(history.kind, history.folder / "by hand", without=stage)
    replayed = replay_without(history.run, history.run.stage(stage)).state.model
    assert differing(replayed, by_hand) == []
