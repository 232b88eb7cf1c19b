"""The contents of a run folder's JSON files, as pydantic models.

Layout::

    run.json                          RunFile
    task/tokenizer.json, ...          small files that the task needs, if any
    stages/00-pretrain/stage.json     StageFile
    stages/00-pretrain/steps-00000.parquet, batches-00000.safetensors, ...   numbered parts
    stages/00-pretrain/process-00001/steps-00000.parquet, ...    parts of further processes, if any
    stages/00-pretrain/start.model.safetensors, start.optimizer.safetensors, end....
    checkpoints/00-base/model.safetensors, ...    of an assembled run: its checkpoints, unchanged
    sets/test/set.json, examples.parquet      SetFile
    results/                          derived; keyed by digest, never part of the run digest

Every file that ``stage.json`` names comes with its digests; ``run.json`` holds the sha256 of each
finished ``stage.json``. So the run digest covers the recorded training, and nothing else. Each of
the JSON files has a ``checksum`` over all that it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .boundary_facts import (
    STRICT,
    BestModel,
    Boundary,
    Environment,
    Merge,
    Tokenising,
    WeightAverage,
)
from .names import Name, RelativePath, Sha256, Xxh3
from .names import check_name as check_name
from .names import check_relative as check_relative
from .objective_facts import ObjectiveFacts
from .optimizer_facts import EndOptimizer, OptimizerFacts
from .row_facts import RowFacts

VERSION: Literal[3] = 3
"""Version of the layout; a folder with a newer one is refused, saying what to do.

