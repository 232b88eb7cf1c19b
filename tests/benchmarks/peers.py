"""What training-data attribution libraries say of a stage: their example scores, summed.

None of them knows a stage. Scores of a stage's training examples are summed, over checkpoints at
the stage's start and end, with the mean learning rate, and with the sign of a stage effect:
training goes down the gradient of the loss, so what the examples added to a behaviour y is
-sum lr <grad y, grad loss>.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stagelens.replaying.replay import StageReplay
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
        found["dattri DVEmb"] = dattri_dvemb
    return found


MOST_PARAMETERS = 20_000
"""Of a network that DVEmb is run on: it keeps a matrix of parameters times parameters."""


def fits(peer: str, run: Run) -> bool:
    """Whether a peer can be run on a run's network."""
    if peer != "dattri DVEmb":
        return True
    return sum(p.numel() for p in run.task.build_model().parameters()) <= MOST_PARAMETERS


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


def dattri_dvemb(run: Run, stage: Stage, images: Tensor, labels: Tensor) -> np.ndarray:
    """dattri's data value embeddings, summed over a stage, (N,) effects on the margin."""
    final = run.task.build_model().eval()
    load_into(final, run.last.end().model)
    embedding = _embeddings(run)[stage.name]
    names = [name for name, _ in final.named_parameters()]

    def one(parameters: tuple[Tensor, ...], image: Tensor, label: Tensor) -> Tensor:
        own = dict(zip(names, parameters, strict=True))
        logits = torch.func.functional_call(final, own, (image.unsqueeze(0),))
        return margin(logits, label.unsqueeze(0)).squeeze()

    gradients = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(
        tuple(p.detach() for p in final.parameters()), images, labels
    )
    flat = torch.cat([g.flatten(1) for g in gradients], dim=1)
    return np.asarray(-(flat @ embedding))


@lru_cache(maxsize=1)
def _embeddings(run: Run) -> dict[str, Tensor]:
    """Stage to the sum of its examples' embeddings, (P,); plain SGD is assumed.

    With momentum mu, a gradient moves the weights 1 / (1 - mu) times as far in the end.
    """
    from dattri.algorithm.dvemb import DVEmbAttributor
    from dattri.task import AttributionTask

    model = run.task.build_model().eval()

    def loss(params: Any, data: Any) -> Tensor:
        image, label = data
        logits = torch.func.functional_call(model, params, (image.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, label.long().unsqueeze(0))

    task = AttributionTask(loss_func=loss, model=model, checkpoints=run.last.end().model)
    scorer = DVEmbAttributor(task, factorization_type="none")
    for number, stage in enumerate(run.stages):
        replay = StageReplay(run.task, stage)
        load_into(scorer.model, replay.state().model)
        for record in replay.run():
            (images, labels) = (record.batches or [])[0].batch
            group = record.groups[0]
            rate = float(group["lr"]) / (1 - float(group.get("momentum", 0.0)))
            # Every example under one index, so that their embeddings are summed.
            nobody = torch.zeros(len(labels), dtype=torch.int64)
            scorer.cache_gradients(number, (images, labels), nobody, rate)
            load_into(scorer.model, replay.state().model)  # after the step: the next one's model
    scorer.cache()
    return {stage.name: scorer.embeddings[n][0] for n, stage in enumerate(run.stages)}
