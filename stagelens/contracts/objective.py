"""The ``Objective`` protocol: what a stage minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .behaviours import Example
from .task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

REFERENCE = "reference"
"""The usual name of a reference model."""


MICRO_BATCHES = "micro_batches"
"""See :attr:`Objective.reads_micro_batches`."""


@dataclass(frozen=True)
class ReferenceModel:
    """Where a reference model of a stage comes from, as the training loop knows it.

    Attributes:
        model: The loop's own. The recorder finds the state of the run that it holds (as a rule the
            start of the stage); where it holds none, the run keeps it. None for the start.
        adapter_off: It is the trained model itself, with its adapter off; ``model`` is None then.
        sync_every: Updates between two moves of the reference towards the trained model; None
            where it stays.
        sync_mixing: What such a move takes of the trained model: the reference becomes
            ``(1 - sync_mixing) * reference + sync_mixing * model``.
    """

    model: nn.Module | None = None
    adapter_off: bool = False
    sync_every: int | None = None
    sync_mixing: float = 1.0


class Objective(ABC):
    """What a stage minimised: its loss, where that is not the model's own.

    An objective is found by ``name`` among the installed ones (entry-point group
    ``stagelens.objectives``), or given by the user. A run folder never names code: it stores
    ``name`` and ``settings``, and ``type(objective)(**objective.settings)`` has to make the same
    objective again.

    Attributes:
        name: As registered, and as stored in run folders.
        reads_micro_batches: Whether a Trainer's loss depends on how many micro-batches a step has.
            A batch then holds their number, (), under ``MICRO_BATCHES`` where it is not that of the
            Trainer's settings, as at the end of an epoch.
        on_samples: Whether it was trained on answers that the model itself had sampled. A replay is
            then one on the recorded samples, and says so.
    """

    name: ClassVar[str]
    on_samples: ClassVar[bool] = False
    reads_micro_batches: ClassVar[bool] = False

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Keyword arguments, as plain JSON, that recreate this objective."""

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the reference models that it needs; none by default.

        Each is a state of the run, or a model that the run keeps. It is in evaluation mode, without
        gradients, and the optimiser never moves it.
        """
        return ()

    @abstractmethod
    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> torch.Tensor:
        """The loss of one batch, a scalar, before the loop divides it.

        It must not change ``batch``, and may draw random numbers from torch's generator only.

        Args:
            task: The run's.
            model: That is trained; called itself, not by its parts.
            batch: As the loop noted it. Of a Trainer, the inputs of ``compute_loss`` as a
                dictionary, with its ``num_items_in_batch`` among them where it was given one.
            references: A model for each name in ``references``.
        """

    def plain(self) -> Objective:
        """The same loss by operations that torch can differentiate twice; by default itself.

        Derivatives ask for it where a loss is computed by kernels of its own, and compare it with
        the recorded one at the first step of a stage.
        """
        return self

    def row_examples(self, task: Task, batch: Any) -> Sequence[int] | None:
        """See :meth:`Task.row_examples`; by default what the task says."""
        return task.row_examples(batch)

    def documents(self, task: Task, batch: Any) -> torch.Tensor | None:
        """See :meth:`Task.documents`; by default what the task says."""
        return task.documents(batch)

    def coupling(self, task: Task, batch: Any) -> str | None:
        """See :meth:`Task.coupling`; by default what the task says."""
        return task.coupling(batch)

    def examples(self, task: Task, batch: Any) -> Sequence[Example] | None:
        """See :meth:`Task.examples`; by default what the task says."""
        return task.examples(batch)

    @classmethod
    def of_trainer(cls, trainer: Any) -> Objective | None:
        """The objective that a ``transformers.Trainer`` minimises, read off its settings.

        It is asked of every registered objective when a training is recorded without naming one.

        Returns:
            None, the default, where this is not the Trainer's objective.

        Raises:
            RecordingError: It is, but with settings, or in a version, that it cannot reproduce;
                names them.
        """
        return None

    def reference_models(self, trainer: Any) -> Mapping[str, ReferenceModel]:
        """Where a Trainer of this objective has its reference models, by their names.

        Returns:
            Names may be left out: that reference is the start of the stage.
        """
        return {}