Since 2, files carry a checksum of their own; since 3, whole numbers of batches are packed. Layouts
1 and 2 are still read."""


class _Model(BaseModel):
    model_config = STRICT


class Versioned(_Model):
    """A file that says by which layout it was written."""

    version: Literal[1, 2, 3] = VERSION


class FileRef(_Model):
    """A file of the run folder, with what proves that it was not changed.

    Attributes:
        path: Inside the run folder.
        sha256: Of its bytes: what the file is. Digests of runs, and what is stored once, go by it.
        xxh3: xxh3-128 of the same bytes, ten times as quick: whether the file is as it was written.
            None in what earlier versions wrote; sha256 says that too.
        bytes: How many they are.
    """

    path: RelativePath
    sha256: Sha256
    xxh3: Xxh3 | None = None
    bytes: int = Field(ge=0)

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What an earlier version wrote stays, byte for byte, when it is written again.
        said: dict[str, Any] = written(self)
        return {name: value for name, value in said.items() if value is not None}


class HeldBefore(_Model):
    """Tensors of a state that the file of an earlier one holds, bit for bit.

    Attributes:
        file: The other state's.
        tensors: Parameter or buffer to its name there.
    """

    file: FileRef
    tensors: dict[str, str]


class StateRef(_Model):
    """A boundary on disk: parameters and buffers, and the optimiser's state beside them.

    Attributes:
        model: Parameters and buffers, or the first shard of them.
        more: Further shards of them.
        fixed: Buffers that the architecture determines, which a checkpoint leaves out.
        names: Parameter or buffer to its name in these files, which may hold other tensors too;
            None if they hold exactly what the module has, under its names.
        before: What is not in ``model``, as it has not changed since an earlier state: a frozen
            base, say, is stored once.
        optimizer: The optimiser's state, if any.
    """

    model: FileRef
    more: list[FileRef] = []
    fixed: FileRef | None = None
    names: dict[str, str] | None = None
    before: list[HeldBefore] = []
    optimizer: FileRef | None = None

    @property
    def shards(self) -> list[FileRef]:
        """The files that hold what was trained."""
        return [self.model, *self.more, *(held.file for held in self.before)]

    @property
    def files(self) -> list[FileRef]:
        """All files."""
        return [*self.shards, *(file for file in (self.fixed, self.optimizer) if file)]


class PartRef(_Model):
    """One flush: consecutive steps, and those of their batches that were kept."""

    first_step: int = Field(ge=0)
    steps: int = Field(ge=1)
    table: FileRef
    batches: FileRef | None = None


class Checkpoint(_Model):
    """The training state after ``step`` steps of the stage, and its ``end_calls`` up to then."""

    step: int = Field(ge=1)
    state: StateRef
    calls: list[Literal["train", "eval"]] = []


Precision = Literal["float32", "bf16", "fp16"]
"""What autocast casts matrix products to in forward passes; float32 without autocast."""


class Parallel(_Model):
    """That several processes trained a stage together, each with micro-batches of its own.

    A step is the ordered list of all their micro-batches: those of process 0, then of process 1,
    and so on. Its gradient is the mean over processes of the gradient that each has of its own.

    Attributes:
        kind: What kept the processes' models the same: ``"ddp"``, torch's DistributedDataParallel,
            or ``"fsdp2"``, its ``fully_shard``, under which each holds a part of them.
        modules: What ``fully_shard`` was called with, outermost first; ``""`` is the whole model.
        count: How many there were.
        parts: What each of the others wrote, process 1 first; the main one's are the stage's
            ``parts``, with the schedule. Empty where one of them is missing: such a stage has its
            boundaries only.
    """

    kind: Literal["ddp", "fsdp2"]
    modules: list[str] = []
    count: int = Field(ge=2)
    parts: list[list[PartRef]] = []


class StageFile(Versioned):
    """``stage.json``: one stage. While it is being recorded, ``status`` is ``recording``.

    An assembled stage is known by its boundaries alone: it has no steps, no environment, and an
    optimiser only if a Trainer wrote it down. What is new in it is in its end state only.

    Attributes:
        history: Table of the steps that a Trainer reported: ``step``, ``loss``, ``lr``.
        updates: How many updates the Trainer reported.
        end_optimizer: What its optimiser kept at the end; ``end`` has that itself only where it was
            asked for, and the next stage's ``start`` where that carried it on.
        end_calls: ``train`` and ``eval`` of the optimiser, as they were called after the last step.
        checked: Numbers, from 1, of recorded steps that were run again while the stage was
            recorded, and agreed in loss, gradient and update.
        unchecked: Why none was, for instance as memory was short; None otherwise.
        problem: What replay could not reproduce, as it was told while the stage was recorded; the
            stage then keeps its boundaries, losses and learning rates.
        objective: What it minimised, where that is not the model's own loss.
        reference_states: Reference models from outside the run, by name.
        embedding_noise: NEFTune's alpha; None without.
        kernels: Fused or compiled code that computed its passes, by name, in place of the model's
            own; it differs from that in the last bits.
        beside: Further files of an assembled stage's checkpoint by name, such as config.json.
        tokenizer: What is its tokenizer's own; None where that is not known.
        average: Its end, where that is not the weights after the last step.
        zeroed: Whose gradients the loop clears before a step: those that the optimiser updates, or
            all of the model's. It matters where clipping counts others.
        accumulation: Micro-batches per update, of each process.
        parallel: The processes that trained it together; None for one.
        rows: The data set whose rows stand for its batches, where all or some are kept so.
        merge: What its end was made of, where that was merged from others and not trained.
    """

    name: Name
    description: str = ""
    origin: Literal["recorded", "assembled"] = "recorded"
    status: Literal["recording", "complete"]
    optimizer: OptimizerFacts | None = None
    boundary: Boundary
    trainable: list[str]
    evaluation_mode: list[str] = []
    clip_norm: float | None = None
    accumulation: int = Field(default=1, ge=1)
    precision: Precision = "float32"
    keep_batches: Literal["all", "none"] | Annotated[int, Field(ge=2)] = "all"
    build_config: dict[str, Any] | None = None
    environment: Environment | None = None
    start: StateRef
    end: StateRef | None = None
    end_optimizer: EndOptimizer | None = None
    checkpoints: list[Checkpoint] = []
    parts: list[PartRef] = []
    best_model: BestModel | None = None
    steps: int = Field(default=0, ge=0)
    seconds: float | None = None
    history: FileRef | None = None
    updates: int | None = Field(default=None, ge=0)
    end_calls: list[Literal["train", "eval"]] = []
    checked: list[Annotated[int, Field(ge=1)]] = []
    unchecked: str | None = None
    problem: str | None = None
    objective: ObjectiveFacts | None = None
    reference_states: dict[str, StateRef] = {}
    embedding_noise: float | None = None
    kernels: list[str] = []
    beside: dict[str, FileRef] = {}
    tokenizer: Tokenising | None = None
    average: WeightAverage | None = None
    zeroed: Literal["optimizer", "model"] = "optimizer"
    parallel: Parallel | None = None
    merge: Merge | None = None
    rows: RowFacts | None = None

    @model_validator(mode="after")
    def _recorded_facts(self) -> StageFile:
        # Replay rebuilds both; checkpoints that others saved, and stages that cannot be replayed,
        # come without.
        replayed = self.origin == "recorded" and self.problem is None
        if replayed and (self.optimizer is None or self.environment is None):
            raise ValueError("a recorded stage has an optimizer and an environment")
        return self

    @property
    def processes(self) -> int:
        """How many processes trained it together."""
        return 1 if self.parallel is None else self.parallel.count

    @property
    def end_bytes(self) -> int:
        """What the training state at its end takes, on disk or not; 0 before there is one."""
        if self.end is None:
            return 0
        size = sum(file.bytes for file in self.end.files)
        left_out = self.end_optimizer if self.end.optimizer is None else None
        return size + (left_out.bytes if left_out is not None else 0)

    @property
    def parts_of_each(self) -> list[list[PartRef]]:
        """The parts of every process, the main one's first; its alone where others are missing."""
        return [self.parts, *(self.parallel.parts if self.parallel is not None else ())]

    def files(self) -> Iterator[FileRef]:
        """All that it names."""
        states = (self.start, self.end, *(each.state for each in self.checkpoints))
        for state in (*states, *self.reference_states.values()):
            yield from state.files if state is not None else ()
        for part in chain.from_iterable(self.parts_of_each):
            yield from (file for file in (part.table, part.batches) if file is not None)
        yield from self.beside.values()
        yield from [self.history] if self.history is not None else []


