"""Editing a model larger than the memory it takes: bytes per second against `cp`, and RssAnon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stagelens.runs.boundary_facts import Boundary
from stagelens.runs.files import is_as_recorded, reference_of, write_json
from stagelens.runs.schema import RunFile, StageFile, StageRef, StateRef, TaskRef
from stagelens.runs.streaming import TensorFacts, read_header
from stagelens.runs.tensor_files import write_tensors

STATE_BYTES, SHARDS = 4 * 10**9, 4
LEAST_FREE = 25 * 10**9
MOST_ANONYMOUS = 450 * 2**20
# cp reads one state and writes it. Here three are read and hashed while a fourth is computed and
# written.
LEAST_SHARE = 0.8
ROUNDS = 3


def write_state(root: Path, folder: str, dtype: torch.dtype, seed: int) -> StateRef:
    """A sharded checkpoint of made-up weights: per shard one large matrix and smaller ones."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2**20, generator=generator).to(dtype)
    width = 4096
    rows = STATE_BYTES // SHARDS // dtype.itemsize // width
    shapes = [(rows // 2, width), *[(rows // 16, width)] * 8, (width,)]
    files = []
    (root / folder).mkdir(parents=True)
    for number in range(SHARDS):
        facts = {f"layers.{number}.{n}": TensorFacts(dtype, s) for n, s in enumerate(shapes)}

        def blocks(name: str, own: dict[str, TensorFacts] = facts) -> Iterator[Tensor]:
            left = own[name].bytes // dtype.itemsize
            while left:
                yield values[: min(left, len(values))]
                left -= min(left, len(values))

        relative = f"{folder}/model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        with open(root / relative, "wb") as file:
            write_tensors(file, facts, blocks, {"format": "pt"})
            file.flush()
            os.fsync(file.fileno())
        path = root / relative
        files.append(reference_of(path, relative))
    names = {name: name for file in files for name in read_header(root / file.path).tensors}
    return StateRef(model=files[0], more=files[1:], names=names)


def made_up_run(root: Path, dtype: torch.dtype) -> list[StateRef]:
    """A run of two assembled stages, so of three states."""
    states = [write_state(root, f"checkpoints/{n:02d}", dtype, n) for n in range(3)]
    stages = []
    for number, name in enumerate(("first", "second")):
        stage = StageFile(
            name=name,
            origin="assembled",
            status="complete",
            boundary=Boundary(optimizer="not known"),
            trainable=[],
            start=states[number],
            end=states[number + 1],
        )
        folder = f"stages/{number:02d}-{name}"
        sha256 = write_json(root / folder / "stage.json", stage)
        stages.append(StageRef(name=name, folder=folder, sha256=sha256))
    task = TaskRef(name="none", config={})
    write_json(root / "run.json", RunFile(name="large", task=task, stages=stages))
    return states


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache, so that reading them is reading the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def synced(folder: Path) -> int:
    """Wait until a folder's files are on disk; returns their bytes."""
    files = list(folder.iterdir())
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return sum(path.stat().st_size for path in files)


def hashing(path: Path) -> float:
    """Bytes per second of the digest that is asked for, of a file that is in memory."""
    reference = reference_of(path, path.name)
    began = time.perf_counter()
    assert is_as_recorded(path, reference)
    return path.stat().st_size / (time.perf_counter() - began)


def copying(source: Path, target: Path) -> float:
    """Bytes read plus written per second by ``cp`` of one state."""
    began = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    size = synced(target)
    return 2 * size / (time.perf_counter() - began)


def writing(run: Path, target: Path, size: int) -> tuple[float, int]:
    """Bytes read plus written per second, and the most anonymous memory of the process."""
    began = time.perf_counter()
    command = ["remove", str(run), "--stage", "first", "--out", str(target)]
    process = subprocess.Popen([sys.executable, "-m", "stagelens", *command])
    most = 0
    while process.poll() is None:
        most = max(most, anonymous(process.pid))
        time.sleep(0.01)
    assert process.returncode == 0
    synced(target)
    return 4 * size / (time.perf_counter() - began), most


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@pytest.mark.benchmark
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is read from /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_removing_a_stage_from_a_large_checkpoint_is_streamed(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < LEAST_FREE:
        pytest.skip(f"needs 25 GB free at {tmp_path}, there are {free / 1e9:.0f} GB")
    run = tmp_path / "run"
    try:
        states = made_up_run(run, dtype)
        inputs = [run / file.path for state in states for file in state.files]
        final = run / "checkpoints/02"
        hashes, copies, writes, most = [], [], [], 0
        for number in range(ROUNDS):
            hashes.append(hashing(inputs[-1]))
            forget(inputs)
            copies.append(copying(final, tmp_path / f"copy-{number}"))
            shutil.rmtree(tmp_path / f"copy-{number}")
            forget(inputs)
            rate, used = writing(run, tmp_path / f"out-{number}", STATE_BYTES)
            writes.append(rate)
            most = max(most, used)
            shutil.rmtree(tmp_path / f"out-{number}")
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
    # Medians of pairs, since the machine may be busier in one round than in the next.
    shares = sorted(rate / copy for rate, copy in zip(writes, copies, strict=True))
    share = shares[ROUNDS // 2]
    print(
        f"\nstreaming, {dtype}: {share:.2f} of cp's bytes per second "
        f"(cp {', '.join(f'{rate / 1e9:.2f}' for rate in copies)} GB/s; "
        f"stagelens remove {', '.join(f'{rate / 1e9:.2f}' for rate in writes)} GB/s; "
        f"xxh3 {max(hashes) / 1e9:.2f} GB/s a core, of which all that was read takes "
        f"{3 * STATE_BYTES / max(hashes):.0f} s), "
        f"{most / 2**20:.0f} MB anonymous, load {os.getloadavg()[0]:.1f}"
    )
    assert most <= MOST_ANONYMOUS
    assert share >= LEAST_SHARE
