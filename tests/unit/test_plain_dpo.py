"""DPO in a loop of one's own: the loss by hand, that of TRL, and what a run keeps of it."""

from __future__ import annotations

import copy
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.contracts import TaskError
from stagelens.replaying.reproduction import measure_deviation
from stagelens.tasks.objectives import find_objective
from stagelens.tasks.objectives.plain_dpo import PlainDPO
from tests.support.small_texts import language

PROMPTS = ["the cat sat on", "two and two", "a dog"]
CHOSEN = [" the mat", " make four", " barked until morning"]
REJECTED = [" the dog", " make two and two", " sat"]


@pytest.fixture
def trained() -> tuple[Any, Any, Any]:
    """A task, a model in evaluation mode, and a reference that differs from it."""
    task, model = language()
    reference = copy.deepcopy(model).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return task, model.eval(), reference


def test_the_loss_is_what_the_paper_says(trained: tuple[Any, Any, Any]) -> None:
    task, model, reference = trained
    expected = []
    for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        gained = []
        for completion in (chosen, rejected):
            # One completion by itself: transformers' mean loss over its tokens, times their number.
            row = task.batch(prompts=[prompt], completions=[completion])
            count = int((row["labels"] >= 0).sum())
            sums = [-count * float(task.loss(each, row).detach()) for each in (model, reference)]
            gained.append(sums[0] - sums[1])
        margin = torch.tensor(gained[0] - gained[1])
        expected.append(float(-torch.nn.functional.logsigmoid(0.3 * margin)))
    objective = PlainDPO(beta=0.3)
    batch = objective.batch(task, PROMPTS, CHOSEN, REJECTED)
    loss = objective.loss(task, model, batch, {"reference": reference})
    assert float(loss.detach()) == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert objective.row_examples(task, batch) == [0, 1, 2, 0, 1, 2]
    shown = [each.input for each in objective.examples(task, batch) or ()]
    wanted = zip(PROMPTS, CHOSEN, REJECTED, strict=True)
    assert shown == [{"prompt": p, "completion": c, "rejected": r} for p, c, r in wanted]


@pytest.mark.slow  # TRL takes four seconds to import
@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_loss_and_gradient_are_those_of_trl(beta: float, trained: tuple[Any, Any, Any]) -> None:
    from stagelens.tasks.objectives.trl.dpo import DPO

    task, model, reference = trained
    theirs = DPO(
        "",
        {
            "beta": beta,
            "precompute_ref_logps": False,
            "loss_types": ["sigmoid"],
            "loss_weights": [1.0],
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "label_smoothing": 0.0,
            "use_weighting": False,
            "aux_loss_enabled": False,
        },
        {"disable_dropout": True},
    )
    objective = PlainDPO(beta)
    batch = objective.batch(task, PROMPTS, CHOSEN, REJECTED)
    found = []
    for each in (objective, theirs):
        loss = each.loss(task, model, batch, {"reference": reference})
        found.append((loss.detach(), torch.autograd.grad(loss, list(model.parameters()))))
    (own, own_gradients), (trl, trl_gradients) = found
    torch.testing.assert_close(own, trl, rtol=1e-5, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in trl_gradients) > 1e-3
    for one, other in zip(own_gradients, trl_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_loop_is_recorded_and_replayed_bit_for_bit(tmp_path: Path) -> None:
    task, model = language()
    objective, reference = PlainDPO(beta=0.2), copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with (
        closing(stagelens.Recorder(tmp_path / "run", task)) as recorder,
        recorder.stage(
            "dpo", model=model, optimizer=optimizer, objective=objective, on_problem="raise"
        ) as stage,
    ):
        for _ in range(3):
            batch = objective.batch(task, PROMPTS, CHOSEN, REJECTED)
            loss = objective.loss(task, model, batch, {"reference": reference})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
    run = stagelens.open_run(tmp_path / "run")
    assert (run.last.facts.objective.name, run.last.facts.objective.settings) == (
        "plain-dpo",
        {"beta": 0.2},
    )
    assert measure_deviation(run.task, run.last).bitwise


def test_bad_pairs_and_settings_are_refused() -> None:
    task, _ = language()
    with pytest.raises(TaskError, match="3 prompts, 2 chosen and 3 rejected"):
        PlainDPO.batch(task, PROMPTS, CHOSEN[:2], REJECTED)
    with pytest.raises(TaskError, match="beta=0; pass a number above 0"):
        find_objective("plain-dpo", {"beta": 0})
