"""What a stage starts from: its model and optimiser, checked, and the boundary that led here."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import devices
from stagelens.contracts import BASE, RecordingError
from stagelens.replaying.optimizers import build_optimizer, optimizer_facts
from stagelens.runs.boundary_facts import Boundary, Environment, Tokenising
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.optimizer_set import AnyOptimizer, members
from stagelens.runs.run import Stage
from stagelens.runs.saved_states import load_model, save_state
from stagelens.runs.schema import OptimizerFacts, StageFile, StateRef
from stagelens.runs.shards import own_part, shared_like
from stagelens.runs.states import (
    TrainingState,
    capture,
    model_tensors,
    optimizer_tensors,
    rule_of,
    same_tensor,
)

from .adapters import Adapter, read_adapter
from .boundary import Unexplained, check_reloaded, first_boundary
from .mode_boundary import find_switched
from .run_writer import RunWriter
from .stage_settings import StageSettings
from .stage_states import StageStates
from .tokenising import tokenising


@dataclass(frozen=True)
class StageStart:
    """The start of a stage.

    Attributes:
        state: Before the first step.
        reference: The same on disk.
        boundary: How it came about.
        optimizer: The optimiser; None where replay could not make it again.
        trainable: Parameters that require a gradient.
        build_config: For ``task.build_model``.
        built: A model that the task made with it, with any weights.
        device: Where the model is trained.
        tokenizer: What is its tokenizer's own.
    """

    state: TrainingState
    reference: StateRef
    boundary: Boundary
    optimizer: OptimizerFacts | None
    trainable: list[str]
    build_config: dict[str, Any] | None
    built: nn.Module
    device: torch.device
    tokenizer: Tokenising | None = None

    def facts(
        self, name: str, settings: StageSettings, problem: str | None, more: Mapping[str, Any]
    ) -> StageFile:
        """The first contents of the stage's stage.json.

        Args:
            name: The stage's name.
            settings: As declared.
            problem: Why it cannot be replayed, if that is known already.
            more: What it says besides, of the objective.
        """
        return StageFile(
            **more,
            name=name,
            description=settings.description,
            status="recording",
            optimizer=self.optimizer,
            boundary=self.boundary,
            trainable=self.trainable,
            clip_norm=settings.clip_norm,
            accumulation=settings.accumulation,
            keep_batches=settings.keep_batches if problem is None else "none",
            build_config=self.build_config,
            environment=_environment(self.device),
            start=self.reference,
            problem=problem,
            tokenizer=self.tokenizer,
        )


def read_start(
    run: RunWriter,
    name: str,
    folder: str,
    model: nn.Module,
    optimizer: AnyOptimizer,
    settings: StageSettings,
    tell: Callable[[Exception], None],
    states: StageStates,
) -> StageStart:
    """Check what a stage is given, and write its start.

    Args:
        run: Its run.
        name: The stage's name.
        folder: Its folder in the run's.
        model: Is trained.
        optimizer: Trains it.
        settings: As declared.
        tell: Called with what costs the stage its replay, but not its boundaries: hooks do not see
            the model's passes, replay could not make the optimiser, or the stage does not start
            where the one before ended.
        states: Takes its state.

    Raises:
        RecordingError: The stage has no boundaries: the model is not the task's, or has no weights
            yet.
    """
    _check_initialised(model, "the model")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    facts: OptimizerFacts | None = None
    try:
        _check_passes(model, "the model")
        facts = _optimizer_facts(optimizer, names, trainable)
    # An optimiser of another make may lack what is asked of it.
    except Exception as error:
        tell(error)
    adapter, build_config = read_adapter(model), settings.build_config
    if (read := run.task.stage_config(model)) is not None:
        build_config = {**read, **(build_config or {})}
    built = _build(run, build_config, states.sharded)
    _check_built(model, built)
    state = states.take("the stage's start", facts is not None, copy=True)
    frozen = [n for n in names.values() if n not in trainable]
    prefix, last = f"{folder}/start", run.before
    kept = state if facts is None else _without_fresh(state, optimizer, facts, model, names)
    base = run.base if last is None else None
    if last is None:
        boundary = first_boundary(kept, frozen)
        if base is not None and not _is_base(run, base, state):
            tell(_not_the_base(name, boundary))
    else:
        before = last.end()
        try:
            boundary = find_switched(
                last,
                before,
                kept,
                stage=name,
                reinitialised=settings.reinitialised,
                frozen=frozen,
                adapters=(_adapter_before(run, last, before, model, adapter), adapter),
            )
            check_reloaded(boundary, last, name)
        except Unexplained as error:
            error = _after_lost(error, [each for each in run.begun if each != name], last, name)
            error = _with_parent(error, settings.parent)
            tell(error)
            boundary = error.likeliest
    if facts is None:  # its state is not kept
        boundary = boundary.model_copy(update={"optimizer": "not known"})
    # What has not changed since the previous end is not written twice.
    earlier = base if last is None else last.facts.end
    reference = save_state(run.path, prefix, state, earlier, boundary.renamed)
    state = _on_disk(run, reference, state)
    device, own = next(model.parameters()).device, tokenising(run.task, settings.tokenizer)
    return StageStart(
        state, reference, boundary, facts, trainable, build_config, built, device, own
    )


def _on_disk(run: RunWriter, reference: StateRef, state: TrainingState) -> TrainingState:
    """The state with its weights read from the file when they are used, which frees their memory.

    What the optimiser keeps stays in memory: at the first stage nothing, at others it is small
    beside what checking steps takes.
    """
    files = CheckedFiles(run.path)
    files.written(reference.files)
    return TrainingState(load_model(files, reference), state.optimizer)


def _with_parent(error: Unexplained, parent: str | None) -> Unexplained:
    """The same, with how to start from a parent that was named."""
    if parent is None:
        return error
    return Unexplained(
        f"{error}. Its parent is stage {parent!r}, whose end is loaded by "
        f"recorder.restore(model, stage={parent!r})",
        error.likeliest,
    )


def _is_base(run: RunWriter, base: StateRef, state: TrainingState) -> bool:
    """Whether a stage that says that it starts from the run's base does."""
    known = load_model(CheckedFiles(run.path), base)
    return known.keys() == state.model.keys() and all(
        same_tensor(known[name], tensor.cpu()) for name, tensor in state.model.items()
    )


