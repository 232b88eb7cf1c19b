"""What the final model makes of examples before its answer: vectors to group look-alikes by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stagelens.contracts import Example, Task
from stagelens.measuring.models import BATCH_SIZE
from stagelens.runs.batches import to_device
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.states import load_into


def representations(run: Run, examples: EvaluationSet) -> np.ndarray | None:
    """(N, D) what the final model gives to its last linear layer; None where it has none.

    Only a layer that reads one vector per example counts, so models that answer for every token
    have none.
    """
    model = run.task.build_model(run.last.facts.build_config)
    load_into(model, run.last.end().model)
    return _last_inputs(run.task, model.eval(), examples)


def _last_inputs(task: Task, model: nn.Module, examples: EvaluationSet) -> np.ndarray | None:
    calls: list[list[torch.Tensor]] = []

    def begin(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        calls.append([])

    def see(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not calls:  # a task that calls a part of the model
            calls.append([])
        calls[-1].append(inputs[0])

    hooks = [model.register_forward_pre_hook(begin)]
    hooks += [m.register_forward_pre_hook(see) for m in model.modules() if isinstance(m, nn.Linear)]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = []
    try:
        with torch.inference_mode():
            for batch in examples.batches(BATCH_SIZE):
                groups = _of_one_length(task, batch)
                own = []
                for group in groups:
                    calls.clear()
                    collated = task.collate([batch[row] for row in group])
                    task.outputs(model, to_device(collated, device))
                    # Hooks fire in the order of the calls.
                    last = [[x for x in seen if x.ndim == 2][-1:] for seen in calls]
                    vectors = [x for each in last for x in each]
                    if sum(map(len, vectors)) != len(group):
                        return None
                    own += vectors
                # As float32, because numpy has no bfloat16.
                inputs = torch.cat(own).float().cpu().numpy()
                found.append(inputs[np.argsort(np.concatenate(groups))])
    finally:
        for hook in hooks:
            hook.remove()
    return np.concatenate(found) if found else None


def _of_one_length(task: Task, batch: Sequence[Example]) -> list[list[int]]:
    """Numbers of a batch's examples, those of as many tokens together.

    Tasks on texts cut batches up by length, and rows that are as long keep their order.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(batch):
        collated = task.collate([example]) if task.input_kind == "text" else None
        mask = collated.get("attention_mask") if isinstance(collated, Mapping) else None
        groups[0 if mask is None else int(mask.sum())].append(row)
    return list(groups.values())
