"""What has not changed since an earlier state is stored once, and read back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import stagelens
from stagelens.contracts import RunError
from stagelens.effects.computing import attribute
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.replay import Replay
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.sets.writer import write_set
from stagelens.runs.states import model_tensors, same_tensor
from stagelens.tasks import ImageClassification
from stagelens.tasks.adapters import plain_adapter, with_adapter
from tests.support.adapted import merged
from tests.support.loops import SHAPE, make_batches, make_task, train


def wide() -> nn.Module:
    """A model of 400 kB, nearly all of it in one layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 300))
    return nn.Sequential(layers, nn.Tanh(), nn.Linear(300, 3))


CONFIG = LoraConfig(r=2, target_modules=["0.3"])


def task() -> ImageClassification:
    """Builds it, with the adapter of a stage where it has one."""

    def make(config: Mapping[str, Any]) -> nn.Module:
        return with_adapter(wide(), config["peft"]) if "peft" in config else wide()

    return make_task({}, make_model=make)


def adapted(model: nn.Module) -> nn.Module:
    return get_peft_model(model, CONFIG)  # type: ignore[arg-type]


def same(model: nn.Module) -> nn.Module:
    return model


def head_only(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.shape[0] == 3)
    return model


def recorded(path: Path, *prepares: Callable[[nn.Module], nn.Module]) -> stagelens.Run:
    """A run of one stage after each preparation, whose states are compared with the model's own."""
    own, model, ends = task(), wide(), []
    recorder = stagelens.Recorder(path, own, name="once")
    for number, prepare in enumerate(prepares):
        model = prepare(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with recorder.stage(
            f"stage {number}",
            model=model,
            optimizer=optimizer,
            checkpoint_every=2,
            build_config={"peft": plain_adapter(CONFIG.to_dict())}
            if isinstance(model, PeftModel)
            else None,
        ) as stage:
            train(own, model, optimizer, make_batches(4, seed=number), stage=stage)
        ends.append({name: t.clone() for name, t in model_tensors(model).items()})
    recorder.close()
    run = stagelens.open_run(path, own)
    for stage, end in zip(run.stages, ends, strict=True):
        found = stage.end().model
        assert found.keys() == end.keys()
        assert all(same_tensor(found[name], tensor) for name, tensor in end.items())
        assert measure_deviation(own, stage).bitwise
    return run


def written(run: stagelens.Run) -> list[int]:
    """Bytes of weights in each stage's folder."""
    folders = sorted((run.path / "stages").iterdir())
    return [sum(f.stat().st_size for f in each.glob("*.model.safetensors")) for each in folders]


def test_a_base_below_adapters_is_stored_once(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", same, adapted, same)
    whole = sum(t.nbytes for t in wide().state_dict().values())
    first, *adapters = written(run)
    assert first > 3 * whole  # it trains all of it: start, checkpoints, end
    assert all(size < 0.15 * whole for size in adapters), adapters


def test_what_stays_frozen_is_stored_once_in_full_models_too(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", head_only)
    whole = sum(t.nbytes for t in wide().state_dict().values())
    assert written(run)[0] < 1.1 * whole


def test_a_merged_adapter_is_written_where_it_changed_the_base(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", same, adapted, merged, same)
    start = run.stages[2].facts.start
    assert start.before == [] or "0.3.weight" not in start.before[0].tensors


def test_a_file_that_later_states_need_is_missed_by_name(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", head_only, head_only)
    needed = run.stages[1].facts.end
    assert needed is not None and needed.before
    (run.path / needed.before[0].file.path).unlink()
    with pytest.raises(RunError, match=r"start\.model\.safetensors is missing"):
        stagelens.open_run(run.path, task()).stages[1].end()


def test_a_tensor_that_the_earlier_file_lacks_is_told(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", head_only)
    stage = run.stages[0]
    end = stage.facts.end
    assert end is not None
    held = end.before[0].model_copy(update={"tensors": {"0.1.weight": "0.9.weight"}})
    stage.facts = stage.facts.model_copy(update={"end": end.model_copy(update={"before": [held]})})
    with pytest.raises(RunError, match=r"no tensor '0\.9\.weight', which should be '0\.1\.weight'"):
        stage.end()


def test_a_counterfactual_of_an_adapter_is_as_small_as_the_adapter(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", same, adapted, same)
    images = torch.rand(3, *SHAPE)
    write_set(run.path, run.task, "test", images=images, labels=["a", "b", "c"])
    found = attribute(stagelens.open_run(run.path, run.task), "test", "replay")
    assert found.trust["stage 1"].trust == "exact"
    whole = sum(t.nbytes for t in wide().state_dict().values())
    kept = {path: path.stat().st_size for path in (run.path / "results").rglob("*.weights.*")}
    smallest, *_, largest = sorted(kept.values())
    assert smallest < 0.15 * whole < whole < 1.2 * largest
    again = stagelens.open_run(run.path, run.task)
    (read,) = counterfactuals(again, Replay(), [again.stage("stage 1")])
    fresh = replay_without(again, again.stage("stage 1")).state.model
    assert read.weights is not None and read.weights.keys() == fresh.keys()
    assert all(same_tensor(read.weights[name], tensor) for name, tensor in fresh.items())
