"""LoRA: adapters that are added, merged and removed between stages are replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import stagelens
from stagelens.effects.computing import boundaries
from stagelens.estimators.replay import Replay
from stagelens.estimators.subtraction import subtract_stage
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.boundary_facts import LowRank
from stagelens.runs.run import Run
from stagelens.runs.sets.writer import write_set
from stagelens.runs.states import load_into
from stagelens.tasks.adapters import with_adapter
from tests.support.adapted import adapting, added, layers_task, merged, unloaded
from tests.support.loops import (
    Plan,
    differing_state,
    make_batches,
    make_task,
    record_plans,
    run_plans,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")

Optimizer = torch.optim.Optimizer


def adamw(model: nn.Module, _before: Optimizer | None) -> Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


def momentum(model: nn.Module, _before: Optimizer | None) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


def carried(_model: nn.Module, before: Optimizer | None) -> Optimizer:
    assert before is not None
    return before


def grown(model: nn.Module, before: Optimizer | None) -> Optimizer:
    """The optimiser of the stage before, which trains the adapter's parameters too."""
    assert before is not None
    known = {id(p) for group in before.param_groups for p in group["params"]}
    fresh = [p for p in model.parameters() if id(p) not in known]
    before.add_param_group({"params": fresh})
    return before


def unchanged(model: nn.Module) -> nn.Module:
    return model


def replaced(taken_off: Callable[[nn.Module], nn.Module], **settings: Any) -> Any:
    """Take the adapter off, and put a new one on."""
    return lambda model: added(**settings)(taken_off(model))


WHOLE_HEAD: dict[str, Any] = {"modules_to_save": ["head"]}
FULL, LORA = Plan("full", adamw), adapting("lora", adamw)
MERGED, UNLOADED = (Plan("after", momentum, prepare=how) for how in (merged, unloaded))