class TaskRef(_Model):
    """How the run's task is found again: its registered name, its own JSON config, its assets.

    ``own`` is set where its class was not the installed one of that name, but the user's.
    """

    name: str
    config: dict[str, Any]
    files: dict[Name, FileRef] = {}
    own: bool = False


class StageRef(_Model):
    """A stage as ``run.json`` lists it; ``sha256`` of its stage.json once it is finished.

    ``parents`` are the stages that it started from, earlier in the list: one, or several of a
    merge; ``base`` is the boundary before the first. Without it, the finished stage listed before.
    """

    name: Name
    folder: RelativePath
    sha256: Sha256 | None = None
    parents: Annotated[list[Name], Field(min_length=1)] | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Of a line nothing is said of parents, so that its run.json is as it always was.
        said: dict[str, Any] = written(self)
        return {name: value for name, value in said.items() if name != "parents" or value}


class RunFile(Versioned):
    """``run.json``. ``notes`` are sentences that people should know about the run."""

    name: Name
    task: TaskRef
    stages: list[StageRef] = []
    set_aside: list[StageRef] = []
    notes: list[str] = []


class SetFile(Versioned):
    """``set.json``: an evaluation set, described.

    Attributes:
        kind: What an example's input is.
        inputs: Names of the input's columns, unless that is the kind itself.
        columns: Metadata columns, in order.
        target: Whether labels are something to come near, such as numbers, so that no answer is
            right or wrong.
        digest: Over ids, inputs, labels and metadata: all that results depend on.
        footer_sha256: Of the table's parquet footer, which page checksums do not cover.
        notes: What the task said about inputs when they were added, to how many it applies to.
        seen: What the task made of the first examples, see ``sets.seen``; empty if not known.
        left_out: What the file or folder held beside the set, each with the reason.
    """

    name: Name
    kind: Literal["image", "text"]
    count: int = Field(ge=1)
    inputs: list[str] = []
    columns: list[str] = []
    description: str = ""
    digest: Sha256
    table: FileRef
    footer_sha256: Sha256
    target: bool = False
    missing_labels: int = Field(default=0, ge=0)
    duplicate_inputs: int = Field(default=0, ge=0)
    notes: dict[str, int] = {}
    seen: list[list[float]] = []
    left_out: list[str] = []


def canonical_json(value: Any) -> str:
    """JSON in one spelling, for digests: sorted keys, no spaces, no NaN."""
    # NaN is not JSON: other readers would refuse it, or spell it in their own way.
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def digest(*values: Any) -> str:
    """sha256 over the canonical JSON of ``values``."""
    return hashlib.sha256(canonical_json(list(values)).encode()).hexdigest()
