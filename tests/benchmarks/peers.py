"""What training-data attribution libraries say of a stage: their example scores, summed.

None of them knows a stage. Scores of a stage's training examples are summed, over checkpoints at
the stage's start and end, with the mean learning rate, and with the sign of a stage effect:
training goes down the gradient of the loss, so what the examples added to a behaviour y is
-sum lr <grad y, grad loss>.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.runs.run import Run, Stage
from stagelens.runs.states import load_into

Peer = Callable[[Run, Stage, Tensor, Tensor], np.ndarray]


def available() -> dict[str, Peer]:
    """Peers that are installed, by name."""
    found: dict[str, Peer] = {}
    if importlib.util.find_spec("captum"):
        found["captum TracInCP"] = captum_tracin
    if importlib.util.find_spec("dattri"):
        found["dattri TracIn"] = dattri_tracin
    return found


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) log-odds of the label."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return own - others


def _examples(stage: Stage) -> tuple[Tensor, Tensor, np.ndarray, float]:
    """Distinct training examples of a stage, how often each was used, and lr / batch size."""
    batches = [step.batches[0].batch for step in stage.read_steps() if step.batches]
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    rows = np.concatenate([x.flatten(1).numpy(), y[:, None].numpy()], axis=1)
    _, index, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    rate = float(stage.table()["lr"].mean()) / len(batches[0][1])
    return x[index], y[index], counts.astype(float), rate


def _states(run: Run, stage: Stage) -> list[Mapping[str, Tensor]]:
    return [stage.start().model, stage.end().model]


def captum_tracin(run: Run, stage: Stage, images: Tensor, labels: Tensor) -> np.ndarray:
    """captum's TracInCP, (N,) effects on the margin."""
    from captum.influence import TracInCP
    from torch.utils.data import TensorDataset

    x, y, counts, rate = _examples(stage)
    model = run.task.build_model().eval()

    def load(module: nn.Module, state: Any) -> float:
        load_into(module, state)
        return 1.0

    scorer = TracInCP(
        model,
        TensorDataset(x, y),
        checkpoints=_states(run, stage),
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        test_loss_fn=lambda logits, target: margin(logits, target).sum(),
        batch_size=256,
        sample_wise_grads_per_batch=True,
    )
    scores = scorer.influence((images, labels)).detach().numpy()
    return np.asarray(-rate / 2 * (scores @ counts))


def dattri_tracin(run: Run, stage: Stage, images: Tensor, labels: Tensor) -> np.ndarray:
    """dattri's TracInAttributor, (N,) effects on the margin."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    x, y, counts, rate = _examples(stage)
    model = run.task.build_model().eval()

    def loss(params: Any, data: Any) -> Tensor:
        image, label = data
        logits = torch.func.functional_call(model, params, (image.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, label.long().unsqueeze(0))

    def target(params: Any, data: Any) -> Tensor:
        image, label = data
        logits = torch.func.functional_call(model, params, (image.unsqueeze(0),))
        return margin(logits, label.long().unsqueeze(0)).squeeze()

    task = AttributionTask(
        loss_func=loss, target_func=target, model=model, checkpoints=_states(run, stage)
    )
    scorer = TracInAttributor(task, weight_list=torch.ones(2), normalized_grad=False, device="cpu")
    train = DataLoader(TensorDataset(x, y), batch_size=256)
    test = DataLoader(TensorDataset(images, labels), batch_size=64)
    scores = scorer.attribute(train, test).detach().numpy()
    return np.asarray(-rate / 2 * (counts @ scores))
