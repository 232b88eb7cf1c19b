"""What ``stage.json`` says of a boundary: the operations that lead from one stage to the next.

And of how a stage ended, and where it was recorded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# A field that is not known is damage or a newer version, never something to ignore.
STRICT = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
"""How the JSON files of a run folder are read."""

DType = Literal["float64", "float32", "bfloat16", "float16"]
"""What weights are cast to between two stages, as torch names it."""


class LowRank(BaseModel):
    """What a merged adapter adds to a weight: ``scaling * B A``, by the names of its factors.

    With DoRA, the sum's rows get the norms of its magnitude.

    Attributes:
        a: A, (r, in), in the previous stage.
        b: B, (out, r), in the previous stage.
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA.
        transposed: Whether the weight is (in, out), as in embeddings and GPT-2's Conv1D.
        weight_as: What the weight was cast to before the merge; None for as it was.
        factors_as: The same of A and B.
        magnitude: DoRA's, (out,), in the previous stage; None for LoRA.
        then: What other adapters added after it, in order.
    """

    model_config = STRICT

    a: str
    b: str
    scaling: float
    transposed: bool = False
    weight_as: DType | None = None
    factors_as: DType | None = None
    magnitude: str | None = None
    then: list[LowRank] = []

    @property
    def terms(self) -> list[LowRank]:
        """This one and those after it."""
        return [self, *self.then]


class AdapterStart(BaseModel):
    """How an adapter that was added began at the weight beneath it.

    Attributes:
        kind: ``"pissa"`` and ``"olora"`` compute both factors from the weight, and take their
            product out of it. ``"kept"`` does the latter with the recorded factors: they depend on
            the weight, or on what the model made of data, in a way that cannot be repeated.
            ``"plain"`` leaves weight and factors as they are.
        term: The adapter, by its names in this stage. A magnitude begins at the norms of the rows.
    """

    model_config = STRICT

    kind: Literal["pissa", "olora", "kept", "plain"]
    term: LowRank


class Boundary(BaseModel):
    """What happened between the end of the previous stage and the start of this one.

    Attributes:
        optimizer: Whether the optimiser's state was carried over; only for people to read.
        carried: Parameters whose optimiser state was carried.
        new: Parameters and buffers that did not exist before, or were re-initialised.
        grown: Parameters that gained rows at their end, to the number of rows before.
        averaged: How many rows those of them gained whose added rows began at the mean of the
            rows before, as ``resize_token_embeddings`` makes them; others have recorded values.
        trimmed: Parameters that lost rows at their end, to the number of rows left.
        casts: Name to the dtypes that its values went through, in order, the last being its own:
            saved in bfloat16 and loaded in float32 is ``["bfloat16", "float32"]``.
        removed: Parameters and buffers that no longer exist.
        frozen: Parameters of the model that this stage does not train.
        adapters: What happened to LoRA adapters, in order.
        renamed: Name to the previous name, where it differs. Two names can share a previous one:
            an adapter that trains a whole module trains a copy of it.
        merged: Name to what was added to its previous value.
        started: Weight beneath added adapters to how these began, where that depends on it.
        unpacked: Weights that were in 4 bits before; what happened to them begins with unpacking
            them. Where they came from outside of the run, ``deviation`` is what quantisation had
            rounded away.
        packed: Weights that are in 4 bits from here on, packed after all else happened to them.
        calls: ``train`` and ``eval`` of the previous stage's optimiser, as they were called after
            that stage: they turn its training weights into those for evaluation, and back.
        deviation: Norm of the recorded start minus what this operation gives here, relative to the
            weight's norm; the largest over the merged weights and the added rows. 0 means bit for
            bit.
        problem: Why nothing can be carried over this boundary; its stage can still be replayed
            from its own start.
    """

    model_config = STRICT

    optimizer: Literal["new", "carried", "partly carried", "not known"]
    carried: list[str] = []
    new: list[str] = []
    grown: dict[str, Annotated[int, Field(ge=1)]] = {}
    averaged: dict[str, Annotated[int, Field(ge=1)]] = {}
    trimmed: dict[str, Annotated[int, Field(ge=1)]] = {}
    casts: dict[str, list[DType]] = {}
    removed: list[str] = []
    frozen: list[str] = []
    adapters: list[Literal["added", "merged", "removed"]] = []
    renamed: dict[str, str] = {}
    merged: dict[str, LowRank] = {}
    started: dict[str, list[AdapterStart]] = {}
    unpacked: list[str] = []
    packed: list[str] = []
    calls: list[Literal["train", "eval"]] = []
    deviation: float = Field(default=0.0, ge=0)
    problem: str | None = None

    def source(self, name: str) -> str:
        """The previous name of a parameter or buffer that is not new."""
        return self.renamed.get(name, name)


class Tokenising(BaseModel):
    """How a stage's tokenizer differs from the run's, with which texts are read everywhere.

    Attributes:
        differs: Keys of ``tokenizer.json`` and ``tokenizer_config.json`` that say something else.
        added: Tokens that only this one has, with their ids.
        missing: Tokens that only the run's has.
        chat_template: sha256 of its chat template; None without one.
    """

    model_config = STRICT

    differs: list[str] = []
    added: dict[str, int] = {}
    missing: dict[str, int] = {}
    chat_template: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Environment(BaseModel):
    """Where a stage was recorded; replay is bit for bit where this agrees.

    Attributes:
        arithmetic: All that the last bits depend on beside the threads; empty in layout 1.
    """

    model_config = STRICT

    torch: str
    threads: int = Field(ge=1)
    device: str
    machine: str
    arithmetic: str = ""


class BestModel(BaseModel):
    """A boundary operation at a stage's end: the loop went back to its best model.

    The stage ends at that step, with its training state. A replay goes back to the same step, even
    though the model that it trains might have been best at another.

    Attributes:
        trained: How many steps were trained; those after the stage's last one do not count.
        metric: What the model was best by, as the loop names it.
        value: Its value.
    """

    model_config = STRICT

    trained: int = Field(ge=1)
    metric: str
    value: float


class WeightAverage(BaseModel):
    """How a stage ends where its end is an average of the weights that it went through.

    Replay averages too, by torch's own ``AveragedModel``.

    Attributes:
        kind: ``"ema"`` moves by ``1 - decay`` towards the weights, for all parameters at once;
            ``"ema-by-parameter"`` does so one by one, which rounds otherwise; ``"mean"`` weighs all
            alike.
        decay: Of the former two.
        first: Step, from 1, after which it begins, at the weights then.
        every: Steps from one to the next.
        buffers: Whether buffers are averaged; otherwise they are the newest ones.
    """

    model_config = STRICT

    kind: Literal["ema", "ema-by-parameter", "mean"]
    decay: float | None = Field(default=None, ge=0, le=1)
    first: int = Field(default=1, ge=1)
    every: int = Field(default=1, ge=1)
    buffers: bool = False

    def takes(self, step: int) -> bool:
        """Whether the weights after a step, from 1, are taken in."""
        return step >= self.first and (step - self.first) % self.every == 0


class Merge(BaseModel):
    """What a stage's end was made of, where it was merged from the ends of others.

    The weights are those of the linear combination that comes nearest, by least squares over all
    parameters; see :mod:`stagelens.runs.merges`.

    Attributes:
        weights: Parent to its weight.
        residual: What the combination leaves, relative to the distance to the nearest parent.
        allowed: The largest residual that rounding to the storage's dtype explains, beside 1e-5.
    """

    model_config = STRICT

    weights: dict[str, float]
    residual: float = Field(ge=0)
    allowed: float = Field(ge=0)

    @property
    def exact(self) -> bool:
        """Whether it is a linear combination of its parents, as far as its dtype can tell."""
        return self.residual <= self.allowed
