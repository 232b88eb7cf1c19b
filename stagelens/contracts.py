"""What every room may rely on: errors, the ``Task`` protocol, behaviours and supported optimisers.

This module imports nothing of StageLens, and no heavy library, so that any room may import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


class StageLensError(Exception):
    """An error that the user can fix. The message names the cause and what to do next."""


class RunError(StageLensError):
    """A run folder, or a file of it, is damaged, foreign or incomplete."""


class RecordingError(StageLensError):
    """A training loop does something that replay could not reproduce."""


class RecordingWarning(UserWarning):
    """A stage that is being recorded cannot be replayed; the message names the cause."""


class SetError(StageLensError):
    """An evaluation set cannot be read, or does not fit the run's task."""


class TaskError(StageLensError):
    """A task is not installed, or does not fit the model."""


class Refused(StageLensError):
    """An estimator declines to give a number that could not be trusted."""


Trust = Literal["exact", "verified", "does not agree", "estimated", "refused"]
"""How a number was obtained, and what came of checking it. What is shown and written is the trust
word that follows from it, see ``stagelens.wording.trust_words``."""

BASE = "base"
"""Name of the boundary before the first stage."""

CARRIED = "carried momentum and decay"
"""What moments of earlier steps, weight decay and the step count contributed to a step."""


