"""What stands in a run folder's JSON files, as pydantic models.

Layout::

    run.json                          RunFile
    task/tokenizer.json, ...          small files that the task needs, where it needs any
    stages/00-pretrain/stage.json     StageFile
    stages/00-pretrain/steps-00000.parquet, batches-00000.safetensors, ...   numbered parts
    stages/00-pretrain/start.model.safetensors, start.optimizer.safetensors, end....
    checkpoints/00-base/model.safetensors, ...    of an assembled run: checkpoints, as they were
    sets/test/set.json, examples.parquet      SetFile
    results/                          derived; keyed by digest, never part of the run digest

Every file that ``stage.json`` names comes with its sha256; ``run.json`` holds the sha256 of each
finished ``stage.json``. So the run digest covers the recorded training, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

VERSION: Literal[1] = 1
"""Version of the layout; a folder of a newer one is refused with what to do."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def check_name(name: str) -> str:
    """A name of a run, stage or set that can stand in paths, links and sentences.

    Raises:
        ValueError: It has other characters, or is longer than 64.
    """
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ValueError(
            f"{name!r} is not a usable name: use up to 64 letters, digits, spaces, '.', '_' or "
            "'-', starting with a letter or digit"
        )
    return name


def check_relative(path: str) -> str:
    """A path that leads to a file below the run folder.

    Raises:
        ValueError: It leads elsewhere, or is none that every system takes.
    """
    parts = path.split("/")
    if (
        path.startswith("/")
        or "\\" in path
        or ":" in path
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise ValueError(f"{path!r} is not a plain path inside the run folder")
    return path


Name = Annotated[str, AfterValidator(check_name)]
RelativePath = Annotated[str, AfterValidator(check_relative)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FileRef(_Model):
    """A file of the run folder, with what proves it untouched."""

    path: RelativePath
    sha256: Sha256
    bytes: int = Field(ge=0)


class StateRef(_Model):
    """A boundary on disk: parameters and buffers, and the optimiser's state beside them.

    Attributes:
        model: Parameters and buffers, or the first shard of them.
        more: Further shards of them.
        fixed: Buffers that the architecture determines, which a checkpoint leaves out.
        names: Parameter or buffer to its name in these files, which may hold others too; None
            where they hold what the module has, under its names.
        optimizer: Its state, where there is any.
    """

    model: FileRef
    more: list[FileRef] = []
    fixed: FileRef | None = None
    names: dict[str, str] | None = None
    optimizer: FileRef | None = None

    @property
    def shards(self) -> list[FileRef]:
        """The files of what was trained."""
        return [self.model, *self.more]

    @property
    def files(self) -> list[FileRef]:
        """All files."""
        return [*self.shards, *(file for file in (self.fixed, self.optimizer) if file)]


class ParameterGroup(_Model):
    """One of the optimiser's parameter groups, parameters by name."""

    parameters: list[str]
    hyperparameters: dict[str, Any]


class OptimizerFacts(_Model):
    """The optimiser of a stage, as replay makes it again.

    In an assembled run it is what a Trainer's checkpoint tells: parameters are then not known.
    """

    name: Literal["SGD", "Adam", "AdamW"]
    groups: list[ParameterGroup]
    flags: dict[str, bool | None]


class LowRank(_Model):
    """What a merged adapter adds to a weight: ``scaling * B A``, by the names of its factors.

    Attributes:
        a: A, (r, in), in the stage before.
        b: B, (out, r), in the stage before.
        scaling: alpha / r, or alpha / sqrt(r).
        transposed: Whether the weight is (in, out), as in embeddings and GPT-2's Conv1D.
    """

    a: str
    b: str
    scaling: float
    transposed: bool = False


class Boundary(_Model):
    """What happened between the end of the stage before and this stage's start.

    Attributes:
        optimizer: Whether the optimiser's state was carried over; for people to read.
        carried: Parameters whose optimiser state was carried.
        new: Parameters and buffers that did not exist before, or were re-initialised.
        grown: Parameters that got further rows behind those that they had, to how many these were.
        removed: Parameters and buffers that no longer exist.
        frozen: Parameters of the model that this stage does not train.
        adapters: What happened to LoRA adapters, in order.
        renamed: Name to the name before, where it is another. Two names can have had the same:
            an adapter that trains a whole module trains a copy of it.
        merged: Name to what was added to its value before.
        deviation: Largest norm, over the merged weights, by which the recorded start differs from
            what this operation gives here, relative to the weight's own; 0 is bit for bit.
    """

    optimizer: Literal["new", "carried", "partly carried", "not known"]
    carried: list[str] = []
    new: list[str] = []
    grown: dict[str, Annotated[int, Field(ge=1)]] = {}
    removed: list[str] = []
    frozen: list[str] = []
    adapters: list[Literal["added", "merged", "removed"]] = []
    renamed: dict[str, str] = {}
    merged: dict[str, LowRank] = {}
    deviation: float = Field(default=0.0, ge=0)

    def source(self, name: str) -> str:
        """What a name that is not new was called before."""
        return self.renamed.get(name, name)


class PartRef(_Model):
    """One flush: consecutive steps, and the batches that were kept of them."""

    first_step: int = Field(ge=0)
    steps: int = Field(ge=1)
    table: FileRef
    batches: FileRef | None = None


class Checkpoint(_Model):
    """The training state after ``step`` steps of the stage."""

    step: int = Field(ge=1)
    state: StateRef


class Environment(_Model):
    """Where a stage was recorded; replay is bit for bit where this agrees."""

    torch: str
    threads: int = Field(ge=1)
    device: str
    machine: str


Precision = Literal["float32", "bf16", "fp16"]
"""What forward passes cast matrix products to under autocast; float32 where they cast nothing."""


class BestModel(_Model):
    """A boundary operation at a stage's end: the loop went back to its best model.

    The stage ends at that step, with the training state as it was there. A replay goes back to the
    same step, also where it trains another model that might have been best elsewhere.

    Attributes:
        trained: How many steps were trained; those behind the stage's last one do not count.
        metric: What was best, as the loop names it.
        value: Its value.
    """

    trained: int = Field(ge=1)
    metric: str
    value: float


class StageFile(_Model):
    """``stage.json``: one stage. While it is being recorded, ``status`` is ``recording``.

    An assembled stage is known by its boundaries alone: it has no steps, no environment, and an
    optimiser only where a Trainer wrote one down. What is new in it is in its end state only.

    Attributes:
        history: Table of the steps that a Trainer reported: ``step``, ``loss``, ``lr``.
        updates: How many updates it reported.
        beside: Further files of an assembled stage's checkpoint, by name: its configuration.
    """

    version: Literal[1] = VERSION
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
    checkpoints: list[Checkpoint] = []
    parts: list[PartRef] = []
    best_model: BestModel | None = None
    steps: int = Field(default=0, ge=0)
    seconds: float | None = None
    history: FileRef | None = None
    updates: int | None = Field(default=None, ge=0)
    beside: dict[str, FileRef] = {}

    @model_validator(mode="after")
    def _recorded_facts(self) -> StageFile:
        if self.origin == "recorded" and (self.optimizer is None or self.environment is None):
            raise ValueError("a recorded stage has an optimizer and an environment")
        return self

    def files(self) -> Iterator[FileRef]:
        """All files that it names."""
        states = [self.start, self.end, *(checkpoint.state for checkpoint in self.checkpoints)]
        pairs: list[tuple[FileRef, FileRef | None]]
        pairs = [(state.model, state.optimizer) for state in states if state is not None]
        pairs += [(part.table, part.batches) for part in self.parts]
        yield from (file for pair in pairs for file in pair if file is not None)


class TaskRef(_Model):
    """How the run's task is found again: its registered name, its own JSON config, its assets."""

    name: str
    config: dict[str, Any]
    files: dict[Name, FileRef] = {}


class StageRef(_Model):
    """A stage as ``run.json`` lists it; ``sha256`` of its stage.json once it is finished."""

    name: Name
    folder: RelativePath
    sha256: Sha256 | None = None


class RunFile(_Model):
    """``run.json``. ``notes`` are sentences on what people should know of an assembled run."""

    version: Literal[1] = VERSION
    name: Name
    task: TaskRef
    stages: list[StageRef] = []
    set_aside: list[StageRef] = []
    notes: list[str] = []


class SetFile(_Model):
    """``set.json``: an evaluation set, described.

    Attributes:
        kind: What an example's input is.
        inputs: Names of the columns of the input, where they are others than the kind itself.
        columns: Metadata columns, in order.
        digest: Over ids, inputs, labels and metadata, so over everything that results depend on.
        footer_sha256: Of the table's parquet footer, which page checksums do not cover.
        notes: What the task said of inputs when they were added, to how many it applies.
    """

    version: Literal[1] = VERSION
    name: Name
    kind: Literal["image", "text"]
    count: int = Field(ge=1)
    inputs: list[str] = []
    columns: list[str] = []
    description: str = ""
    digest: Sha256
    table: FileRef
    footer_sha256: Sha256
    missing_labels: int = Field(default=0, ge=0)
    duplicate_inputs: int = Field(default=0, ge=0)
    notes: dict[str, int] = {}


def canonical_json(value: Any) -> str:
    """JSON in one spelling, for digests: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def digest(*values: Any) -> str:
    """sha256 over the canonical JSON of ``values``."""
    return hashlib.sha256(canonical_json(list(values)).encode()).hexdigest()
