"""Vocabularies that grow, shrink and are padded between stages; heads that are untied or new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stagelens.contracts import Task
from stagelens.derivatives.forward_mode import final_tangents
from stagelens.estimators.replay import Replay
from stagelens.estimators.subtraction import subtract_stage
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.runs.run import Run
from stagelens.tasks import CausalLM, TextClassification
from stagelens.tasks.transformer_task import model_facts
from tests.support.loops import Plan, differing_state, record_plans, run_plans
from tests.support.small_texts import TEXTS, bert, bert_tokenizer, gpt, gpt_tokenizer

TOKENIZER = gpt_tokenizer()
VOCABULARY = len(TOKENIZER)
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
Prepare = Callable[[Any], nn.Module]


def adamw(model: nn.Module, _before: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def first_model(tied: bool, width: int = 16) -> Any:
    return gpt(TOKENIZER, tie_word_embeddings=tied, n_embd=width)


def resized(count: int, **options: Any) -> Prepare:
    def prepare(model: Any) -> nn.Module:
        model.resize_token_embeddings(count, **options)
        return model.train()

    return prepare


def make_task(tied: bool) -> CausalLM:
    return CausalLM.from_model(first_model(tied), TOKENIZER)


def plans_of(task: CausalLM, tied: bool, *changes: Prepare) -> list[Plan]:
    """Three stages, between which a model is changed; each records its model's configuration."""

    def batches(count: int, seed: int) -> list[Any]:
        return [task.batch([TEXTS[(seed + n) % 5], TEXTS[n % 5]]) for n in range(count)]

    model, plans = first_model(tied), []
    for number, change in enumerate((lambda model: model, *changes)):
        torch.manual_seed(100 + number)
        model = change(model)
        config = {"model": model_facts(model)["model"]}
        recorder = {"build_config": config}
        plans.append(Plan(f"stage{number}", adamw, change, 3, data=batches, recorder=recorder))
    return plans


def record(path: Path, tied: bool, *changes: Prepare) -> tuple[Run, CausalLM, list[Plan]]:
    task = make_task(tied)
    plans = plans_of(task, tied, *changes)
    return record_plans(path / "run", task, plans), task, plans


def check(run: Run, task: Task, plans: list[Plan]) -> None:
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages[:-1]:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


def at_the_mean(model: Any) -> nn.Module:
    """Rows at the very mean, as transformers makes them of a vocabulary smaller than its width."""
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    with torch.no_grad():
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            module.weight[VOCABULARY:] = module.weight[:VOCABULARY].mean(0)
    return model.train()


LARGER = resized(VOCABULARY + 3, mean_resizing=False)
PADDED = resized(VOCABULARY, pad_to_multiple_of=64, mean_resizing=False)
CHANGES: dict[str, tuple[list[Prepare], str]] = {
    "grown": ([LARGER], "grown"),
    "padded": ([PADDED], "grown"),
    "trimmed": ([PADDED, resized(VOCABULARY)], "trimmed"),
    "grown at the mean": ([at_the_mean], "averaged"),
    "loaded in bfloat16 and grown": ([lambda model: LARGER(model.bfloat16().float())], "casts"),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("how", CHANGES)
def test_rows_come_and_go_bit_for_bit(how: str, tied: bool, tmp_path: Path) -> None:
    changes, field = CHANGES[how]
    run, task, plans = record(tmp_path, tied, *changes)
    boundary = run.last.facts.boundary
    names = {EMBEDDING} if tied else {EMBEDDING, HEAD}
    assert names <= set(getattr(boundary, field))
    assert (boundary.new, boundary.removed, boundary.deviation) == ([], [], 0)
    check(run, task, plans)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, CausalLM, list[Plan]]:
    """Rows that transformers draws around the mean of the others."""
    return record(tmp_path_factory.mktemp("drawn"), True, resized(VOCABULARY + 3), lambda m: m)


