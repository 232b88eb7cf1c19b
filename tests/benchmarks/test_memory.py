"""Memory that a large checkpoint takes, relative to its size, by command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.checkpoints import changed, labelled_texts, save
from tests.support.small_texts import gpt_tokenizer

LEAST_FREE = 4 * 10**9
MOST = 1.3
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def checkpoints(root: Path, dtype: torch.dtype, sizes: dict[str, int], vocabulary: int) -> int:
    """Three checkpoints of a Llama; returns the bytes of one."""
    tokenizer = gpt_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for number, name in enumerate(("base", "sft", "dpo")):
        save(changed(model, number, 1e-3), root / name, tokenizer)
    return sum(parameter.nbytes for parameter in model.parameters())


def peaks(*arguments: str, ends: tuple[int, ...] = (0,)) -> tuple[int, int]:
    """The most anonymous memory of a command, and the most resident memory, mapped files too.

    Args:
        arguments: Of the command line.
        ends: Exit statuses that are right.
    """
    process = subprocess.Popen([sys.executable, "-m", "stagelens", *arguments])
    anonymous = resident = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines if "kB" in line}
        anonymous = max(anonymous, 1024 * found.get("RssAnon", 0))
        resident = max(resident, 1024 * found.get("VmHWM", 0))
        time.sleep(0.005)
    assert process.wait() in ends
    return anonymous, resident


def measured(root: Path) -> dict[str, tuple[int, int]]:
    """Both peaks of every command."""
    stages = [word for n in ("base", "sft", "dpo") for word in ("--stage", f"{n}={root / n}")]
    texts = str(labelled_texts(root / "test.jsonl"))
    out = str(root / "run")
    return {
        "assemble": peaks("assemble", *stages, "--out", out, "--link", "--eval", texts),
        "size": peaks("size", out),
        # First, as what is measured for it is stored.
        "remove": peaks("remove", out, "--stage", "sft", "--strength", "0.5", "--set", "test"),
        "remove --out": peaks("remove", out, "--stage", "sft", "--out", str(root / "edited")),
        "attribute": peaks("attribute", out, "--set", "test", "--estimator", "task-vector"),
        # 4: without recorded steps, not everything can be told.
        "check": peaks("check", out, ends=(4,)),
    }


@pytest.mark.benchmark
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is read from /proc")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_one_model_is_in_memory_at_a_time(dtype: torch.dtype, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < LEAST_FREE:
        pytest.skip(f"needs 4 GB free at {tmp_path}, there are {free / 1e9:.0f} GB")
    try:
        # What Python and its libraries take, whatever the model.
        checkpoints(tmp_path / "small", dtype, SMALL, 330)
        without = measured(tmp_path / "small")
        size = checkpoints(tmp_path / "large", dtype, LARGE, 32_000)
        with_it = measured(tmp_path / "large")
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
    for command, both in with_it.items():
        shares = [(a - b) / size for a, b in zip(both, without[command], strict=True)]
        print(
            f"\nmemory, {dtype}, {command}: {shares[0]:.2f} of the model's {size / 1e6:.0f} MB "
            f"anonymous, {shares[1]:.2f} with mapped files, beyond the "
            f"{without[command][1] / 1e6:.0f} MB of a small model; load {os.getloadavg()[0]:.1f}"
        )
        assert max(shares) <= MOST
