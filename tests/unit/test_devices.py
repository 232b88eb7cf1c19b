"""Where work runs, by what torch says is there; a model in parts gives the answers of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stagelens.compute import devices
from stagelens.contracts import Example, StageLensError
from stagelens.measuring import models
from stagelens.measuring.models import measure
from stagelens.measuring.placed import Placed
from stagelens.runs.states import model_tensors
from stagelens.tasks import CausalLM, TextClassification
from tests.support.small_texts import CLASSES, bert, bert_tokenizer, gpt, gpt_tokenizer


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "there", "computes", "replays_gpu"),
    [
        (None, 0, "cpu", "cpu"),
        (None, 2, "cuda:0", "cuda:0"),
        ("auto", 1, "cuda:0", "cuda:0"),
        ("cpu", 2, "cpu", "cpu"),
        ("cuda", 1, "cuda:0", "cuda:0"),
        ("cuda:1", 2, "cuda:1", "cuda:1"),
    ],
)
def test_a_gpu_computes_where_there_is_one_and_replays_what_was_recorded_on_one(
    asked: str | None,
    there: int,
    computes: str,
    replays_gpu: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(there, monkeypatch)
    if asked is None:
        monkeypatch.delenv("STAGELENS_DEVICE", raising=False)
    else:
        monkeypatch.setenv("STAGELENS_DEVICE", asked)
    assert str(devices.computing()) == computes
    assert str(devices.replaying("cuda")) == replays_gpu
    assert str(devices.replaying("cpu")) == "cpu"


def test_processes_of_one_host_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2, monkeypatch)
    monkeypatch.delenv("STAGELENS_DEVICE", raising=False)
    chosen = []
    for rank in range(4):
        monkeypatch.setattr(devices.processes, "local_rank", lambda own=rank: own)
        chosen.append(str(devices.computing()))
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [("tpu", "there is no device 'tpu'"), ("cuda", "sees 0 GPUs"), ("cuda:3", "sees 0 GPUs")],
)
def test_a_device_that_is_not_there_is_refused(
    asked: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGELENS_DEVICE", asked)
    with pytest.raises(StageLensError, match=told):
        devices.computing()


CLASSIFIED = [
    Example(str(n), {"text": text}, CLASSES[n % 2])
    for n, text in enumerate(["good", "bad day", ""])
]
CONTINUED = [
    Example(str(n), {"prompt": "one and", "completion": text, "rejected": None})
    for n, text in enumerate([" two", " three four", " one"])
]


def classifier() -> tuple[Any, nn.Module]:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, num_hidden_layers=6)
    return TextClassification.from_model(model, tokenizer), model


def language_model() -> tuple[Any, nn.Module]:
    """Its input and output embeddings are one tensor."""
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer, n_layer=6)
    return CausalLM.from_model(model, tokenizer), model


@pytest.mark.parametrize(
    ("make", "examples"), [(classifier, CLASSIFIED), (language_model, CONTINUED)]
)
def test_a_model_in_parts_answers_as_the_whole(
    make: Callable[[], tuple[Any, nn.Module]],
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts lie on the disk here, where on a larger machine they lie on several GPUs."""
    monkeypatch.setenv("STAGELENS_DEVICE", "cpu")
    task, model = make()
    first = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    second = {
        name: tensor * 1.1 if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }
    weights = [first, second, first]
    whole = measure(task, task.build_empty(), weights, [examples], len(examples))
    size = sum(tensor.numel() * tensor.element_size() for tensor in first.values())
    placed: list[Placed] = []

    def in_parts(module: nn.Module) -> Placed:
        placed.append(Placed(module, {"cpu": int(0.7 * size)}))
        return placed[-1]

    monkeypatch.setattr(models, "Placed", in_parts)
    parts = measure(task, task.build_empty(), weights, [examples], len(examples))
    assert set(placed[0].model.hf_device_map.values()) == {"cpu", "disk"}
    for one, other in zip(parts, whole, strict=True):
        assert one.answers.tolist() == other.answers.tolist()
        for name, values in one.values.items():
            np.testing.assert_allclose(values, other.values[name], rtol=1e-6)
    name = task.behaviour_kinds[0].name
    assert not np.allclose(whole[0].values[name], whole[1].values[name])


def test_a_model_that_is_too_large_and_of_no_known_blocks_is_refused() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(StageLensError, match="only models of transformers"):
        Placed(model, {"cpu": 10}).load(model_tensors(model))