HISTORIES: dict[str, tuple[list[Plan], list[list[str]]]] = {
    "merged": ([FULL, LORA, MERGED], [["added"], ["merged"]]),
    "kept": ([FULL, LORA], [["added"]]),
    "thrown away": ([FULL, LORA, UNLOADED], [["added"], ["removed"]]),
    "trained twice, then merged": (
        [FULL, LORA, adapting("more", carried, unchanged), MERGED],
        [["added"], [], ["merged"]],
    ),
    "merged, and another one added": (
        [FULL, LORA, adapting("another", adamw, replaced(merged)), MERGED],
        [["added"], ["merged", "added"], ["merged"]],
    ),
    "merged, and one of another rank added": (
        [FULL, LORA, adapting("another", adamw, replaced(merged, r=3), r=3)],
        [["added"], ["merged", "added"]],
    ),
    "thrown away, and another one added": (
        [FULL, LORA, adapting("another", adamw, replaced(unloaded))],
        [["added"], ["removed", "added"]],
    ),
    "there from the start": ([adapting("lora", adamw, unchanged), MERGED], [["merged"]]),
    "with a head that is trained whole": (
        [
            FULL,
            adapting("lora", adamw, **WHOLE_HEAD),
            adapting("another", adamw, replaced(merged, **WHOLE_HEAD), **WHOLE_HEAD),
            MERGED,
        ],
        [["added"], ["merged", "added"], ["merged"]],
    ),
    "with biases, dropout and rank-stabilised scaling": (
        [FULL, adapting("lora", adamw, bias="all", lora_dropout=0.3, use_rslora=True), UNLOADED],
        [["added"], ["removed"]],
    ),
    "with the optimiser carried over": (
        [FULL, adapting("lora", grown, bias="all")],
        [["added"]],
    ),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_replay_is_bit_for_bit_with_and_without_every_stage(history: str, tmp_path: Path) -> None:
    (plans, operations), task = HISTORIES[history], layers_task()
    run = record_plans(tmp_path / "run", task, plans)
    assert [stage.facts.boundary.adapters for stage in run.stages[1:]] == operations
    for stage in run.stages:
        assert stage.facts.boundary.deviation == 0
        assert measure_deviation(task, stage).bitwise
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Full, adapted, merged and full again."""
    path = tmp_path_factory.mktemp("adapters") / "run"
    return record_plans(path, layers_task(), HISTORIES["merged"][0])


def test_a_boundary_says_what_was_renamed_and_what_was_merged(run: Run) -> None:
    lora, after = (stage.facts.boundary for stage in run.stages[1:])
    on, off = "base_model.model.outer.base_layer.weight", "outer.weight"
    assert (lora.renamed[on], after.renamed[off]) == (off, on)
    assert {name for name in lora.new if "lora_" not in name} == set()
    assert lora.removed == []
    assert set(after.removed) == set(lora.new)
    factors = "base_model.model.{}.lora_{}.default.weight".format
    assert after.merged == {
        "table.weight": LowRank(
            a="base_model.model.table.lora_embedding_A.default",
            b="base_model.model.table.lora_embedding_B.default",
            scaling=3.0,
            transposed=True,
        ),
        "inner.weight": LowRank(
            a=factors("inner", "A"), b=factors("inner", "B"), scaling=3.0, transposed=True
        ),
        "outer.weight": LowRank(a=factors("outer", "A"), b=factors("outer", "B"), scaling=3.0),
    }


def test_optimiser_state_goes_over_with_the_parameters_that_were_renamed(tmp_path: Path) -> None:
    plans, _ = HISTORIES["with the optimiser carried over"]
    run = record_plans(tmp_path / "run", layers_task(), plans)
    before, after, boundary = run.stages[0].end(), run.last.start(), run.last.facts.boundary
    assert sorted(boundary.carried) == sorted(after.optimizer)
    assert {boundary.renamed[name] for name in boundary.carried} == set(before.optimizer)


def test_a_recording_that_goes_on_in_another_process_knows_the_adapter(tmp_path: Path) -> None:
    task = layers_task()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    run_plans(task, [FULL, LORA], recorder=recorder)
    recorder.close()
    again = stagelens.Recorder(tmp_path / "run", layers_task(), resume=True)
    model = task.build_model(LORA.recorder["build_config"])
    again.restore(model)
    model = merged(model).train()
    optimizer = momentum(model, None)
    with again.stage("after", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
    assert again.run().last.facts.boundary.adapters == ["merged"]


def test_without_a_stage_whose_adapter_stays_on_the_adapter_does_nothing(tmp_path: Path) -> None:
    task = layers_task()
    run = record_plans(tmp_path / "run", task, HISTORIES["kept"][0])
    adapted = task.build_model(run.last.facts.build_config)
    load_into(adapted, replay_without(run, run.last).state.model)
    full = task.build_model()
    load_into(full, run.stages[0].end().model)
    images = make_batches(1)[0][0]
    with torch.inference_mode():
        assert torch.equal(adapted.eval()(images), full.eval()(images))


# The task vector, in the names of the final model


def vector(run: Run, name: str) -> dict[str, Tensor]:
    """What the task vector takes out of the final weights, float64."""
    stage = run.stage(name)
    final = run.last.end().model
    without = subtract_stage(final, stage, run.stages[stage.index + 1 :])
    return {n: t.double() - without[n].double() for n, t in final.items()}


def products(end: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``scaling * B A`` of the adapter that :func:`tests.support.adapted.lora` describes."""
    at = "base_model.model.{}.lora_{}.default.weight".format
    table = "base_model.model.table.lora_embedding_{}.default".format
    return {
        "table.weight": 3 * (end[table("B")] @ end[table("A")]).T,
        "inner.weight": 3 * (end[at("inner", "B")] @ end[at("inner", "A")]).T,
        "outer.weight": 3 * end[at("outer", "B")] @ end[at("outer", "A")],
    }


def check_change(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, change in found.items():
        if "running" in name or "tracked" in name:
            continue
        truth = expected.get(name, torch.zeros_like(change))
        torch.testing.assert_close(change, truth.double(), rtol=1e-4, atol=1e-6)


def test_the_task_vector_of_a_merged_adapter_is_its_product(run: Run) -> None:
    check_change(vector(run, "lora"), products(run.stage("lora").end().model))


def test_the_task_vector_of_a_stage_before_the_adapter_is_its_own_change(run: Run) -> None:
    start, end = run.stage("full").start().model, run.stage("full").end().model
    check_change(vector(run, "full"), {name: end[name] - start[name] for name in end})


def test_the_task_vector_goes_under_an_adapter_that_stays_on(tmp_path: Path) -> None:
    plans = [FULL, adapting("lora", adamw, **WHOLE_HEAD)]
    run = record_plans(tmp_path / "run", layers_task(), plans)
    start, end = run.stage("full").start().model, run.stage("full").end().model
    change = {name: end[name] - start[name] for name in end}
    found = vector(run, "full")
    assert found.keys() == run.last.end().model.keys()
    check_change(found, {n: change[plain] for n, plain in run.last.facts.boundary.renamed.items()})
    assert float(found["base_model.model.head.modules_to_save.default.weight"].abs().max()) > 0


def test_the_task_vector_of_an_adapter_that_is_thrown_away_is_nothing(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", layers_task(), HISTORIES["thrown away"][0])
    check_change(vector(run, "lora"), {})


# Merging that rounds otherwise


def merged_elsewhere(model: nn.Module) -> nn.Module:
    """As another device would do it: some weights are the next number up."""
    model = merged(model)
    with torch.no_grad():
        weight = model.outer.weight  # type: ignore[union-attr]
        up = torch.nextafter(weight, torch.full_like(weight, torch.inf))
        weight[::2] = up[::2]
    return model


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A merge that is not quite what this machine computes."""
    plans = [FULL, LORA, Plan("after", momentum, prepare=merged_elsewhere)]
    return record_plans(tmp_path_factory.mktemp("rounded") / "run", layers_task(), plans)


def test_a_merge_that_rounded_otherwise_is_measured_and_still_starts_as_recorded(
    rounded: Run,
) -> None:
    before, after = rounded.stages[1:]
    assert 1e-9 < after.facts.boundary.deviation < 1e-6
    assert differing_state(cross_boundary(before.end(), after), after.start()) == []


def test_a_counterfactual_merge_is_the_recorded_one_moved_by_the_difference(rounded: Run) -> None:
    lora, after = rounded.stages[1:]
    own = cross_boundary(lora.start(), after).model
    base, recorded = lora.start().model, after.start().model
    plain = base["base_model.model.outer.base_layer.weight"]
    rounding = after.start().model["outer.weight"] - products(lora.end().model)["outer.weight"]
    torch.testing.assert_close(own["outer.weight"], rounding, rtol=0, atol=1e-6)
    torch.testing.assert_close(own["outer.weight"], plain, rtol=0, atol=1e-6)
    assert torch.equal(own["inner.weight"], base["base_model.model.inner.base_layer.weight"])
    assert own.keys() == recorded.keys()


def test_a_replay_over_such_a_merge_is_not_called_exact(rounded: Run) -> None:
    (found,) = Replay().counterfactuals(rounded, rounded.stages[:1], lambda *_: None)
    assert found.trust.trust == "estimated"
    assert found.trust.deviation == rounded.last.facts.boundary.deviation
    assert "merged an adapter with other rounding" in found.trust.reason


def test_an_adapter_on_a_convolution_merges_within_rounding(tmp_path: Path) -> None:
    """``peft`` computes that product as a convolution."""
    task = make_task({}, make_model=convolution)
    config = LoraConfig(r=2, target_modules=["0"])
    plans = [
        FULL,
        Plan(
            "lora",
            adamw,
            prepare=lambda model: get_peft_model(model, config),
            recorder={"build_config": {"peft": {"r": 2, "target_modules": ["0"]}}},
        ),
        MERGED,
    ]
    run = record_plans(tmp_path / "run", task, plans)
    boundary = run.last.facts.boundary
    assert boundary.adapters == ["merged"]
    assert boundary.deviation < 1e-6
    by_hand = run_plans(task, plans, without="lora").model
    replayed = replay_without(run, run.stage("lora")).state.model
    for name, tensor in replayed.items():
        torch.testing.assert_close(tensor, by_hand[name], rtol=0, atol=1e-5)


def convolution(config: Mapping[str, Any]) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3))
    return with_adapter(model, config["peft"]) if "peft" in config else model


# Behaviour after every boundary


def test_every_boundary_is_measured_on_a_model_of_its_own_stage(run: Run) -> None:
    images, labels = make_batches(1, seed=9)[0]
    write_set(run.path, run.task, "test", images=images, labels=labels.tolist())
    table = boundaries(run, "test").table
    assert list(table["boundary"].unique()) == ["base", "full", "lora", "after"]
    margins = table[table["behaviour"] == "margin"].groupby("boundary")["value"].mean()
    assert margins.nunique() == 4
