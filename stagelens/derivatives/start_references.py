"""Reference models that are the start of their stage: they differ where an earlier stage does."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from stagelens.contracts import Refused
from stagelens.replaying.training_loss import TrainingLoss
from stagelens.runs.run import Stage

from .batch_norm import tracking
from .plain_loss import plain_attention


class StartReferences:
    """The reference models of a stage that are its own start, as functions of that start.

    Args:
        stage: The stage.
        loss: Its loss.
        names: What is differentiated.

    Attributes:
        names: Of each leaf, which name of the stage's start it is.
        leaves: Parameters of the reference models.
        cotangents: By name, K cotangents of the start that were noted so far.

    Raises:
        Refused: Such a reference model has BatchNorm.
    """

    def __init__(self, stage: Stage, loss: TrainingLoss, names: Collection[str]) -> None:
        self.names: list[str] = []
        self.leaves: list[Tensor] = []
        self.cotangents: dict[str, Tensor] = {}
        self._tangents: Mapping[str, Tensor] = {}
        for model in references_at_start(stage, loss):
            plain_attention(model)
            if tracking(model):
                raise Refused(
                    f"the reference model of stage {stage.name!r} has BatchNorm, and how that "
                    "depends on earlier stages is not known here; use coarse-replay or replay"
                )
            for name, parameter in model.named_parameters():
                if name in names and parameter.is_floating_point():
                    self.names.append(name)
                    self.leaves.append(parameter.requires_grad_(True))

    def begin(self, tangents: Mapping[str, Tensor]) -> None:
        """Note K tangents of the stage's start, by name."""
        self._tangents = {name: tangents[name] for name in set(self.names)}

    def along(self, k: int) -> list[Tensor]:
        """The k-th tangent of every leaf."""
        return [
            self._tangents[name][k] if self._tangents else leaf.new_zeros(leaf.shape)
            for name, leaf in zip(self.names, self.leaves, strict=True)
        ]

    def note(self, rows: Mapping[str, Tensor]) -> None:
        """Add K cotangents of the start, by name."""
        for name, tensor in rows.items():
            known = self.cotangents.get(name)
            self.cotangents[name] = tensor if known is None else known + tensor


def references_at_start(stage: Stage, loss: TrainingLoss) -> list[nn.Module]:
    """The reference models of a stage that are its own start, and stay so."""
    facts = stage.facts.objective
    return [
        loss.references[name]
        for name, reference in (facts.references if facts is not None else {}).items()
        if reference.kind == "start" and reference.stage in (None, stage.name)
    ]