def test_rows_drawn_around_the_mean_follow_it_and_say_how_far_they_are_from_it(
    drawn: tuple[Run, CausalLM, list[Plan]],
) -> None:
    run, task, plans = drawn
    first, second, _ = run.stages
    boundary = second.facts.boundary
    assert boundary.averaged == {EMBEDDING: 3}
    assert 0 < boundary.deviation < 1e-4
    assert differing_state(cross_boundary(first.end(), second), second.start()) == []
    rows = cross_boundary(first.start(), second).model[EMBEDDING]
    mean = first.start().model[EMBEDDING].mean(0)
    apart = (rows[VOCABULARY:] - mean).abs().max()
    assert apart < 0.1 * (second.start().model[EMBEDDING][VOCABULARY:] - mean).abs().max()
    by_hand = run_plans(task, plans, without=first.name).model
    replayed = replay_without(run, first).state.model
    for name, tensor in by_hand.items():
        torch.testing.assert_close(replayed[name], tensor, rtol=0, atol=1e-4)
    (found,) = Replay().counterfactuals(run, [first], lambda *_: None)
    assert (found.trust.trust, found.trust.deviation) == ("estimated", boundary.deviation)
    assert "added rows" in found.trust.reason


def test_the_task_vector_moves_added_rows_by_the_change_of_their_mean(
    drawn: tuple[Run, CausalLM, list[Plan]],
) -> None:
    run = drawn[0]
    first, final = run.stages[0], run.last.end().model
    without = subtract_stage(final, first, run.stages[1:])
    change = first.end().model[EMBEDDING].double() - first.start().model[EMBEDDING].double()
    moved = final[EMBEDDING].double() - without[EMBEDDING].double()
    expected = torch.cat([change, change.mean(0).expand(3, -1)])
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_the_task_vector_leaves_rows_of_their_own_and_cut_ones_alone(tmp_path: Path) -> None:
    run, *_ = record(tmp_path, False, LARGER, resized(VOCABULARY + 1))
    first, final = run.stages[0], run.last.end().model
    without = subtract_stage(final, first, run.stages[1:])
    change = first.end().model[HEAD].double() - first.start().model[HEAD].double()
    moved = final[HEAD].double() - without[HEAD].double()
    torch.testing.assert_close(moved[:-1], change, rtol=0, atol=1e-6)
    assert not moved[-1].any()


def test_a_first_order_change_goes_through_added_and_cut_rows(tmp_path: Path) -> None:
    run, *_ = record(tmp_path, False, at_the_mean, resized(VOCABULARY + 1))
    tangent = final_tangents(run, [run.stages[0]], "jump")[run.stages[0].name].values
    final = run.last.end().model
    assert {name: tensor.shape for name, tensor in tangent.items()} == {
        name: final[name].shape for name in tangent
    }
    assert float(tangent[EMBEDDING][VOCABULARY].abs().max()) > 0


# Heads


def untied(model: Any) -> nn.Module:
    """As where an adapter trains the head: a copy of the embedding of its own."""
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model.train()


def test_a_head_that_is_untied_goes_on_from_the_embedding(tmp_path: Path) -> None:
    run, task, plans = record(tmp_path, True, untied, lambda model: model)
    boundary = run.stages[1].facts.boundary
    assert (boundary.renamed, boundary.new) == ({HEAD: EMBEDDING}, [])
    check(run, task, plans)


def test_a_head_with_another_number_of_labels_begins_anew(tmp_path: Path) -> None:
    """The task is that of the last stage; an earlier one had five labels."""
    tokenizer = bert_tokenizer()
    task = TextClassification.from_model(bert(tokenizer), tokenizer)
    five: dict[str, Any] = {"id2label": dict(enumerate("abcde")), "num_labels": 5}

    def replaced(model: Any) -> nn.Module:
        model.classifier = nn.Linear(16, 3)
        model.config.num_labels = model.num_labels = 3
        return model.train()

    def batches(count: int, seed: int) -> list[Any]:
        return [task.batch(TEXTS[:3], ["calm", "loud", "odd"]) for _ in range(count + seed)]

    first = {"build_config": {"model": model_facts(bert(tokenizer, **five))["model"]}}
    plans = [
        Plan("broad", adamw, batches=3, data=batches, recorder=first),
        Plan("narrow", adamw, replaced, 3, data=batches),
    ]
    run = record_plans(tmp_path / "run", task, plans)
    boundary = run.last.facts.boundary
    assert boundary.new == ["classifier.weight", "classifier.bias"]
    assert (boundary.grown, boundary.trimmed, boundary.problem) == ({}, {}, None)
    check(run, task, plans)