def _not_the_base(name: str, boundary: Boundary) -> Unexplained:
    return Unexplained(
        f"stage {name!r} does not start from the base of this run, as parent={BASE!r} says: its "
        "model has other weights; load the base, recorder.restore(model, stage=BASE), or record "
        "it into a run of its own",
        boundary,
    )


def followed_start(
    run: RunWriter,
    facts: StageFile,
    model: nn.Module,
    optimizer: AnyOptimizer,
    names: Mapping[int, str],
    sharded: bool,
) -> StageStart:
    """The start of a stage that the main process has written, in another process.

    Args:
        run: Its run.
        facts: As the main process wrote them.
        model: Is trained.
        optimizer: Trains it.
        names: ``id(parameter)`` to name.
        sharded: Whether each process holds a part of it, and none the whole.
    """
    return StageStart(
        TrainingState({}) if sharded else capture(model, optimizer, names),
        facts.start,
        facts.boundary,
        facts.optimizer,
        facts.trainable,
        facts.build_config,
        _build(run, facts.build_config, sharded),
        next(model.parameters()).device,
        facts.tokenizer,
    )


def _after_lost(error: Unexplained, lost: list[str], last: Stage, name: str) -> Unexplained:
    """What did not start where the last recorded stage ended, as others came between them."""
    if not lost:
        return error
    names = " and ".join(f"stage {each!r}" for each in lost)
    return Unexplained(
        f"the end of {names} before it was not recorded, so what changed since the end of stage "
        f"{last.name!r} is not known; record the training again, or go back to the end of stage "
        f"{last.name!r} before stage {name!r}, recorder.restore(model, optimizer)",
        error.likeliest,
    )


