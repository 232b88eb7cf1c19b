"""The ``Task`` protocol: what a model takes as input and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from .behaviours import Behaviour, Example, Predictions, TokenValues

if TYPE_CHECKING:
    import torch
    from torch import nn


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
        typed_label: Whether the label of an example of one's own is typed: it is not one of a
            list of classes.
    """

    input_kind: Literal["image", "text"]
    input_forms: tuple[tuple[str, ...], ...]
    has_token_values: bool = False
    continues_text: bool = False
    assembled_by_name: bool = False
    typed_label: bool = False


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

    @property
    def labels_are_answers(self) -> bool:
        """Whether an answer that equals the label is right, and any other wrong.

        Where it is not so, as for numbers, there is no accuracy, and tables show labels as
        ``target``.
        """
        return True

    def implied_label(self, value: Mapping[str, Any]) -> str | None:
        """The label of an example that a file gives without one; None, the default, for none.

        Args:
            value: As ``Example.input`` has it.
        """
        return None

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
