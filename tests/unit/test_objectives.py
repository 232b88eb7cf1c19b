"""Objectives by name, and losses that libraries compute."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from stagelens.contracts import Objective, TaskError
from stagelens.tasks.objectives import (
    BUILT_IN,
    find_objective,
    installed_objectives,
    load_objective_class,
)
from stagelens.tasks.objectives.cross_entropy import CrossEntropy
from stagelens.tasks.objectives.own import OwnLoss


def test_built_in_objectives_have_their_registered_names() -> None:
    for name, target in BUILT_IN.items():
        assert load_objective_class(target).name == name
    names = [each.name for each in installed_objectives()]
    assert names[: len(BUILT_IN)] == list(BUILT_IN)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("no-such-loss", {}, "'no-such-loss' is not installed"),
        ("model", {"by": "hand"}, "does not accept the settings"),
        ("cross-entropy", {"smoothing": 2.0}, "smoothing=2.0"),
        ("cross-entropy", {"weights": [1.0], "by": "trainer"}, "weights are not known"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(
    name: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(TaskError, match=says):
        find_objective(name, settings)


@pytest.mark.parametrize("target", ["json:dumps", "no_such_module:Loss", ":"])
def test_what_is_no_objective_is_refused(target: str) -> None:
    with pytest.raises(TaskError, match=r"(?i)objective"):
        load_objective_class(target)


def computed(objective: Objective, model: nn.Module, batch: Any) -> torch.Tensor:
    again = find_objective(objective.name, objective.settings)
    loss = again.loss(None, model, batch, {})  # type: ignore[arg-type]
    assert torch.equal(loss, objective.loss(None, model, batch, {}))  # type: ignore[arg-type]
    return loss


def test_smoothing_and_class_weights_are_torchs() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, -100, 1])
    own = computed(CrossEntropy(0.1, [1.0, 2.0, 0.5]), model, (x, y))
    weight = torch.tensor([1.0, 2.0, 0.5])
    assert torch.equal(
        own, nn.functional.cross_entropy(model(x), y, weight=weight, label_smoothing=0.1)
    )


class PerPosition(nn.Module):
    """Logits (B, T, C) of inputs (B, T, 4), as models of transformers return them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"logits": self.head(x)}


@pytest.mark.parametrize("by", ["torch", "trainer"])
def test_positions_are_shifted_and_items_divided_by(by: Any) -> None:
    torch.manual_seed(0)
    model = PerPosition()
    batch = {"x": torch.randn(2, 4, 4), "labels": torch.tensor([[0, 1, 2, -100], [3, 4, 0, 1]])}
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    objective = CrossEntropy(0.2, shift=True, by=by)
    logits, labels = model(batch["x"])["logits"][:, :-1].flatten(0, 1), batch["labels"][:, 1:]
    terms = nn.functional.cross_entropy(
        logits, labels.flatten(), label_smoothing=0.2, reduction="none"
    )
    terms = terms[labels.flatten() != -100]
    torch.testing.assert_close(computed(objective, model, batch), terms.mean())
    counted = {**batch, "num_items_in_batch": torch.tensor(20)}
    torch.testing.assert_close(computed(objective, model, counted), terms.sum() / 20)
    assert all(torch.equal(batch[name], kept[name]) for name in kept)  # nothing was changed


def test_a_loss_that_counts_its_calls_is_not_moved_by_calls_of_stagelens() -> None:
    class Annealed:
        calls = 0

        def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
            self.calls += 1
            return model(batch).sum()

    loss, model, batch = Annealed(), nn.Linear(2, 1), torch.ones(3, 2)
    objective = OwnLoss.of(loss)
    assert objective.function == "Annealed"
    objective.loss(None, model, batch, {})  # type: ignore[arg-type]
    loss(model, batch)
    assert loss.calls == 1
