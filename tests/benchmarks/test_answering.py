"""Answers per second, beside plain ``generate`` of one prompt at a time and of batches."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch

from stagelens.measuring.generation import NEAR_TIE, Generation, generate
from stagelens.tasks import CausalLM
from tests.support.long_texts import language_model, texts

COUNT = 96
PAIRS = 3
HOW = Generation(max_tokens=24)


def plainly(task: CausalLM, model: Any, prompts: Mapping[str, str], rows: int) -> dict[str, str]:
    """Answers by ``generate`` on so many prompts at a time as they come, padded on the left."""
    names, found = list(prompts), {}
    for start in range(0, len(names), rows):
        some = names[start : start + rows]
        ids = [task.prompt_tokens(prompts[name], HOW.max_tokens)[0] for name in some]
        width = max(map(len, ids))
        out = model.generate(
            input_ids=torch.tensor([[0] * (width - len(own)) + own for own in ids]),
            attention_mask=torch.tensor([[0] * (width - len(o)) + [1] * len(o) for o in ids]),
            max_new_tokens=HOW.max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        for name, own in zip(some, out[:, width:].tolist(), strict=True):
            end = own.index(0) if 0 in own else len(own)
            found[name] = task.tokenizer.decode(own[:end], special=False)
    return found


@pytest.mark.benchmark
def test_answers_are_quicker_than_by_plain_generate() -> None:
    task, model = language_model()
    prompts = {each.example_id: each.input["prompt"] for each in texts(COUNT)}
    weights = {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    found = generate(task, model, copies, prompts, HOW)
    for rows in (1, 16):
        plain = plainly(task, model, prompts, rows)
        differing = [name for name, (own,) in found.items() if own.text != plain[name]]
        assert all(found[name][0].gap < NEAR_TIE for name in differing)
        print(f"\n{len(differing)} of {COUNT} answers differ from those of {rows} at a time")
    ways = {
        "ours": partial(generate, task, model, copies, prompts, HOW),
        "one at a time": partial(plainly, task, model, prompts, 1),
        "16 at a time": partial(plainly, task, model, prompts, 16),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(PAIRS):
        # In turn, so that what else the machine does falls on all alike.
        for name, work in list(ways.items())[:: -1 if pair % 2 else 1]:
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    said = {name: COUNT / statistics.median(each) for name, each in taken.items()}
    print(
        f"answers per second ({COUNT} prompts of log-normal length, {HOW.max_tokens} tokens): "
        + ", ".join(f"{name} {each:.1f}" for name, each in said.items())
        + f" ({torch.get_num_threads()} thread, load {os.getloadavg()[0]:.1f})"
    )
    assert said["ours"] > said["one at a time"]