@dataclass(frozen=True)
class Behaviour:
    """One number per example, measured on a model.

    Attributes:
        name: As tables show it, for instance ``"margin"``.
        better: Whether ``"higher"`` or ``"lower"`` values are better for the example.
        unit: Printed after values, for instance ``"nats"``; empty if there is none.
        description: One sentence for help texts.
        lowest, highest: Possible values; an estimate beyond them is shown as the nearest one.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    description: str = ""
    lowest: float = float("-inf")
    highest: float = float("inf")

    @property
    def sign(self) -> int:
        """+1 where higher is better, -1 where lower is; ``sign * effect > 0`` is credit."""
        return 1 if self.better == "higher" else -1


@dataclass(frozen=True)
class Example:
    """One row of an evaluation set, as a task sees it.

    Attributes:
        example_id: Unique and stable within its set.
        input: By the names of the task's ``input_fields``: ``{"image": array (H, W) or
            (H, W, C)}``, ``{"text": str}``, or several texts, None where one is missing.
        label: Class name, or None where the set has no label for this example.
        columns: Further metadata, for instance ``{"group": "stamped"}``.
    """

    example_id: str
    input: Mapping[str, Any]
    label: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """What a model answers for a batch of B examples.

    Attributes:
        answers: (B,) printable answers, for a classifier the class name.
        confidences: (B,) probability that the model itself gives its answer; NaN if it gives none.
    """

    answers: Sequence[str]
    confidences: Sequence[float]


@dataclass(frozen=True)
class TokenValues:
    """One text as a model reads it, with a number per token.

    Attributes:
        tokens: (T,) printable pieces; together they make up the text.
        values: (T,) floats, NaN where a token has none.
    """

    tokens: Sequence[str]
    values: np.ndarray


@dataclass(frozen=True)
class TaskTraits:
    """What pages ask about a task, known without importing it.

    Attributes:
        input_kind: What an example's input is.
        input_forms: The combinations of fields that make up an example, the usual one first.
        has_token_values: Whether behaviours can be given per token.
        continues_text: Whether an answer is the most probable next token, which counts as neither
            right nor wrong.
        assembled_by_name: Whether checkpoint folders can be assembled into a run of the task
            given only its name.
    """

    input_kind: Literal["image", "text"]
    input_forms: tuple[tuple[str, ...], ...]
    has_token_values: bool = False
    continues_text: bool = False
    assembled_by_name: bool = False


class Task(ABC):
    """A model's inputs and answers: the one class to write for a model of your own.

    The abstract methods are required; the rest has defaults. ``config`` must be plain JSON,
    because the run folder stores it beside ``name``, and ``type(task)(**task.config)`` has to make
    the same task again. A run folder never names code: a task is found by ``name`` among the
    installed ones (entry-point group ``stagelens.tasks``), or given by the user.

    Attributes:
        name: As registered, and as stored in run folders.
        behaviour_kinds: What ``behaviours`` returns, the most informative one first.
        input_kind: What an example's input is.
        input_fields: Names in ``Example.input``; by default the kind itself.
        takes_labels: Whether behaviours are about an example's label.
        has_token_values: Whether ``token_values`` is implemented.
        image_shape: (channels, height, width) of the images that it takes; None if it takes any
            size, or no images.
    """

    name: ClassVar[str]
    behaviour_kinds: ClassVar[tuple[Behaviour, ...]] = ()
    input_kind: ClassVar[Literal["image", "text"]]
    input_fields: ClassVar[tuple[str, ...]] = ()
    takes_labels: ClassVar[bool] = True
    has_token_values: ClassVar[bool] = False
    image_shape: tuple[int, ...] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # An intermediate base class may leave its kind to its subclasses.
        if not cls.input_fields and hasattr(cls, "input_kind"):
            cls.input_fields = (cls.input_kind,)

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments, as plain JSON, that recreate this task."""

    @property
    def assets(self) -> Mapping[str, bytes]:
        """Small files, by name, that the task needs to be recreated: a tokenizer, say.

        A run folder keeps them, and passes them back as the keyword ``assets`` beside ``config``.
        They are data: never code, never pickled.
        """
        return {}

    @abstractmethod
    def build_model(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """Make the module; its weights do not matter, since recorded states are loaded into it.

        Args:
            config: A stage's own model configuration, if it differs from the task's (a head
                that appears later, say); None for the task's own.
        """

    def build_empty(self, config: Mapping[str, Any] | None = None) -> nn.Module:
        """``build_model`` for recorded states; parameters may be on the ``meta`` device."""
        return self.build_model(config)

    def stage_config(self, model: nn.Module) -> dict[str, Any] | None:
        """What ``build_model`` takes to make a stage's model, read from the model being trained.

        A ``build_config`` that the recorder was given goes on top of it.

        Returns:
            Plain JSON; None, the default, for the task's own model.
        """
        return None

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Any:
        """Make one batch of examples of an evaluation set, as ``loss`` and ``outputs`` take it."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The training loss of one batch, a scalar that the training loop calls backward on."""

    def loss_terms(self, batch: Any) -> float | None:
        """How many terms a batch's loss is the mean of, for batches that processes share.

        Returns:
            None, the default: one per example. 0 if it is a sum, so that the losses of parts of
            a batch simply add up.
        """
        return None

    @abstractmethod
    def behaviours(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Values (B,) of each behaviour, by its name; NaN for an example without a label."""

    @abstractmethod
    def predictions(self, outputs: Any) -> Predictions:
        """The model's answers for a batch."""

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """Forward pass for evaluation; by default the model on the batch's first element."""
        return model(batch[0])

    def examples(self, batch: Any) -> Sequence[Example] | None:
        """The examples of a training batch, for people to look at; roughly undoes ``collate``.

        Args:
            batch: As ``loss`` takes it.

        Returns:
            B examples in the batch's order, with the input and the label that the model was given;
            their ids mean nothing. None, the default, if the task cannot recover them.
        """
        return None

    def check_label(self, label: Any) -> str | None:
        """The name used in tables for a label in a file; None if the label is missing.

        Raises:
            ValueError: The label is not one of the task's; the message lists those.
        """
        return None if label is None else str(label)

    def check_input(self, value: Mapping[str, Any]) -> str | None:
        """Check an input before it enters an evaluation set.

        Args:
            value: As ``Example.input`` has it.

        Returns:
            What a person should know about it, for instance ``"cut to 512 tokens"``; None if all
            is well.

        Raises:
            ValueError: The task cannot take it; the message continues "example 'x' ...".
        """
        return None

    def token_values(self, outputs: Any, batch: Any) -> list[TokenValues]:
        """Every text of a batch, token by token, with the model's value for each.

        The stage effect on a token is the difference of two models' values.

        Raises:
            NotImplementedError: The task has none (``has_token_values`` is False).
        """
        raise NotImplementedError(f"task {self.name!r} has no values per token")


@dataclass(frozen=True)
class OptimizerRule:
    """How one of torch's optimisers is recorded.

    Attributes:
        hyperparameters: Read per parameter group at every step.
        flags: Fixed for a stage; replay passes them to torch as recorded.
        state: Keys of the per-parameter state that replay restores.
        refused: Options that replay refuses when they are set, to what to do instead.
    """

    hyperparameters: tuple[str, ...]
    flags: tuple[str, ...]
    state: tuple[str, ...]
    refused: Mapping[str, str]


_REFUSED_EVERYWHERE = {
    "maximize": "negate the loss instead",
    "differentiable": "use the default, differentiable=False",
    "capturable": "use the default, capturable=False",
}

SUPPORTED_OPTIMIZERS: Mapping[str, OptimizerRule] = {
    "SGD": OptimizerRule(
        hyperparameters=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        flags=("foreach", "fused"),
        state=("momentum_buffer",),
        refused=_REFUSED_EVERYWHERE,
    ),
    "Adam": OptimizerRule(
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        flags=("foreach", "fused"),
        state=("step", "exp_avg", "exp_avg_sq"),
        refused={
            **_REFUSED_EVERYWHERE,
            "amsgrad": "use amsgrad=False",  # its running maximum is not in ``state``
            "decoupled_weight_decay": "use torch.optim.AdamW",  # AdamW's rule under Adam's name
        },
    ),
    "AdamW": OptimizerRule(
        hyperparameters=("lr", "betas", "eps", "weight_decay"),
        flags=("foreach", "fused"),
        state=("step", "exp_avg", "exp_avg_sq"),
        refused={**_REFUSED_EVERYWHERE, "amsgrad": "use amsgrad=False"},
    ),
}
"""Rules by class name in ``torch.optim``. Anything else is refused when a stage starts."""


ProgressCallback = Callable[[float, str], None]
"""Called with the share done so far, 0 to 1, and what is being done now."""


class Progress:
    """A listener that can be split, so that parts of the work report progress of the whole.

    Args:
        report: The listener; None to drop all reports.
    """

    def __init__(self, report: ProgressCallback | None = None) -> None:
        self._report = report

    def __call__(self, done: float, text: str) -> None:
        """Report the share done so far, 0 to 1, and what is being done now."""
        if self._report is not None:
            self._report(done, text)

    def part(self, start: float, stop: float, prefix: str = "") -> Progress:
        """The listener of a part, whose 0 is ``start`` of the whole and whose 1 is ``stop``.

        Args:
            start: Share of the whole that is done when the part begins.
            stop: Share that is done when it ends.
            prefix: Put before what the part says.
        """

        def tell(done: float, text: str) -> None:
            self((1 - done) * start + done * stop, prefix + text)  # exact at both ends

        return Progress(tell)

    def piece(self, number: int, count: int, prefix: str = "") -> Progress:
        """The listener of one of ``count`` equal parts, numbered from 0."""
        return self.part(number / count, (number + 1) / count, prefix)


no_progress = Progress()
"""A listener that does nothing."""


ACCURACY = Behaviour(
    "accuracy",
    "higher",
    "points",
    "1 where the model's answer is the label, 0 where it is not; its mean is the share of right "
    "answers. Examples without a label are left out and counted.",
)
"""Derived from answers and labels; measured per example like every other behaviour."""


SLICE_COLUMN = "slice: "
"""Prefix of columns of slices; a set's own column cannot be mistaken for one, see
:func:`stagelens.analyses.slices.saved.joined`."""

OTHER_EXAMPLES = "others"
"""Value for the examples outside a slice."""
