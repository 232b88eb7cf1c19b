"""Replays by several processes, each with a part of the model, against those of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from stagelens.compute import processes
from stagelens.effects.computing import attribute
from stagelens.effects.results import load_result
from stagelens.replaying.replay import StageReplay
from stagelens.runs.run import open_run
from stagelens.runs.sets.writer import write_set
from tests.support import launched, small_runs
from tests.support.stored_models import counterfactuals


def shared_out(rank: int, count: int, port: int, folder: Path, network: str) -> None:
    """A replay in float64, the model shared out."""
    launched.as_launched(rank, count, port, folder)
    run = open_run(folder / f"run-{count}", small_runs.make_task(network))
    with processes.joined():
        replay = StageReplay(run.task, run.stages[1], share="model")
        parameters = dict(replay.model.named_parameters())
        assert all(isinstance(p, DTensor) for p in parameters.values())
        for name in ("replay", "coarse-replay"):
            attribute(run, "test", name, settings={"shard": True})


@pytest.mark.slow
@pytest.mark.parametrize("network", ["cnn", "batch norm"])
def test_the_model_shared_out_gives_the_replay_to_rounding_and_says_so(
    network: str, tmp_path: Path
) -> None:
    phases = [
        small_runs.Phase(
            name,
            lambda groups: torch.optim.AdamW(groups, 0.01),
            steps=3,
            accumulation=3,
            clip_norm=0.5,
        )
        for name in ("first", "second", "third")
    ]
    made = small_runs.record(tmp_path / "run", network, phases)
    images = np.random.default_rng(0).normal(size=(20, 4, 4)).astype(np.float32)
    write_set(made.path, made.task, "test", images=images, labels=[n % 3 for n in range(20)])
    shutil.copytree(made.path, tmp_path / "run-2")
    ended = launched.run(2, shared_out, tmp_path, network)
    assert ended == [0, 0], [(tmp_path / f"err-{rank}").read_text() for rank in range(2)]
    run, whole = (open_run(tmp_path / name, made.task) for name in ("run-2", "run"))
    for name, settings in (("coarse-replay", {"budget": 0.25}), ("replay", {})):
        expected = attribute(whole, "test", name)
        found = load_result(run, "test", "effects", name, settings)
        assert found is not None
        np.testing.assert_allclose(found.table["effect"], expected.table["effect"], rtol=1e-7)
    own, other = dict(counterfactuals(run)), dict(counterfactuals(whole))
    for name in own.keys() & other.keys():
        for tensor, value in own[name].items():
            torch.testing.assert_close(value, other[name][tensor], rtol=1e-8, atol=1e-12)
    assert len(other) == 2 + 2 * 3 and other.keys() <= own.keys()
    trust = found.trust["first"]
    assert expected.trust["first"].trust == "exact"
    assert trust.trust == "estimated" and "shared out over 2 processes" in trust.reason
    assert trust.deviation is not None and 0 < trust.deviation < 1e-8
    assert not list((run.path / "results" / "shards").iterdir())
