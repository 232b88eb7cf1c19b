"""Small recorded runs in float64, and their replay written out, for tests of derivatives.

The replay here shares nothing with what it tests but the formulas of one update: gradients, batch
statistics and clipping are torch's own, and bias masses are part of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stagelens
from stagelens.derivatives.plain_loss import plain_attention
from stagelens.derivatives.step import AdamState, SGDState, adam_update, sgd_update
from stagelens.replaying.step import StepRules, prepare, restore_missing
from stagelens.replaying.training_loss import Passed, loss_of_stage
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState, load_into
from stagelens.tasks import ImageClassification
from stagelens.tasks.adapters import with_adapter

SHAPE = (1, 4, 4)
CLASSES = ("a", "b", "c")
Optimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Flat = dict[str, Tensor]
"""``block/name`` to tensor: a whole training state."""


class DeadUnits(nn.Sequential):
    """An MLP with ReLUs, a few of which never fire: their gradients are 0 throughout."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            self[1].bias[:3] = -50.0


class Branch(nn.Module):
    """A layer that only some batches reach, so it has no gradient at the others."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra, self.head = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(images.flatten(1)))
        if images.mean() > 0:
            hidden = hidden + torch.tanh(self.extra(hidden))
        return self.head(hidden)


class Encoder(nn.Module):
    """One layer of a transformer on the rows of the image, attention written out, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(4, 6), nn.Linear(6, 18), nn.Linear(6, 6)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        return self.dropout(scores.softmax(-1)) @ v

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images[:, 0])
        attended = self.attend(*self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.dropout(self.out(attended))
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Fused(Encoder):
    """The same with torch's fused attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def _normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.BatchNorm1d(6, momentum=None),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


class Averaging(nn.Module):
    """A buffer that training changes in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.mean += 0.1 * (images.mean().detach() - self.mean)
        return images - self.mean


class Headed(nn.Module):
    """A body and one head; another head is another parameter."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.GELU())
        self.head = head
        self.heads = nn.ModuleDict({head: nn.Linear(6, 3)})

    def forward(self, images: Tensor) -> Tensor:
        return self.heads[self.head](self.body(images))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "dead units": DeadUnits,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
    "averaging": lambda: nn.Sequential(Averaging(), nn.Flatten(), nn.Linear(16, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GELU(), nn.Conv2d(3, 4, 2), nn.GELU(), nn.Flatten(), nn.Linear(4, 3)
    ),
    "batch norm": _normalised,
    "encoder": Encoder,
    "fused": Fused,
    "branch": Branch,
    "head a": lambda: Headed("a"),
    "head b": lambda: Headed("b"),
}


def make_model(config: Mapping[str, Any]) -> nn.Module:
    model = NETWORKS[config["network"]]().to(getattr(torch, config.get("dtype", "float64")))
    return with_adapter(model, config["peft"]) if "peft" in config else model


@dataclass
class Phase:
    """One stage of a small run.

    Attributes:
        name: The stage's name.
        optimizer: From parameter groups, or None to carry the optimiser of the stage before.
        steps: How many.
        schedule: Called with the optimiser and the step's number before every update.
        network: Where it is another than the run's.
        peft: The adapter that the model has.
        change: Puts an adapter on, or takes it off.
        prepare: What happens to the model before.
        accumulation: Micro-batches per step.
        clip_norm: As recorded.
        batch: Examples per step.
    """

    name: str
    optimizer: Optimizer | None
    steps: int = 5
    schedule: Callable[[torch.optim.Optimizer, int], None] = lambda _optimizer, _step: None
    network: str | None = None
    peft: Mapping[str, Any] | None = None
    change: Callable[[nn.Module], nn.Module] = lambda model: model
    prepare: Callable[[nn.Module], None] = lambda _model: None
    accumulation: int = 1
    clip_norm: float | None = None
    batch: int = 6
    groups: Callable[[nn.Module], list[dict[str, Any]]] = field(
        default=lambda model: [{"params": [p for p in model.parameters() if p.requires_grad]}]
    )


def make_task(network: str, dtype: str = "float64") -> ImageClassification:
    return ImageClassification(
        CLASSES, SHAPE, model={"network": network, "dtype": dtype}, make_model=make_model
    )


def record(path: Path, network: str, phases: Sequence[Phase], dtype: str = "float64") -> Run:
    """Train and record a small run; the data differ from stage to stage."""
    torch.manual_seed(0)
    task = make_task(network, dtype)
    model = task.build_model()
    recorder = stagelens.Recorder(path, task, name="small")
    optimizer: torch.optim.Optimizer | None = None
    for number, phase in enumerate(phases):
        config = None
        if phase.network is not None:
            config = {"network": phase.network, "dtype": dtype}
            before, model = model.state_dict(), task.build_model(config)
            known = {k: v for k, v in before.items() if k in model.state_dict()}
            model.load_state_dict(known, strict=False)
        if phase.peft is not None:
            config = {"network": network, "dtype": dtype, "peft": dict(phase.peft)}
        model = phase.change(model)
        model.train()
        phase.prepare(model)
        if phase.optimizer is not None:
            optimizer = phase.optimizer(phase.groups(model))
        assert optimizer is not None
        _train(recorder, task, model, optimizer, phase, number, config)
    return stagelens.open_run(path, task)


def _train(
    recorder: stagelens.Recorder,
    task: ImageClassification,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    phase: Phase,
    number: int,
    config: dict[str, Any] | None,
) -> None:
    generator = torch.Generator().manual_seed(10 + number)
    dtype = next(model.parameters()).dtype
    with recorder.stage(
        phase.name,
        model=model,
        optimizer=optimizer,
        clip_norm=phase.clip_norm,
        accumulation=phase.accumulation,
        build_config=config,
    ) as stage:
        for step in range(phase.steps):
            x = torch.randn(phase.batch, *SHAPE, generator=generator, dtype=torch.float64)
            y = torch.randint(len(CLASSES), (phase.batch,), generator=generator)
            phase.schedule(optimizer, step)
            optimizer.zero_grad()
            size = phase.batch // phase.accumulation
            for micro in range(phase.accumulation):
                rows = slice(micro * size, (micro + 1) * size)
                batch = (x[rows].to(dtype), y[rows])
                loss = task.loss(model, batch)
                (loss / phase.accumulation).backward()
                if micro == phase.accumulation - 1:
                    if phase.clip_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), phase.clip_norm)
                    optimizer.step()
                stage.step(batch, loss)


# The replay, written out.


def flat(stage: Stage, recorded: TrainingState) -> Flat:
    """A recorded state; masses are computed from the betas that the stage starts with."""
    state = {f"value/{n}": t for n, t in recorded.model.items() if t.is_floating_point()}
    betas = _betas(stage)
    for name, entry in recorded.optimizer.items():
        if "momentum_buffer" in entry:
            state[f"v/{name}"] = entry["momentum_buffer"]
        elif entry:
            state[f"m/{name}"], state[f"u/{name}"] = entry["exp_avg"], entry["exp_avg_sq"]
            for block, beta in zip(("w1", "w2"), betas.get(name, (0.0, 0.0)), strict=True):
                state[f"{block}/{name}"] = 1 - beta ** entry["step"].double()
    return state


def _betas(stage: Stage) -> dict[str, tuple[float, float]]:
    return {
        name: tuple(group.hyperparameters["betas"])
        for group in stage.facts.optimizer.groups
        for name in group.parameters
        if "betas" in group.hyperparameters
    }


def crossed(state: Flat, stage: Stage) -> Flat:
    """The boundary rule of ``stage``."""
    start, boundary = flat(stage, stage.start()), stage.facts.boundary
    out = {}
    for key, tensor in start.items():
        block, _, name = key.partition("/")
        if block == "value" and name in boundary.new:
            out[key] = tensor
            continue
        out[key] = state[f"{block}/{boundary.renamed.get(name, name)}"]
        if block == "value" and name in boundary.merged:
            term = boundary.merged[name]
            b, a = state[f"value/{term.b}"], state[f"value/{term.a}"]
            product = torch.einsum("or,ri->oi", b, a)
            out[key] = out[key] + term.scaling * (product.T if term.transposed else product)
    return out


def moved(a: Flat, b: Flat, factor: float) -> Flat:
    """``a + factor (b - a)`` where blocks that are absent are zero."""
    keys = a.keys() | b.keys()
    zero = {key: torch.zeros_like(a[key] if key in a else b[key]) for key in keys}
    return {k: a.get(k, zero[k]) + factor * (b.get(k, zero[k]) - a.get(k, zero[k])) for k in keys}


def replay(run: Run, stage: Stage, state: Flat, xi: float = 1.0) -> Flat:
    """All steps of a stage, each taken to the share ``xi``: ``s + xi (F(s) - s)``."""
    facts = stage.facts
    model = run.task.build_model(facts.build_config)
    load_into(model, stage.start().model)
    rules = StepRules.of(facts)
    prepare(model, rules)
    plain_attention(model)
    start = {k.removeprefix("value/"): t for k, t in state.items() if k.startswith("value/")}
    passed = Passed([stage]).enter(stage, {**stage.start().model, **start})
    loss = loss_of_stage(run.task, stage, model, passed).plain()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    optimizer = torch.optim.SGD(
        [parameters[n] for group in facts.optimizer.groups for n in group.parameters], 0.1
    )
    betas = _betas(stage)
    for step in stage.read_steps():
        with torch.no_grad():
            for name, tensor in {**parameters, **buffers}.items():
                if tensor.is_floating_point():
                    tensor.copy_(state[f"value/{name}"])
        optimizer.zero_grad()
        for micro in step.batches or ():
            if "cpu" in micro.rng:
                torch.set_rng_state(micro.rng["cpu"])
            (loss(model, micro.batch) / rules.divisor(micro)).backward()
        restore_missing(parameters, step.missing, optimizer.param_groups[0]["params"])
        if facts.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), facts.clip_norm)
        after = dict(state)
        after |= {
            f"value/{n}": b.detach().clone() for n, b in buffers.items() if b.is_floating_point()
        }
        masses = dict(state)
        for group, values in zip(facts.optimizer.groups, step.groups, strict=True):
            for name in group.parameters:
                gradient = parameters[name].grad
                if gradient is not None:
                    _update(
                        facts.optimizer.name, name, state, masses, after, gradient, values, betas
                    )
        state = moved({**masses, **{k: v for k, v in state.items() if k[0] != "w"}}, after, xi)
    return state


def _update(
    rule: str,
    name: str,
    before: Flat,
    masses: Flat,
    after: Flat,
    gradient: Tensor,
    values: Mapping[str, Any],
    betas: dict[str, tuple[float, float]],
) -> None:
    """One parameter's update; ``masses`` gets those before it, of the step's own betas."""
    theta = before[f"value/{name}"]
    if rule == "SGD":
        keys = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
        new = sgd_update(
            SGDState(theta, before.get(f"v/{name}")), gradient, **{k: values[k] for k in keys}
        )
        after[f"value/{name}"] = new.theta
        if new.v is not None:
            after[f"v/{name}"] = new.v
        return
    zero = torch.zeros_like(theta)
    none = torch.zeros((), dtype=torch.float64)
    now = tuple(values["betas"])
    own = []
    for block, beta, old in zip(("w1", "w2"), now, betas[name], strict=True):
        w = before.get(f"{block}/{name}", none)
        if beta != old:
            w = 1 - (1 - w) ** (math.log(beta) / math.log(old))
        masses[f"{block}/{name}"] = w
        after[f"{block}/{name}"] = beta * w + 1 - beta
        own.append(after[f"{block}/{name}"])
    betas[name] = now
    state = AdamState(theta, before.get(f"m/{name}", zero), before.get(f"u/{name}", zero), none)
    new = adam_update(
        state,
        gradient,
        lr=values["lr"],
        betas=now,
        eps=values["eps"],
        weight_decay=values["weight_decay"],
        decoupled=rule == "AdamW",
        masses=(own[0], own[1]),
    )
    after |= {f"value/{name}": new.theta, f"m/{name}": new.m, f"u/{name}": new.u}
