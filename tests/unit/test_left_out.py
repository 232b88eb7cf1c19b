"""Training examples left out of the recorded batches: held against loops written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import Refused, Task
from stagelens.replaying.left_out import (
    Divisor,
    Places,
    ReplayedWithout,
    RowsOfStage,
    replay_without_rows,
)
from stagelens.replaying.replay import replay_without
from stagelens.replaying.same_draws import SameDraws
from stagelens.replaying.step import StepRules, prepare, restore_missing
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import load_into
from stagelens.runs.step_records import Part
from stagelens.runs.training_rows import training_rows
from tests.support import small_runs
from tests.support.small_runs import Phase, record


def _sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.01)


def _adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, 1e-2, weight_decay=0.1)


def _falling(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.02 / (1 + step)


PHASES = {
    "sgd": [Phase("first", _sgd), Phase("second", _sgd, clip_norm=0.5), Phase("third", _sgd)],
    "adamw": [
        Phase("first", _adamw),
        Phase("second", _adamw, steps=6, schedule=_falling, accumulation=2),
        Phase("third", None),
    ],
}
SOME: Places = {0: {1, 4}, 2: {0}, 3: {0, 1, 2, 3, 4, 5}, 4: {5, 0, 1}}
"""Of the second stage: step 3 has none left, the second micro-batch of step 4 is whole but for
one."""


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record(tmp_path_factory.mktemp("left") / "run", "cnn", PHASES[request.param])


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record(tmp_path_factory.mktemp("left") / "run", "encoder", PHASES["adamw"])


def _by_hand(
    run: Run,
    stage: Stage,
    places: Places,
    divisor: Divisor,
    *,
    leave: bool = False,
    weight: float = 0.0,
) -> dict[str, Tensor]:
    """Weights at a stage's end, by a loop of its own.

    The passes are those of whole batches, and losses of left-out examples are not counted; with
    ``leave`` their rows leave the passes.
    """
    facts = stage.facts
    model = run.task.build_model(facts.build_config)
    start = stage.start()
    load_into(model, start.model)
    rules = StepRules.of(facts)
    prepare(model, rules)
    parameters = dict(model.named_parameters())
    groups = [
        {**group.hyperparameters, "params": [parameters[name] for name in group.parameters]}
        for group in stage.optimizer.groups
    ]
    optimizer = getattr(torch.optim, stage.optimizer.name)(groups)
    for name, state in start.optimizer.items():
        optimizer.state[parameters[name]] = {k: v.clone() for k, v in state.items()}
    for number, step in enumerate(stage.read_steps()):
        gone, first, losses = set(places.get(number, ())), 0, []
        counts: list[float] = []
        for micro in step.batches or ():
            x, y = micro.batch
            kept = [place for place in range(len(y)) if first + place not in gone]
            weights = torch.full((len(y),), weight, dtype=torch.float64)
            weights[kept] = 1.0
            first += len(y)
            if not kept and not weight:
                continue
            if "cpu" in micro.rng:
                torch.set_rng_state(micro.rng["cpu"])
            if weight:
                each = weights * nn.functional.cross_entropy(model(x), y, reduction="none")
                # Of one without a rest, the mean counts as much less as its examples do.
                rest = divisor == "rest" and bool(kept)
                losses.append(each.sum() / (weights.sum() if rest else len(y)))
                counts.append(1.0 if kept else weight)
                continue
            if leave:
                each = nn.functional.cross_entropy(model(x[kept]), y[kept], reduction="none")
            else:
                each = nn.functional.cross_entropy(model(x), y, reduction="none")[kept]
            losses.append(each.mean() if divisor == "rest" else each.sum() / len(y))
        if not losses:
            continue
        optimizer.zero_grad()
        count: float = len(losses) if divisor == "rest" else len(step.batches or ())
        if divisor == "rest" and max(counts, default=0) == 1:
            count = sum(counts)
        (torch.stack(losses).sum() / count).backward()
        restore_missing(parameters, step.missing, optimizer.param_groups[0]["params"])
        if facts.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), facts.clip_norm)
        for group, values in zip(optimizer.param_groups, step.groups, strict=True):
            group.update(values)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _furthest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(found[name], expected[name]) for name in expected)


def test_leaving_out_none_is_the_recorded_model_bit_for_bit(run: Run) -> None:
    for places in ({}, {0: set()}, {1: {99}}):
        found = replay_without_rows(run, run.stage("second"), places)
        assert _same(found.state.model, run.last.end().model)
        assert found.left_out.uses == found.left_out.changed == found.left_out.skipped == 0


@pytest.mark.parametrize("divisor", ["rest", "kept"])
@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_weighed_examples_are_those_of_a_weighted_loss(
    run: Run, with_dropout: Run, divisor: Divisor, weight: float
) -> None:
    for each in (run, with_dropout):
        stage = each.stage("second")
        rows = RowsOfStage(each.task, stage, divisor)
        found = rows.replay(SOME, weight=weight).state.model
        expected = _by_hand(each, stage, SOME, divisor, weight=weight)
        assert _furthest(found, expected) < 1e-11
        if weight == 1:
            assert _same(found, stage.end().model)
        else:
            assert _furthest(found, stage.end().model) > 1e-3
            # In two pieces it is the same.
            half = rows.replay(SOME, weight=weight, between=(0, 3)).state
            again = rows.replay(SOME, state=half, weight=weight, between=(3, stage.steps))
            assert _same(again.state.model, found)


def test_micro_batches_of_one_example_are_weighed_too(tmp_path: Path) -> None:
    """They have no rest of their own, so that theirs is among those of the step."""
    run = record(tmp_path / "run", "cnn", [Phase("one", _sgd, batch=2, accumulation=2)])
    rows = RowsOfStage(run.task, run.last)
    recorded = run.last.end().model
    for places in ({1: {0}}, {1: {0, 1}}):
        less = rows.replay(places, weight=0.5).state.model
        assert _furthest(less, recorded) > 1e-4
        assert _furthest(less, _by_hand(run, run.last, places, "rest", weight=0.5)) < 1e-11
    nearly = rows.replay({1: {0}}, weight=1e-9).state.model
    assert _furthest(nearly, rows.replay({1: {0}}).state.model) < 1e-7


def test_examples_that_batch_norm_couples_are_not_weighed(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "batch norm", [Phase("one", _sgd)])
    rows = RowsOfStage(run.task, run.last)
    with pytest.raises(Refused, match="can be left out, but not weighed: BatchNorm '1'"):
        rows.replay({0: {1}}, weight=0.5)


@pytest.mark.parametrize("divisor", ["rest", "kept"])
def test_leaving_out_all_is_the_run_without_the_stage(run: Run, divisor: Divisor) -> None:
    stage = run.stage("second")
    rows = training_rows(run, stage)
    places = rows.places(rows.table["example_id"].tolist())
    found = replay_without_rows(run, stage, places, divisor)
    assert _same(found.state.model, replay_without(run, stage).state.model)
    told = found.left_out
    assert told.skipped == told.changed == told.steps == stage.steps
    assert told.uses == told.all_uses == 6 * stage.steps


@pytest.mark.parametrize("divisor", ["rest", "kept"])
@pytest.mark.parametrize("stage", ["second", "third"])
def test_it_is_what_a_loop_by_hand_gives_in_double_precision(
    run: Run, divisor: Divisor, stage: str
) -> None:
    own = run.stage(stage)
    found = RowsOfStage(run.task, own, divisor).replay(SOME)
    expected = _by_hand(run, own, SOME, divisor)
    assert _furthest(found.state.model, expected) < 1e-12
    assert _furthest(found.state.model, own.end().model) > 1e-4
    told = found.left_out
    assert (told.uses, told.changed, told.skipped) == (12, 4, 1)
    assert not told.other_draws and not told.normalised


def test_the_two_divisors_differ(run: Run) -> None:
    ends = [RowsOfStage(run.task, run.last, kind).replay(SOME) for kind in ("rest", "kept")]
    assert _furthest(ends[0].state.model, ends[1].state.model) > 1e-5


@pytest.mark.parametrize("divisor", ["rest", "kept"])
def test_examples_that_are_left_keep_their_dropout_masks(
    with_dropout: Run, divisor: Divisor
) -> None:
    own = with_dropout.stage("second")
    found = RowsOfStage(with_dropout.task, own, divisor).replay(SOME)
    # By hand, passes are over whole batches, so that their masks are those recorded.
    assert _furthest(found.state.model, _by_hand(with_dropout, own, SOME, divisor)) < 1e-12
    assert not found.left_out.other_draws
    fresh = _by_hand(with_dropout, own, SOME, divisor, leave=True)
    assert _furthest(found.state.model, fresh) > 1e-5


def test_a_step_that_is_not_taken_moves_no_moment_and_no_count(run: Run) -> None:
    stage = run.stage("second")
    every = set(range(6))
    only_first = RowsOfStage(run.task, stage).replay(
        {number: every for number in range(1, stage.steps)}
    )
    for name, entry in only_first.state.optimizer.items():
        if "step" in entry:
            carried = stage.start().optimizer.get(name, {}).get("step", torch.zeros(()))
            assert float(entry["step"]) == float(carried) + 1


def test_batch_norm_sees_the_rest_and_that_is_told(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "batch norm", [Phase("only", _adamw)])
    places = {0: {1, 4}, 2: {0}, 3: set(range(6))}
    found = RowsOfStage(run.task, run.last).replay(places)
    expected = _by_hand(run, run.last, places, "rest", leave=True)
    assert _furthest(found.state.model, expected) < 1e-12
    assert found.left_out.normalised == ("1", "5")
    with pytest.raises(Refused, match="has one example left, of which BatchNorm"):
        RowsOfStage(run.task, run.last).replay({0: {0, 1, 2, 3, 4}})


class _Centred(nn.Module):
    """Examples of a batch affect one another, and nothing about the module says so."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.head(flat - flat.mean(0))