def _optimizer_facts(
    optimizer: AnyOptimizer, names: Mapping[int, str], trainable: list[str]
) -> OptimizerFacts:
    facts = optimizer_facts(optimizer, names)
    optimised = {name for group in facts.groups for name in group.parameters}
    if not optimised & set(trainable):
        raise RecordingError(
            "the optimiser has no parameter that requires a gradient; pass the parameters "
            "that this stage trains"
        )
    return facts


def _without_fresh(
    state: TrainingState,
    optimizer: AnyOptimizer,
    facts: OptimizerFacts,
    model: nn.Module,
    names: Mapping[int, str],
) -> TrainingState:
    """The state without what a new optimiser of the kind has before its first step."""
    if not any(rule_of(one).born_with_state for one in members(optimizer)):
        return state
    new = optimizer_tensors(build_optimizer(facts, dict(model.named_parameters())), names)
    kept = {
        name: own
        for name, own in state.optimizer.items()
        if own.keys() != new.get(name, {}).keys()
        or not all(_alike(new[name][key], tensor) for key, tensor in own.items())
    }
    return TrainingState(state.model, kept)


def _alike(new: Tensor, recorded: Tensor) -> bool:
    """Whether values are the same; of what is shared out, this process's own."""
    return same_tensor(own_part(new).cpu(), own_part(shared_like(new, recorded)).cpu())


def _check_passes(model: nn.Module, what: str) -> None:
    """Refuse modules whose passes cannot be seen."""
    if isinstance(model, torch.jit.ScriptModule):
        raise RecordingError(
            f"{what} is a TorchScript module, whose forward passes hooks do not see; train and "
            "record the module that it was made from, and script it afterwards"
        )


def _check_initialised(model: nn.Module, what: str) -> None:
    """Refuse modules whose parameters cannot be read yet."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if (lazy := next((n for n, t in tensors if nn.parameter.is_lazy(t)), None)) is not None:
        raise RecordingError(
            f"{what} has a parameter that is not initialised yet, {lazy}, as in a LazyLinear "
            "before its first batch; pass one batch through it before an optimiser is made of it"
        )


def _environment(device: torch.device) -> Environment:
    return Environment(
        torch=torch.__version__,
        # The order of additions, and so the last bits, depend on how many threads share them.
        threads=torch.get_num_threads(),
        device=device.type,
        machine=f"{platform.system()} {platform.machine()}",
        arithmetic=devices.arithmetic(device),
    )


def _build(run: RunWriter, config: Mapping[str, Any] | None, empty: bool = False) -> nn.Module:
    # Building draws initial weights, which must not advance the training loop's generator.
    with torch.random.fork_rng(devices=[]):
        return run.task.build_empty(config) if empty else run.task.build_model(config)


def _check_built(model: nn.Module, built: nn.Module) -> None:
    """The task's own module has to be of the architecture that is trained."""
    _check_initialised(built, "the model that task.build_model makes")
    _check_passes(built, "the model that task.build_model makes")
    own = {n: tuple(t.shape) for n, t in model_tensors(model).items()}
    task = {n: tuple(t.shape) for n, t in model_tensors(built).items()}
    for name in (*own, *task):
        if own.get(name) != task.get(name):
            raise RecordingError(
                f"the model that is trained is not the one that the task builds: {name} is "
                f"{own.get(name, 'absent')} here and {task.get(name, 'absent')} there; let "
                "task.build_model make this architecture, or pass build_config for this stage"
            )


def _adapter_before(
    run: RunWriter, stage: Stage, end: TrainingState, model: nn.Module, adapter: Adapter | None
) -> Adapter | None:
    """The previous stage's; its model is built only where it can have had one."""
    if adapter is None and end.model.keys() == model_tensors(model).keys():
        return None
    # A state is tensors only: which of them are an adapter's is read off a module.
    return read_adapter(_build(run, stage.facts.build_config))
