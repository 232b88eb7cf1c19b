"""The memory that the recorder takes when it checks steps of a stage.

One command prints the table::

    python -m tests.benchmarks.first_step [--millions 100] [--optimizer AdamW] [--as-large]

A Llama of random weights in float32 is trained for six steps, once as it is and once recorded, each
in a process of its own: two of the steps are checked when they are noted, and the last one when the
stage ends, unless ``--as-large`` treats the model as one over 1 GB. What the training itself takes
is weights, gradients, two moments and activations; what the recorder takes beyond that is told in
sizes of the model. Memory is given back to the system at once, as it is that of large tensors.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import transformers

import stagelens
from stagelens.recording import checked_steps
from tests.support.small_texts import TEXTS, gpt_tokenizer

STEPS = 6


def training(millions: float, kind: str, out: Path | None) -> None:
    """Two steps, recorded where there is a folder for it; prints the model's bytes."""
    tokenizer = gpt_tokenizer()
    width, layers = 768, max(1, round((millions * 1e6 - 2 * 330 * 768) / (768 * 768 * 12)))
    config = transformers.LlamaConfig(
        vocab_size=330,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    task = stagelens.tasks.CausalLM(config.to_dict(), tokenizer)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-4)
    batch = task.batch(TEXTS[:2])

    def step() -> torch.Tensor:
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    print(sum(parameter.nbytes for parameter in model.parameters()), flush=True)
    if out is None:
        for _ in range(STEPS):
            step()
        return
    recorder = stagelens.Recorder(out, task=task, name="memory")
    with recorder.stage("first", model=model, optimizer=optimizer, on_problem="raise") as stage:
        for _ in range(STEPS):
            stage.step(batch, step())


def peak(*arguments: str) -> tuple[int, int]:
    """The model's bytes, and the most anonymous memory that the process takes."""
    command = [sys.executable, "-m", "tests.benchmarks.first_step", *arguments]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            most = max(
                [most, *(1024 * int(x.split()[1]) for x in lines if x.startswith("RssAnon"))]
            )

    thread = threading.Thread(target=watch)
    thread.start()
    said, _ = process.communicate()
    done.set()
    thread.join()
    assert process.returncode == 0
    return int(said.split()[0]), most


def measured(millions: float, kind: str, as_large: bool) -> tuple[float, float]:
    """What training takes, and what recording takes beyond it, in sizes of the model."""
    options = ["--millions", str(millions), "--optimizer", kind, "--in-process"]
    options += ["--as-large"] if as_large else []
    with tempfile.TemporaryDirectory() as folder:
        size, plain = peak(*options)
        _, recorded = peak(*options, "--out", f"{folder}/run")
        _, nothing = peak("--millions", "0.1", "--optimizer", kind, "--in-process")
    return (plain - nothing) / size, (recorded - plain) / size


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=100.0, help="parameters of the model")
    parser.add_argument("--optimizer", default="AdamW", help="a class of torch.optim")
    parser.add_argument("--as-large", action="store_true", help="as a model over 1 GB is checked")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.as_large:
        checked_steps._COPIED_BYTES = 0
    if asked.in_process:
        training(asked.millions, asked.optimizer, asked.out)
        return
    began = time.perf_counter()
    plain, more = measured(asked.millions, asked.optimizer, asked.as_large)
    print(
        f"checked steps, {asked.millions:g} million parameters, {asked.optimizer}"
        f"{', as a model over 1 GB' if asked.as_large else ''}: training takes "
        f"{plain:.1f} of the model's size, the recorder {more:.1f} more "
        f"({time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f})"
    )


if __name__ == "__main__":
    main()
