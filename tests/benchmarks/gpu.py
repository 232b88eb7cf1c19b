"""What recording, replay, coarse replay and effects take on a large GPU, with a random transformer.

One command prints the table, and writes it as JSON where it is asked to::

    python -m tests.benchmarks.gpu [--millions 500] [--steps 12] [--out FILE] [--small]

A Llama of random weights is trained in bfloat16 with AdamW; it is made to take under 8 minutes on
one large GPU. ``--small`` runs the same on the CPU with a tiny model in float32, which shows only
that the script works. **No GPU was to be had so far: neither the time nor any figure of one is
known.** All of it runs with deterministic algorithms; CUBLAS_WORKSPACE_CONFIG is set before torch
is loaded.

- *recording*: the median step of a recorded loop over that of a plain one, in turn.
- *replay*: whether both stages replay bit for bit, and a replayed step's time over a plain one's.
- *coarse replay*: its time without the first stage, in replays, against the cost that it counts.
- *effects*: examples a second of measuring three models, over those of a loop written by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import transformers
from torch import Tensor, nn

import stagelens
from stagelens.contracts import no_progress
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.measuring.models import BATCH_SIZE, empty_model, measure
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.runs.states import load_into
from stagelens.tasks import CausalLM
from tests.support.small_texts import TEXTS, gpt_tokenizer

BUDGET = 0.25


@dataclass(frozen=True)
class Size:
    """How large all is.

    Attributes:
        millions: Parameters of the model, about.
        width: Its hidden size.
        vocabulary: Its tokens.
        rows: Of a batch.
        length: Tokens of a row.
        steps: Of each of the two stages.
        texts: Examples of the evaluation set.
        repeats: Texts that are joined to an example.
        dtype: Of the weights.
    """

    millions: float
    width: int
    vocabulary: int
    rows: int
    length: int
    steps: int
    texts: int
    repeats: int
    dtype: torch.dtype


LARGE = Size(500, 1536, 32_000, 8, 512, 12, 512, 12, torch.bfloat16)
SMALL = Size(0.1, 32, 330, 2, 16, 4, 6, 1, torch.float32)


class Subject:
    """The model that is trained, made anew from the same seed each time."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        tokenizer = gpt_tokenizer()
        rest = size.millions * 1e6 - 2 * size.vocabulary * size.width
        self.config = transformers.LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=size.width * 8 // 3,
            num_hidden_layers=max(2, round(rest / (12 * size.width**2))),
            num_attention_heads=max(size.width // 64, 2),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype=size.dtype,
        )
        self.task = CausalLM(self.config.to_dict(), tokenizer)

    def training(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A model with its optimiser."""
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(self.config, dtype=self.size.dtype)
        model = model.to(self.device)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-4)

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Those of one stage: random tokens."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.size.rows, self.size.length)
        for _ in range(self.size.steps):
            ids = torch.randint(self.size.vocabulary, shape, generator=generator).to(self.device)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of some work, to its end on the device."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def stepping(
    subject: Subject, training: tuple[nn.Module, torch.optim.Optimizer], recorder: Any = None
) -> Iterator[float]:
    """Two stages step by step; yields the seconds of each step."""
    model, optimizer = training
    for number, name in enumerate(("first", "second")):
        stage = None if recorder is None else recorder.stage(name, model=model, optimizer=optimizer)
        entered = None if stage is None else stage.__enter__()
        for batch in subject.batches(number):

            def step(batch: dict[str, Tensor] = batch, noted: Any = entered) -> None:
                loss = subject.task.loss(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if noted is not None:
                    noted.step(batch, loss)

            yield timed(subject.device, step)
        if stage is not None:
            stage.__exit__(None, None, None)


def recorded(subject: Subject, folder: Path) -> tuple[Run, dict[str, float]]:
    """A run, and what its recording took."""
    recorder = stagelens.Recorder(folder, task=subject.task, name="gpu")
    loops = [
        stepping(subject, subject.training()),
        stepping(subject, subject.training(), recorder),
    ]
    # In turn, so that what else the machine does falls on both alike.
    plain, own = zip(*zip(*loops, strict=True), strict=True)
    texts = [
        " ".join(TEXTS[n % len(TEXTS)] for _ in range(subject.size.repeats))
        for n in range(subject.size.texts)
    ]
    recorder.add_set("test", texts=texts)
    skipped = len(plain) // 4  # to warm up; the first step is checked too
    usual, noted = (statistics.median(each[skipped:]) for each in (plain, own))
    return recorder.run(), {
        "plain_step_s": usual,
        "recorded_step_s": noted,
        "recording_ratio": noted / usual,
        "first_recorded_step_s": own[0],
    }


def replayed(run: Run, device: torch.device, plain_step: float) -> dict[str, Any]:
    """How exactly the stages replay, and how fast; coarse replay against it."""
    found = [measure_deviation(run.task, stage) for stage in run.stages]
    first = run.stages[0]
    replay_without(run, first)  # to warm up
    whole = timed(device, lambda: replay_without(run, first))
    trusts = []

    def coarse() -> None:
        made = CoarseReplay(BUDGET)
        trusts.extend(each.trust for each in made.counterfactuals(run, [first], no_progress))

    coarse()
    wall = timed(device, coarse) / whole
    return {
        "bitwise": [each.bitwise for each in found],
        "deviation": [each.relative for each in found],
        "replay_step_ratio": whole / run.stages[1].steps / plain_step,
        "coarse_wall": wall,
        "coarse_counted": trusts[-1].cost,
        "coarse_wall_over_counted": wall / trusts[-1].cost,
    }


def effects(run: Run, device: torch.device) -> dict[str, float]:
    """Examples a second of the product, and of a loop by hand, over the same models."""
    models = [run.last.end().model, *(stage.start().model for stage in run.stages)]
    examples = run.evaluation_set("test")
    module = empty_model(run)
    by_hand = run.task.build_model(run.last.facts.build_config).to(device).eval()

    def product() -> None:
        batches = examples.batches(BATCH_SIZE)
        measure(run.task, module, models, batches, examples.count)

    def loop() -> None:
        with torch.inference_mode():
            for weights in models:
                load_into(by_hand, weights)
                for batch in examples.batches(32):
                    given = {name: t.to(device) for name, t in run.task.collate(batch).items()}
                    ids, mask = given["input_ids"], given["attention_mask"]
                    logits = by_hand(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                    losses = nn.functional.cross_entropy(
                        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
                    )
                    losses.view(len(ids), -1).mul(mask[:, 1:]).sum(1).tolist()

    product(), loop()  # to warm up
    pairs = [(timed(device, product), timed(device, loop)) for _ in range(3)]
    own, plain = (statistics.median(each) for each in zip(*pairs, strict=True))
    passes = examples.count * len(models)
    return {
        "effects_examples_per_s": passes / own,
        "loop_examples_per_s": passes / plain,
        "effects_over_loop": plain / own,
    }


def measured(size: Size, device: torch.device) -> dict[str, Any]:
    """All figures."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(size, device)
            run, figures = recorded(subject, Path(folder) / "run")
            figures |= replayed(run, device, figures["plain_step_s"]) | effects(run, device)
            count = sum(p.numel() for p in run.task.build_empty().parameters())
    finally:
        torch.use_deterministic_algorithms(was)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    facts = {**asdict(size), "dtype": str(size.dtype), "parameters": count, "device": name}
    return {**facts, **figures, "torch": torch.__version__, "seconds": time.perf_counter() - began}


GOALS = {"effects_over_loop": ">= 0.9", "bitwise": "all", "recording_ratio": "<= 1.08"}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=LARGE.millions)
    parser.add_argument("--steps", type=int, default=LARGE.steps, help="of each of two stages")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--small", action="store_true", help="a tiny model, on the CPU")
    asked = parser.parse_args()
    if not asked.small and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --small runs the same on the CPU with a tiny model")
    large = {**asdict(LARGE), "millions": asked.millions, "steps": asked.steps}
    size, device = (SMALL, "cpu") if asked.small else (Size(**large), "cuda")
    os.environ["STAGELENS_DEVICE"] = device
    figures = measured(size, torch.device(device))
    for name, value in figures.items():
        said = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{name:24} {said}{f'   (goal: {GOALS[name]})' if name in GOALS else ''}")
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
