"""Direct preference optimisation in a training loop of one's own, without TRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagelens.contracts import REFERENCE, Example, Objective, Task, TaskError

from .pairs import pair_examples, pair_rows

if TYPE_CHECKING:
    import torch
    from torch import nn


class PlainDPO(Objective):
    """The loss of Rafailov et al., "Direct Preference Optimization" (2023), equation 7.

    ``-log sigmoid(beta * (chosen - rejected))``, averaged over pairs, where ``chosen`` and
    ``rejected`` are the completions' log-likelihoods minus those of the reference model. It is the
    loss type ``sigmoid`` of TRL's ``DPOTrainer``, whose batches it takes: ``input_ids``,
    ``attention_mask`` and ``completion_mask``, each (2 B, T), the B chosen rows first.

    Args:
        beta: Strength of the reference model.

    Raises:
        ValueError: It is not above 0.

    Example:
        >>> objective = PlainDPO(beta=0.1)
        >>> batch = objective.batch(task, prompts, chosen, rejected)      # doctest: +SKIP
        >>> loss = objective.loss(task, model, batch, {"reference": reference})  # doctest: +SKIP
    """

    name = "plain-dpo"

    def __init__(self, beta: float = 0.1) -> None:
        if not beta > 0:
            raise ValueError(f"beta={beta!r}; pass a number above 0")
        self.beta = float(beta)

    @property
    def settings(self) -> dict[str, Any]:
        return {"beta": self.beta}

    @property
    def references(self) -> tuple[str, ...]:
        return (REFERENCE,)

    @staticmethod
    def batch(
        task: Any, prompts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Pairs as a batch for training.

        Args:
            task: A :class:`~stagelens.tasks.CausalLM`.
            prompts: B of them.
            chosen: What is preferred after each.
            rejected: What it is preferred to.

        Raises:
            TaskError: Not one of each per prompt, or a completion without a token.
        """
        if not len(prompts) == len(chosen) == len(rejected):
            raise TaskError(
                f"{len(prompts)} prompts, {len(chosen)} chosen and {len(rejected)} rejected "
                "completions; give one of each per prompt"
            )
        rows = task.batch(prompts=[*prompts, *prompts], completions=[*chosen, *rejected])
        labels = rows.pop("labels")
        return {**rows, "completion_mask": (labels >= 0).long()}

    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        gained = _likelihoods(model, batch) - _likelihoods(references[REFERENCE], batch)
        chosen, rejected = gained.chunk(2)
        return -logsigmoid(self.beta * (chosen - rejected)).mean()

    def row_examples(self, task: Task, batch: Any) -> Sequence[int]:
        return pair_rows(batch)

    def examples(self, task: Task, batch: Any) -> Sequence[Example] | None:
        return pair_examples(task, batch)


def _likelihoods(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(2 B,) log-likelihoods of the completions, in nats."""
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (tokens * mask).sum(1)
