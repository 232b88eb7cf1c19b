"""One more draw of a recipe: what is drawn anew, what is shared, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stagelens
from stagelens.contracts import Refused
from stagelens.replaying import draws
from stagelens.replaying.draw_plan import Draw, data_of, passes_needed
from stagelens.replaying.draws import drawn_models, order_of, times_seen
from stagelens.replaying.initial_values import drawn_values
from stagelens.replaying.replay import replay_without
from stagelens.runs.objective_facts import ObjectiveFacts
from stagelens.runs.run import Run
from stagelens.tasks import ImageClassification
from tests.support.loops import CLASSES, SHAPE, make_batches, train
from tests.support.small_runs import Phase, record

_SGD = lambda groups: torch.optim.SGD(groups, 0.05, momentum=0.9)  # noqa: E731


def _models(run: Run, draw: Draw, stages: list[str]) -> dict[tuple[str, bool], dict]:
    chosen = [run.stage(name) for name in stages]
    return {(name, there): w for name, there, w in drawn_models(run, draw, chosen)}


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_draw_with_nothing_drawn_is_the_recorded_run_with_and_without_each_stage(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "order_of", lambda _draw, stage, _seen: list(range(stage.steps)))
    found = _models(run, Draw(0), ["first", "second", "third"])
    assert _same(found["", True], run.last.end().model)
    for stage in run.stages:
        assert _same(found[stage.name, False], replay_without(run, stage).state.model)


def test_given_the_earlier_stages_only_what_comes_later_is_drawn(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = _models(run, Draw(3, given_earlier=True), ["first", "second"])
    assert set(drawn) == {(n, t) for n in ("first", "second") for t in (True, False)}
    # The pair of one stage shares its later stages; another draw gives another pair.
    assert not _same(drawn["first", True], run.last.end().model)
    assert not _same(drawn["first", True], drawn["second", True])
    monkeypatch.setattr(draws, "order_of", lambda _draw, stage, _seen: list(range(stage.steps)))
    plain = _models(run, Draw(3, given_earlier=True), ["second"])
    assert _same(plain["second", True], run.last.end().model)


def test_a_draw_is_the_same_for_the_same_number_whichever_stages_are_left_out(run: Run) -> None:
    one, again = _models(run, Draw(5), ["second"]), _models(run, Draw(5), ["first", "second"])
    assert _same(one["", True], again["", True])
    assert _same(one["second", False], again["second", False])
    other = _models(run, Draw(6), [])
    assert not _same(one["", True], other["", True])


def test_what_a_draw_costs_is_told_by_the_stages_it_runs(run: Run) -> None:
    work = passes_needed(run, run.stages)
    assert [s.name for s in work].count("third") == 3
    assert len(work) == 3 + 2 + 1
    ran: list[str] = []
    list(drawn_models(run, Draw(0), run.stages, progress=lambda share, text: ran.append(text)))
    assert len(ran) == sum(stage.steps for stage in work)
    earlier = passes_needed(run, run.stages[:-1], given_earlier=True)
    assert len(earlier) == 2 * (2 + 1)


def test_orders_use_every_batch_once_and_resampled_ones_each_as_often_as_rows_were_seen(
    run: Run,
) -> None:
    stage = run.stages[0]
    assert sorted(order_of(Draw(1), stage)) == list(range(20))
    assert order_of(Draw(1), stage) != order_of(Draw(1), run.stages[1])
    drawn = order_of(Draw(1, resample=True), stage, seen=4)
    counts = np.bincount(drawn, minlength=20)
    assert counts.sum() == 20 and (counts % 4 == 0).all()  # five drawn, each in four passes
    for number in range(0, 20, 5):  # every pass has all that were drawn
        assert sorted(drawn[number : number + 5]) == sorted(drawn[:5])


def test_some_draws_have_the_data_of_others_in_another_order(run: Run) -> None:
    assert [*map(data_of, range(16))] == [0, 1, 2, 3, 4, 0, 1, 2, 5, 3, 6, 4, 7, 5, 8, 6]
    one, same, other = (order_of(Draw(n, resample=True), run.stages[0]) for n in (0, 5, 1))
    assert one != same and sorted(one) == sorted(same) != sorted(other)


def test_how_often_examples_were_seen_is_counted_by_their_content(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "linear", [Phase("one", _SGD, steps=6)])
    assert times_seen(run.task, run.stages[0]) == 1
    stage = run.stages[0]
    first = stage.read_steps()[0]
    stage.read_steps = lambda: [first] * 3  # type: ignore[method-assign, assignment, return-value]
    assert times_seen(run.task, stage) == 3


def test_dropout_is_drawn_anew_and_shared_by_a_pair(tmp_path: Path) -> None:
    phases = [Phase(name, _SGD, steps=2) for name in ("first", "second")]
    run = record(tmp_path / "run", "encoder", phases)
    draw, stage = Draw(1), run.stages[0]
    assert stage.read_steps()[0].batches[0].rng
    change = draws.Passes(draw, stage)
    own = [change(0, stage.read_steps()[0]).batches[0].rng["cpu"] for _ in range(2)]
    assert torch.equal(*own)
    recorded = stage.read_steps()[0].batches[0].rng["cpu"]
    assert not torch.equal(own[0], recorded)
    other = draws.Passes(Draw(2), stage)(0, stage.read_steps()[0]).batches[0].rng["cpu"]
    assert not torch.equal(own[0], other)


def test_heads_that_appeared_begin_elsewhere_with_and_without_the_stage_alike(
    tmp_path: Path,
) -> None:
    phases = [
        Phase("first", _SGD, network="head a"),
        Phase("second", _SGD, network="head b"),
    ]
    run = record(tmp_path / "run", "head a", phases)
    stage = run.stages[1]
    start = stage.start().model
    drawn = drawn_values(run.task, stage, 7)
    assert set(drawn.values) == {"heads.b.weight", "heads.b.bias"} and not drawn.kept
    for name, value in drawn.values.items():
        assert value.shape == start[name].shape and value.dtype == start[name].dtype
        assert not torch.equal(value, start[name])
        assert value.abs().max() <= 6**-0.5  # as nn.Linear of six inputs begins
    # Without the stage in which it appeared, the head stays where this draw began.
    without = _models(run, Draw(4), ["second"])["second", False]
    again = _models(run, Draw(4), ["first"])["first", False]
    assert not torch.equal(without["heads.b.weight"], start["heads.b.weight"])
    assert without["heads.b.weight"].abs().max() <= 6**-0.5
    assert not torch.equal(again["heads.b.weight"], without["heads.b.weight"])  # trained


def _values(tensor: torch.Tensor, tmp_path: Path):
    """What is drawn for a head that a loop set to these values."""

    def prepare(model: nn.Module) -> None:
        with torch.no_grad():
            model.heads["b"].weight.copy_(tensor)
            model.heads["b"].bias.zero_()

    phases = [
        Phase("first", _SGD, network="head a", steps=1),
        Phase("second", _SGD, network="head b", steps=1, prepare=prepare),
    ]
    run = record(tmp_path / "run", "head a", phases)
    return drawn_values(run.task, run.stages[1], 1)


def test_another_initialisation_than_the_tasks_is_found_by_its_values(tmp_path: Path) -> None:
    drawn = _values(0.02 * torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), tmp_path)
    assert set(drawn.values) == {"heads.b.weight"}  # constants stay
    assert 0.01 < float(drawn.values["heads.b.weight"].std()) < 0.04


@pytest.mark.parametrize("trained", [False, True])
def test_a_run_that_began_with_a_new_model_begins_with_another_one(
    trained: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)  # a usual seed, which must not be mistaken for weights without chance
    task = ImageClassification(CLASSES, SHAPE, model={"kind": "mlp", "hidden": [60]})
    model = task.build_model()
    if trained:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    recorder = stagelens.Recorder(tmp_path / "run", task, name="new")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with recorder.stage("only", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
    run = stagelens.open_run(tmp_path / "run")
    start = run.stages[0].start().model
    without = _models(run, Draw(1), ["only"])["only", False]
    assert _same(without, start) == trained
    kept = draws.not_drawn(run)
    assert kept == (["the weights that the first stage began from are those recorded"] * trained)


def test_values_that_no_initialisation_gives_stay_and_are_named(tmp_path: Path) -> None:
    drawn = _values(torch.linspace(5.0, 6.0, 18).reshape(3, 6), tmp_path)
    assert drawn.kept == ["heads.b.weight"] and not drawn.values


def test_what_cannot_be_drawn_is_refused_by_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run.stages[0].facts
    monkeypatch.setattr(run.stages[0], "facts", facts.model_copy(update={"keep_batches": "none"}))
    with pytest.raises(Refused, match=r"'first'.*batches were not all kept"):
        draws.check_drawable(run)
    of_samples = {"objective": ObjectiveFacts(on_samples=True)}
    monkeypatch.setattr(run.stages[0], "facts", facts.model_copy(update=of_samples))
    with pytest.raises(
        Refused, match=r"'first' was trained on answers .* give the runs with --dra"
    ):
        draws.check_drawable(run)
    monkeypatch.setattr(run.stages[0], "facts", facts)
    draws.check_drawable(run)  # nothing else is in the way
    assembled = facts.model_copy(update={"origin": "assembled"})
    monkeypatch.setattr(run.stages[0], "facts", assembled)
    with pytest.raises(Refused, match=r"'first'.* assembled") as refused:
        draws.check_drawable(run)
    assert "--estimator" not in str(refused.value)  # which draws do not have
