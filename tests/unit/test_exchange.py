"""A stage of one run replayed inside another, against the same training by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import stagelens
from stagelens.contracts import Refused
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import drawn_final, drawn_models
from stagelens.replaying.exchange import replay_exchanged
from stagelens.runs.run import Run
from tests.support.branching import base, record_branching, step_through
from tests.support.loops import differing, make_batches, make_task, refused, train

OLD, NEW = (1, 2, 3), (11, 12, 13)
"""Seeds of the batches of three stages."""


def train_stages(
    seeds: tuple[int, ...], path: Path | None = None, carried: bool = False
) -> nn.Module:
    """Three stages by hand; recorded where there is a path."""
    model, optimizer = base(), None
    recorder = None if path is None else stagelens.Recorder(path, make_task(), name="run")
    for name, seed in zip(("one", "two", "three"), seeds, strict=True):
        if optimizer is None or not carried:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        if recorder is None:
            train(make_task(), model, optimizer, make_batches(4, seed))
            continue
        with recorder.stage(name, model=model, optimizer=optimizer, on_problem="raise") as stage:
            train(make_task(), model, optimizer, make_batches(4, seed), stage=stage)
    return copy.deepcopy(model)


@pytest.fixture(scope="module", params=[False, True], ids=["new optimiser", "carried optimiser"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run, bool]:
    folder, carried = tmp_path_factory.mktemp("exchange"), bool(request.param)
    for name, seeds in (("old", OLD), ("new", NEW)):
        train_stages(seeds, folder / name, carried)
    return stagelens.open_run(folder / "old"), stagelens.open_run(folder / "new"), carried


@pytest.mark.parametrize("place", range(3))
def test_an_exchange_is_the_training_with_the_other_stages_batches(
    pair: tuple[Run, Run, bool], place: int
) -> None:
    old, new, carried = pair
    found = replay_exchanged(new, new.stages[place], old, old.stages[place])
    seeds = tuple(OLD[n] if n == place else NEW[n] for n in range(3))
    by_hand = train_stages(seeds, carried=carried)
    assert differing(found.state.model, dict(by_hand.state_dict())) == []


def test_a_stage_exchanged_with_itself_changes_nothing(pair: tuple[Run, Run, bool]) -> None:
    _, new, _ = pair
    found = replay_exchanged(new, new.stages[1], new, new.stages[1])
    assert differing(found.state.model, new.last.end().model) == []


def test_an_optimiser_that_cannot_be_carried_is_refused(tmp_path: Path) -> None:
    train_stages(OLD, tmp_path / "old", carried=True)
    train_stages(NEW, tmp_path / "new")
    old, new = stagelens.open_run(tmp_path / "old"), stagelens.open_run(tmp_path / "new")
    with refused("carries an optimiser's state on", "at the end of 'one'", by=Refused):
        replay_exchanged(new, new.stages[1], old, old.stages[1])


def test_a_draw_of_the_whole_recipe_is_that_of_the_recipe_without_a_stage(
    pair: tuple[Run, Run, bool],
) -> None:
    old, _, _ = pair
    ((_, _, whole),) = drawn_models(old, Draw(3), [])
    assert differing(drawn_final(old, 3), whole) == []
    assert differing(drawn_final(old, 4), whole) != []


def test_a_draw_from_a_later_stage_on_keeps_the_earlier_ones(tmp_path: Path) -> None:
    path = record_branching(tmp_path / "run", soup=False).path
    run = stagelens.open_run(path, leaf="rl")
    drawn = drawn_final(run, 5, first=1)
    order = Draw(5, given_earlier=True).random(run.stages[1], 0).permutation(4)
    model = base()
    step_through(model, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    batches = make_batches(4, 3)
    train(make_task(), model, optimizer, [batches[number] for number in order])
    assert differing(drawn, dict(model.state_dict())) == []