class _Summed(Task):
    """Of a loss that is no mean; and one that says so."""

    def __init__(self, terms: int | None = None, coupled: bool = False) -> None:
        self.terms, self.coupled = terms, coupled

    def build_model(self, config: Any = None) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 1, dtype=torch.float64))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.flatten() - labels) ** 2

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.losses(model(batch[0]), batch[1]).sum()

    def loss_terms(self, batch: Any) -> float | None:
        return self.terms

    def coupling(self, batch: Any) -> str | None:
        return "it ranks them" if self.coupled else None


def _recorded(path: Path, task: Task, model: nn.Module | None = None) -> Run:
    torch.manual_seed(0)
    model = task.build_model() if model is None else model
    recorder = stagelens.Recorder(path, task)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with recorder.stage("sft", model=model, optimizer=optimizer) as stage:
        for _ in range(3):
            batch = torch.randn(5, 1, 2, 2).double(), torch.randn(5).double()
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
    recorder.close()
    return recorder.run()


def test_a_loss_that_is_not_what_the_task_says_is_refused(tmp_path: Path) -> None:
    run = _recorded(tmp_path / "mean", _Summed())
    with pytest.raises(Refused, match=r"no example of stage 'sft' can be left out by itself: the "):
        RowsOfStage(run.task, run.last).replay({1: {2}})
    # The same, once it says that it is a sum.
    told = _Summed(0)
    run = _recorded(tmp_path / "sum", told)
    found = RowsOfStage(told, run.last).replay({1: {2}})
    model = told.build_model()
    load_into(model, run.last.start().model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for number, step in enumerate(run.last.read_steps()):
        x, y = step.batches[0].batch
        kept = [0, 1, 3, 4] if number == 1 else list(range(5))
        optimizer.zero_grad()
        told.loss(model, (x[kept], y[kept])).backward()
        optimizer.step()
    assert _furthest(found.state.model, model.state_dict()) < 1e-12


def test_a_loss_that_compares_examples_is_refused(tmp_path: Path) -> None:
    run = _recorded(tmp_path / "run", _Summed(0, coupled=True))
    with pytest.raises(Refused, match="can be left out by itself, because it ranks them"):
        RowsOfStage(run.task, run.last).replay({1: {2}})
    # Nothing is compared where nothing is left out.
    assert RowsOfStage(run.task, run.last).replay({}).left_out.uses == 0


def test_a_module_that_mixes_examples_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_runs, "NETWORKS", {"centred": _Centred})
    run = record(tmp_path / "run", "centred", [Phase("only", _sgd)])
    with pytest.raises(Refused, match="so its examples affect one another"):
        RowsOfStage(run.task, run.last).replay({1: {2}})


