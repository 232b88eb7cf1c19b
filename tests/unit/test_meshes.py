"""Models on meshes of several dimensions: HSDP is replayed; tensor parallelism is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import stagelens
from stagelens.contracts import Refused
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from tests.support import launched
from tests.support.loops import make_batches
from tests.support.parallel_loops import (
    Stage,
    Training,
    end_of,
    farthest,
    joined,
    plain,
    run_stages,
    said,
)

WARN = {"on_problem": "warn"}
TRAINING = Training(stages=(Stage("first", 1, 3, recorder=WARN), Stage("second", 2, 3)))
CLOSE = 1e-6


def in_a_mesh(model: nn.Module, kind: str) -> nn.Module:
    """Share out a model: over two processes, or over four, which are two by two."""
    if kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        return fully_shard(model, mesh=mesh)
    if kind == "tensor":  # in one way each, as fully_shard does it
        whole = ColwiseParallel(output_layouts=Replicate())
        mesh = init_device_mesh("cpu", (2,))
        return parallelize_module(model, mesh, {"1": whole, "3": whole})
    plan = {"1": ColwiseParallel(), "3": RowwiseParallel()}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fully_shard(parallelize_module(model, mesh["tensor"], plan), mesh=mesh["data"])


def recording(rank: int, count: int, port: int, folder: Path, kind: str, stages: int) -> None:
    joined(rank, count, port, folder)
    training = Training(stages=TRAINING.stages[:stages])
    # With tensor parallelism those of a row of the mesh train on the same batch.
    own = {"hsdp": rank, "tensor": 0, "both": rank // 2}[kind]
    parts = {"hsdp": 4, "tensor": 1, "both": 2}[kind]
    model = in_a_mesh(training.fresh(), kind)
    recorder = stagelens.Recorder(folder / "run", training.task())
    run_stages(training, model, parts, own, recorder)
    images, labels = make_batches(1, seed=5, size=20)[0]
    recorder.add_set("test", images=images, labels=labels)
    dist.barrier()
    recorder.close()
    if rank == 0:
        (folder / "trained").touch()
    dist.destroy_process_group()


def recorded(folder: Path, kind: str, stages: int = 1) -> Any:
    count = 2 if kind == "tensor" else 4
    ended = launched.run(count, recording, folder, kind, stages)
    assert ended == [0] * count, [said(folder, rank) for rank in range(count)]
    return stagelens.open_run(folder / "run", TRAINING.task())


@pytest.mark.slow
def test_parts_that_are_replicated_too_are_recorded_and_replayed(tmp_path: Path) -> None:
    run = recorded(tmp_path, "hsdp", stages=2)
    for stage in run.stages:
        assert stage.facts.problem is None
        assert stage.facts.parallel is not None
        assert (stage.facts.parallel.kind, stage.facts.parallel.count) == ("fsdp2", 4)
        found = measure_deviation(run.task, stage)
        assert found.misfit is None
        assert found.largest < CLOSE
    assert launched.run(4, plain, tmp_path, TRAINING, "first") == [0] * 4
    without = replay_without(run, run.stage("first")).state.model
    assert farthest(without, end_of(tmp_path)) < CLOSE


@pytest.mark.parametrize("kind", ["tensor", pytest.param("both", marks=pytest.mark.slow)])
def test_tensor_parallelism_is_named_and_the_training_goes_on(kind: str, tmp_path: Path) -> None:
    run = recorded(tmp_path, kind)
    assert (tmp_path / "trained").exists()
    (stage,) = run.stages
    assert "tensor parallelism" in (stage.facts.problem or "")
    assert not stage.replayable
    assert all(torch.isfinite(tensor).all() for tensor in stage.end().model.values())
    with pytest.raises(Refused, match="tensor parallelism"):
        measure_deviation(run.task, stage)
