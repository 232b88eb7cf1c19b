"""Trainings of several processes by accelerate and by ``transformers.Trainer``, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import stagelens
from stagelens.runs.states import model_tensors
from stagelens.tasks import CausalLM
from tests.support import double_language
from tests.support.launched import as_launched
from tests.support.parallel_loops import Training
from tests.support.small_texts import gpt, gpt_tokenizer
from tests.support.small_trainings import arguments, made, trainer


def with_accelerate(rank: int, count: int, port: int, folder: Path, training: Training) -> None:
    """The usual loop of accelerate, which spreads batches, accumulates and clips."""
    as_launched(rank, count, port, folder)
    from accelerate import Accelerator

    (stage,) = training.stages
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=stage.accumulation)
    task, model = training.task(), training.fresh()
    rows = [row for batch in training.batches(stage, 1, 0) for row in zip(*batch, strict=True)]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate)
    shared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    recorder = stagelens.Recorder(folder / "run", task)
    with recorder.stage(
        stage.name,
        model=shared,
        optimizer=optimizer,
        clip_norm=stage.clip_norm,
        on_problem="raise",
    ) as recorded:
        for batch in loader:
            with accelerator.accumulate(shared):
                loss = task.loss(shared, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients and stage.clip_norm is not None:
                    accelerator.clip_grad_norm_(shared.parameters(), stage.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            recorded.step(batch, loss)
    recorder.close()
    accelerator.end_training()


def with_trainer(
    rank: int, count: int, port: int, folder: Path, kind: str, settings: dict[str, Any]
) -> None:
    """Two trainings in a row by the Trainer, each a stage."""
    as_launched(rank, count, port, folder)
    from stagelens.recording.trainer_callback import StageRecorderCallback

    torch.manual_seed(0)
    model, tokenizer = made(kind)
    model.double()
    for number, name in enumerate(("first", "second")):
        args = arguments(folder / name, ddp_backend="gloo", **settings)
        recording = StageRecorderCallback(folder / "run", stage=name, on_problem="raise")
        trainer(kind, model, tokenizer, args, seed=number, callbacks=[recording]).train()
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")


def in_double() -> CausalLM:
    """A language model whose losses transformers would take in float32, without dropout."""
    tokenizer = gpt_tokenizer(pad_token="<|endoftext|>")
    drops = {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    model = gpt(tokenizer, use_cache=False, **drops)
    return CausalLM.from_model(model, tokenizer, make_model=double_language.made)


def that_counts_tokens(rank: int, count: int, port: int, folder: Path, together: bool) -> None:
    """Two stages by the Trainer, which counts a step's tokens over all processes or by process."""
    as_launched(rank, count, port, folder)
    from stagelens.recording.trainer_callback import StageRecorderCallback

    task, tokenizer = in_double(), gpt_tokenizer(pad_token="<|endoftext|>")
    torch.manual_seed(0)
    model = double_language.made(task.model)
    for number, (name, steps) in enumerate((("first", 3), ("second", 2))):
        args = arguments(
            folder / name,
            ddp_backend="gloo",
            average_tokens_across_devices=together,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=steps,
            optim="sgd",
            learning_rate=0.1,
            weight_decay=0.0,
            max_grad_norm=0.0,
        )
        recording = StageRecorderCallback(folder / "run", stage=name, task=task, on_problem="raise")
        trainer("gpt", model, tokenizer, args, seed=number, callbacks=[recording]).train()