ROWS = (0, 3, 4, 6)
DRAWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: nn.functional.dropout(x, 0.4),
    "of a transposed one": lambda x: nn.functional.dropout(x.permute(0, 2, 1), 0.4),
    "of tokens in a row": lambda x: nn.functional.dropout(x.reshape(-1, 8), 0.5).view(x.shape),
    "of channels": lambda x: nn.functional.dropout2d(x[:, :, :, None], 0.5),
    "in attention": lambda x: nn.functional.scaled_dot_product_attention(
        *(x[:, None],) * 3, dropout_p=0.3
    ),
    "noise": lambda x: x + torch.randn_like(x),
    "of a size": lambda x: x * torch.rand(len(x), 1, 1),
    "in place": lambda x: x * x.new_empty((len(x), 1, 1)).bernoulli_(0.5),
    "by probabilities": lambda x: x.sigmoid().bernoulli(),
    "one for all": lambda x: x * torch.rand(()),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_rows_draw_what_they_drew_in_the_whole_batch(kind: str) -> None:
    x = torch.randn(7, 5, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    whole = DRAWS[kind](x)
    torch.manual_seed(3)
    with SameDraws(Part(7, ROWS)) as draws:
        part = DRAWS[kind](x[list(ROWS)])
    assert torch.equal(part, whole[list(ROWS)]) and not draws.others
    assert not torch.equal(part, x[list(ROWS)])


def test_draws_of_another_layout_are_named() -> None:
    x = torch.randn(5, 4, 8)  # texts one after another along the second dimension
    with SameDraws(Part(7, ROWS)) as draws:
        nn.functional.dropout(x, 0.4)
        nn.functional.rrelu(x.transpose(0, 1), training=True)
    assert draws.others == {"bernoulli_", "rrelu_with_noise"}


def test_what_was_left_out_is_reported_with_its_cost(run: Run) -> None:
    found = replay_without_rows(run, run.stage("second"), SOME)
    assert isinstance(found, ReplayedWithout)
    later = sum(s.steps for s in run.stages[2:]) * 6
    assert found.example_gradients <= run.stage("second").steps * 6 + later
    assert found.left_out.all_uses == run.stage("second").steps * 6
