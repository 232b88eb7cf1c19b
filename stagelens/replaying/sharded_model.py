"""A stage replayed by several processes, each of which holds a part of the model.

Torch's ``fully_shard`` gathers the parameters of a module where a pass needs them, and averages
gradients over processes. Each process runs whole micro-batches: those of the process of its number
where as many trained the stage, which is then repeated as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import processes
from stagelens.compute.unallocated import allocate
from stagelens.contracts import Refused
from stagelens.runs.gathering import gathered_files
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.run import Stage
from stagelens.runs.saved_states import nested
from stagelens.runs.shards import shared_like
from stagelens.runs.states import (
    OptimizerState,
    TrainingState,
    Weights,
    fitted,
    model_tensors,
    optimizer_tensors,
)
from stagelens.runs.step_records import MicroBatch
from stagelens.runs.streaming import MappedTensors


def check_shardable(stage: Stage) -> None:
    """Refuse a stage that several processes with parts of the model do not repeat.

    Raises:
        Refused: It ends with an average of weights, or reference models move with the model.
    """
    facts = stage.facts
    why = ""
    if facts.average is not None:
        why = "it ends with an average of its weights"
    elif facts.objective is not None and facts.objective.moves_references:
        why = "its reference models move with the model"
    if why:
        raise Refused(
            f"stage {stage.name!r} cannot be replayed with the model shared out, because {why}; "
            "use --no-shard"
        )


def share_out(model: nn.Module, stage: Stage, weights: Weights, device: torch.device) -> None:
    """Let each process of the job hold a part of a model.

    No more than one of the modules that are shared out is whole in memory at a time.

    Args:
        model: As the task builds it, prepared for the stage; parameters may be on ``meta``.
        stage: Whose.
        weights: To put in; the same in all processes.
        device: Where this process computes.

    Raises:
        RunError: The weights belong to another architecture.
        Refused: It has weights that cannot be shared out.
    """
    from torch.distributed.fsdp import fully_shard

    own = fitted(model, weights)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise Refused(
                f"stage {stage.name!r} cannot be replayed with the model shared out, because its "
                f"{name} is {own[name].dtype}, no floating-point numbers; use --no-shard"
            )
    mesh: Any = _mesh(device)
    for name in reversed(_modules(stage, model)):
        module = model.get_submodule(name)
        allocate(module, device)
        module.to(device)
        fully_shard(module, mesh=mesh)
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(shared_like(tensor, weights[name]))


def _mesh(device: torch.device) -> Any:
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if device.type == "cpu":
        return init_device_mesh("cpu", (processes.count(),))
    # The job's own group sends objects, by gloo, which shares out no tensors of a GPU.
    group = torch.distributed.new_group(backend="nccl")
    return DeviceMesh.from_group(group, device.type)


def _modules(stage: Stage, model: nn.Module) -> Sequence[str]:
    """What is shared out by itself, outermost first: as recorded, else the blocks it is made of."""
    if stage.facts.parallel is not None and stage.facts.parallel.modules:
        return stage.facts.parallel.modules
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [n for n, m in model.named_modules() if n and type(m).__name__ in kinds]
    return ["", *blocks]


class SharedModel:
    """A model that is shared out over the processes of the job, and the passes of this one.

    Args:
        stage: That is replayed.
        model: After :func:`share_out`.

    Attributes:
        count: How many processes there are.
    """

    def __init__(self, stage: Stage, model: nn.Module) -> None:
        self.count = processes.count()
        self._root, self._model = stage.root, model
        self._trained_by = stage.facts.processes
        # Only the main process's are kept, so that it makes the passes that move them.
        self._moving = any(buffer.is_floating_point() for buffer in model.buffers())

    def own(self, batches: Sequence[MicroBatch]) -> list[tuple[int | None, MicroBatch]]:
        """This process's passes in a step: as many in all processes, as each gathers parameters.

        Args:
            batches: All of the step's.

        Returns:
            Each with its place in the step; None for one that has to add nothing.
        """
        alone = self._trained_by == 1
        # Of one process's micro-batches, others may take some where no pass moves a buffer.
        whose = [
            (0 if self._moving else place) if alone else micro.process
            for place, micro in enumerate(batches)
        ]
        each = [
            [place for place, who in enumerate(whose) if who % self.count == number]
            for number in range(self.count)
        ]
        mine: list[tuple[int | None, MicroBatch]] = [
            (place, batches[place]) for place in each[processes.number()]
        ]
        idle = replace(batches[0], process=max(batches[0].process, 1))  # moves no buffers
        return mine + [(None, idle)] * (max(map(len, each)) - len(mine))

    def losses(self, own: Mapping[int, float], count: int) -> list[float]:
        """The losses of all micro-batches of a step, from those of each process."""
        told = torch.zeros(count, dtype=torch.float64)
        for place, loss in own.items():
            told[place] = loss
        return [float(loss) for loss in processes.added(told)]

    def state(self, optimizer: AnyOptimizer, names: Mapping[int, str]) -> TrainingState:
        """The training state as it is now, whole, in files that all processes read."""
        return self.gathered(optimizer_tensors(optimizer, names))

    def gathered(self, optimizer: OptimizerState) -> TrainingState:
        """The same, of parts of an optimiser's state."""
        folder = self._root / "results" / "shards"
        made: list[Mapping[str, Tensor]] = []

        def gather() -> list[str | None]:
            main = processes.is_main()
            if main:
                folder.mkdir(parents=True, exist_ok=True)
            made.extend(gathered_files(folder if main else None, self._model, optimizer))
            return [str(one.path) if isinstance(one, MappedTensors) else None for one in made]

        paths = processes.together(gather)[0]
        if not processes.is_main():
            made = [{} if path is None else MappedTensors(Path(path)) for path in paths]
        processes.wait()  # the main one's are deleted when it needs them no more
        return TrainingState(made[0], nested(made[1]))
