"""Effects over draws: paired, stored draw by draw, with intervals that are honest about few."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import stagelens
from stagelens.cli import drawing as of_command
from stagelens.cli.drawn_tables import drawn_rows
from stagelens.contracts import Behaviour, Refused, RunError, StageLensError
from stagelens.demos.building import build
from stagelens.effects.computing import attribute
from stagelens.effects.draws import (
    DrawnEffects,
    columns_of,
    draws_for_width,
    interval_over_draws,
    intervals_of_means,
)
from stagelens.effects.results import Result
from stagelens.measuring.models import empty_model, measure
from stagelens.replaying.draw_plan import Draw
from stagelens.replaying.draws import drawn_models
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from stagelens.trust import drawing, draws, one_draw, runs_drawn
from stagelens.wording.trust_words import trust_label, trust_word
from tests.support.loops import make_batches, make_task, train
from tests.support.made_draws import measure_draws
from tests.support.small_runs import Phase, record
from tests.unit.conftest import Command

QUIET = lambda *_: None  # noqa: E731


@pytest.fixture
def fresh(run: Run, tmp_path: Path) -> Run:
    """The run without draws of other tests."""
    return open_run(shutil.copytree(run.path, tmp_path / "run"), run.task)


def test_an_effect_over_draws_is_the_paired_difference_of_models(fresh: Run) -> None:
    found = measure_draws(fresh, "test", 2, QUIET, ["second"])
    assert set(found.table["stage"]) == {"second"} and found.count == 2
    draw = Draw(1, resample=True)
    models = {there: w for _, there, w in drawn_models(fresh, draw, [fresh.stage("second")])}
    examples = fresh.evaluation_set("test")
    with_stage, without = measure(
        fresh.task,
        empty_model(fresh),
        [models[True], models[False]],
        examples.batches(256),
        examples.count,
    )
    own = found.table[found.table["draw"] == 1]
    margin = own[own["behaviour"] == "margin"]
    np.testing.assert_allclose(margin["final"], with_stage.values["margin"])
    effect = with_stage.values["margin"] - without.values["margin"]
    np.testing.assert_allclose(margin["effect"], effect)
    labels = examples.table([])["label"].to_numpy()
    right = (with_stage.answers == labels).astype(float) - (without.answers == labels)
    np.testing.assert_array_equal(own.loc[own["behaviour"] == "accuracy", "effect"], right)


def test_draws_go_on_where_a_killed_command_stopped(
    fresh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def until_the_second(run: Run, draw: Draw, *rest: object):
        made.append(draw.number)
        if len(made) == 2:
            raise KeyboardInterrupt
        return drawn_models(run, draw, *rest)

    monkeypatch.setattr(one_draw, "drawn_models", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        measure_draws(fresh, "test", 3, QUIET, ["second"])
    assert draws.of_recipe(fresh, "test") is None  # not a part of what was asked
    whole = measure_draws(fresh, "test", 3, QUIET, ["second"])
    assert made == [0, 1, 1, 2] and whole.count == 3
    again = measure_draws(fresh, "test", 3, QUIET, ["second"])
    assert made == [0, 1, 1, 2]
    pd.testing.assert_frame_equal(again.table, whole.table)
    measure_draws(fresh, "test", 3, QUIET, ["second", "third"])
    assert made[4:] == [0, 1, 2]


def test_two_processes_lose_nothing_of_each_other(
    fresh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> None:
        monkeypatch.undo()
        measure_draws(fresh, "test", 2, QUIET, ["third"])

    monkeypatch.setattr(drawing, "share_pieces", meanwhile)
    measure_draws(fresh, "test", 2, QUIET, ["second"])
    found = draws.governing(fresh, "test")
    assert found is not None
    counts = found.table[found.table["behaviour"] == "margin"].groupby(["draw", "stage"]).size()
    assert sorted(counts.index) == [(n, s) for n in (0, 1) for s in ("second", "third")]
    assert counts.nunique() == 1


def test_kinds_of_draws_are_kept_apart_and_the_one_that_says_most_governs(fresh: Run) -> None:
    assert draws.governing(fresh, "test") is None
    measure_draws(fresh, "test", 1, QUIET, ["second"], "given earlier")
    assert draws.governing(fresh, "test") is None  # says less than "of this recipe"
    measure_draws(fresh, "test", 1, QUIET, ["second"])
    measure_draws(fresh, "test", 1, QUIET, ["second"], "same data")
    kinds = [facts.kind for facts, _ in draws.stored_draws(fresh, "test")]
    assert kinds == ["recipe", "same data", "given earlier"]
    facts, drawn = draws.of_recipe(fresh, "test") or pytest.fail("nothing is stored")
    assert facts.seen == {"first": 1, "second": 1, "third": 1}
    assert "with replacement" in draws.sentence(facts, drawn)
    assert "weights that the first stage began from" in draws.sentence(facts, drawn)
    with pytest.raises(Refused, match="nothing is left to draw for 'third'"):
        drawing.left_out(fresh, ["third"], "given earlier")


def test_the_t_interval_is_that_of_the_formula_and_needs_three_draws() -> None:
    found = interval_over_draws([1.0, 2.0, 6.0], "runs")
    half = 4.302652729 * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert not found.is_clear and interval_over_draws([1.0, 1.1, 1.2], "runs").is_clear
    two = interval_over_draws([1.0, 1.1])
    assert np.isnan(two.low) and two.mean == pytest.approx(1.05) and not two.is_clear
    assert np.isnan(interval_over_draws([1.0, np.nan, 2.0]).mean)


@pytest.mark.parametrize("kind", ["recipe", "same data", "given earlier", "runs"])
def test_draws_that_are_all_alike_are_no_certainty(kind: draws.Kind) -> None:
    found = interval_over_draws([0.5] * 8, kind)
    assert (found.mean, found.sd) == (0.5, 0.0) and np.isnan(found.low) and not found.is_clear


def test_steins_rule_gives_the_width_whatever_the_later_draws() -> None:
    random = np.random.default_rng(1)
    pilot = random.normal(scale=2.0, size=(8, 3))
    needed = draws_for_width(pilot, 1.5)
    worst = int(np.argmax(pilot.std(axis=0, ddof=1)))
    values = np.concatenate([pilot[:, worst], random.normal(scale=50.0, size=needed - 8)])
    found = interval_over_draws(values, "same data", 8)
    assert found.high - found.low <= 1.5
    assert draws_for_width(pilot, 100.0) == 8  # never fewer than the pilot
    # No more than the width needs.
    one_less = interval_over_draws(values[:-1], "same data", 8)
    assert one_less.high - one_less.low > 1.5


def test_intervals_of_groups_are_of_their_means_in_every_draw() -> None:
    table = pd.DataFrame(
        [
            {"stage": "s", "behaviour": "b", "draw": d, "example_id": e, "final": 0.0, "effect": v}
            for d, effects in enumerate([(1, 3, 10), (2, 2, 20), (3, 1, 60)])
            for e, v in zip("xyz", effects, strict=True)
        ]
    )
    rows = pd.DataFrame({"stage": "s", "example_id": list("xyz"), "group": ["a", "a", "b"]})
    rows["effect"] = 0.0
    drawn = DrawnEffects(table, "same data")
    found = intervals_of_means(drawn, rows, Behaviour("b", "higher"), ["stage", "group"])
    assert found["s", "a"].mean == 2 and found["s", "a"].sd == 0
    assert found["s", "b"] == interval_over_draws([10, 20, 60], "same data")
    whole = intervals_of_means(drawn, rows, Behaviour("b", "higher"), ["stage"])
    assert whole["s",] == interval_over_draws([14 / 3, 8, 64 / 3], "same data")


_SLOW, _FASTER = (partial(torch.optim.SGD, lr=rate) for rate in (0.05, 0.1))


def _moved(model: torch.nn.Module, by: float) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * torch.arange(weight.numel()).reshape(weight.shape).cos())


def _seeds(tmp_path: Path, count: int) -> list[Run]:
    runs = []
    for number in range(count):
        # Each begins with other weights, as with another seed.
        phases = [
            Phase("first", _SLOW, steps=3, prepare=partial(_moved, by=0.1 * number)),
            Phase("second", _SLOW, steps=3),
        ]
        path = tmp_path / f"seed-{number}"
        made = record(path, "linear", phases)
        images = np.random.default_rng(0).normal(size=(12, 4, 4)).astype(np.float32)
        name = "test" if number != 1 else "renamed"
        write_set(path, made.task, name, images=images, labels=[0, 1, 2] * 4)
        runs.append(made)
    return runs


def test_recorded_runs_of_one_recipe_are_draws_matched_by_content(tmp_path: Path) -> None:
    runs = _seeds(tmp_path, 3)
    drawn = runs_drawn.runs_as_draws(runs[0], "test", runs[1:], QUIET)
    assert drawn.kind == "runs" and drawn.words == "3 recorded runs"
    assert set(drawn.table["stage"]) == {"first", "second"}
    facts, stored = draws.of_recipe(runs[0], "test") or pytest.fail("nothing is stored")
    assert facts.runs == ["seed-0", "seed-1", "seed-2"]
    pd.testing.assert_frame_equal(stored.table, drawn.table)
    with pytest.raises(RunError, match="seed-1 is the same recording"):
        runs_drawn.runs_as_draws(runs[0], "test", [runs[1], runs[1]], QUIET)
    write_set(runs[2].path, runs[2].task, "more", images=np.ones((3, 4, 4)), labels=[0, 1, 2])
    with pytest.raises(RunError, match=r"seed-0 has no evaluation set with the content of set"):
        runs_drawn.runs_as_draws(open_run(runs[2].path, runs[2].task), "more", [runs[0]], QUIET)


def test_a_run_of_another_recipe_is_refused_by_its_stages(run: Run, tmp_path: Path) -> None:
    (other,) = _seeds(tmp_path, 1)
    with pytest.raises(RunError, match=r"seed-0 is no run of this recipe.*first, second, and not"):
        runs_drawn.runs_as_draws(run, "test", [other], QUIET)


def test_a_run_with_other_settings_is_no_draw_of_the_recipe(tmp_path: Path) -> None:
    (one,), phases = _seeds(tmp_path, 1), [Phase(n, _FASTER, steps=3) for n in ("first", "second")]
    other = record(tmp_path / "faster", "linear", phases)
    with pytest.raises(RunError, match=r"faster is no run of this recipe: in stage 'first' lr is"):
        runs_drawn.runs_as_draws(one, "test", [other], QUIET)


def test_two_recorded_runs_do_not_stand_in_the_way_of_draws_that_give_an_interval(
    tmp_path: Path,
) -> None:
    runs = _seeds(tmp_path, 2)
    runs_drawn.runs_as_draws(runs[0], "test", runs[1:], QUIET, ["first"])
    assert draws.governing(runs[0], "test").words == "2 recorded runs"  # type: ignore[union-attr]
    measure_draws(runs[0], "test", 3, QUIET, ["first"])
    assert draws.governing(runs[0], "test").words == "3 redraws"  # type: ignore[union-attr]


def test_runs_whose_replay_is_not_exact_give_no_exact_effects_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _seeds(tmp_path, 2)

    def off(run: Run, *rest: object) -> Result:
        found = attribute(run, *rest)
        if run is not runs[1]:
            return found
        update = {"trust": "estimated", "expected_error": 0.2, "reason": "Not bit for bit."}
        stages = [each.model_copy(update=update) for each in found.facts.stages]
        return Result(found.facts.model_copy(update={"stages": stages}), found.table)

    monkeypatch.setattr(runs_drawn, "attribute", off)
    runs_drawn.runs_as_draws(runs[0], "test", runs[1:], QUIET)
    effects = draws.recipe_effects(runs[0], "test")
    assert effects is not None
    for known in effects.trust.values():
        assert (known.trust, known.expected_error) == ("estimated", 0.2)
        assert "Not bit for bit." in known.reason


def test_some_stages_may_have_fewer_draws_and_no_width_comes_from_what_is_not_known() -> None:
    drawn = DrawnEffects(pd.DataFrame({"draw": range(8), "effect": 0.0}), "recipe")
    few = interval_over_draws([1.0, 2.0, 3.0], "recipe")
    assert columns_of(few, drawn)["drawn"] == "3 redraws"
    with pytest.raises(StageLensError, match="effects are not known"):
        draws_for_width(np.full((3, 1), np.nan), 0.1)


def _record_mlp(path: Path, seed: int, _progress: object = None) -> Run:
    torch.manual_seed(seed)
    task = make_task()
    model = task.build_model()
    recorder = stagelens.Recorder(path, task, name="mlp")
    for number, name in enumerate(("first", "second")):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, make_batches(6, seed=number), stage=stage)
    images = np.random.default_rng(0).normal(size=(30, 4, 5)).astype(np.float32)
    recorder.add_set("test", images=images, labels=list("abc") * 10)
    return open_run(path)


@pytest.fixture
def mlp(tmp_path: Path) -> Run:
    """Two stages of a built-in network, which the command line can open."""
    return _record_mlp(tmp_path / "mlp", 0)


def test_a_demo_may_ship_with_draws(tmp_path: Path) -> None:
    made = build(tmp_path / "demo", _record_mlp, 0, QUIET, draws=3)
    drawn = draws.governing(made, "test")
    assert drawn is not None and drawn.words == "3 redraws"
    assert set(drawn.table["stage"]) == {"first", "second"}


def test_the_command_tells_the_cost_first_and_the_interval_at_the_end(
    mlp: Run, command: Command
) -> None:
    words = ("draws", mlp.path, "--number", 3, "--processes", 1)
    priced = command(*words, "--cost")
    assert priced.status == 0 and "3 draws to make: 9 stage passes" in priced.err
    assert not priced.out and draws.governing(mlp, "test") is None
    told = json.loads(command(*words, "--cost", "--json").out)
    assert (told["draws"]["draws"], told["draws"]["passes"]) == (3, 9)
    whole = json.loads(command(*words, "--shares", "--cost", "--json").out)
    assert whole["shares"]["draws"] == 3 and whole["shares"]["passes"] >= 9
    assert "omit --draws" in command(*words, "--cost", "--draws", mlp.path).err
    answer = command(*words, "--json")
    assert answer.status == 0, answer.err
    assert "3 draws to make: 9 stage passes" in answer.err
    rows = {row["behaviour"]: row for row in json.loads(answer.out) if row["stage"] == "first"}
    drawn = draws.governing(mlp, "test")
    assert drawn is not None
    first = drawn.table[drawn.table["stage"] == "first"]
    means = first.groupby(["behaviour", "draw"])["effect"].mean()
    expected = drawn.interval(means["margin"].to_numpy())
    assert rows["margin"]["low"] == pytest.approx(expected.low)
    assert rows["margin"]["drawn"] == "of this recipe" and rows["margin"]["draws"] == 3
    again = command(*words)
    assert "to make" not in again.err and "3 redraws" in again.out
    assert "Every draw was made before." in command(*words, "--cost").err
    told = draws.of_recipe(mlp, "test") or pytest.fail("nothing is stored")
    assert told[0].kept and all(f"As recorded: {kept}." in again.out for kept in told[0].kept)
    # What is only estimated does not stand beside them as what happened.
    attribute(mlp, "test", "task-vector")
    rows = json.loads(command(*words, "--json").out)
    assert {row["in_this_run"] for row in rows if row["stage"] == "first"} == {None}
    assert None not in {row["in_this_run"] for row in rows if row["stage"] == "second"}


def test_a_mean_over_draws_is_as_certain_as_its_interval_and_never_exact(mlp: Run) -> None:
    made = measure_draws(mlp, "test", 3, QUIET)
    facts, _ = draws.of_recipe(mlp, "test") or pytest.fail("nothing is stored")
    factor = made.table["draw"].map({0: 0.99, 1: 1.0, 2: 1.01})
    near = made.table.assign(effect=factor.where(made.table["behaviour"] == "margin", factor - 1))
    known = draws._trust(mlp.stage("first"), True, facts, DrawnEffects(near, "recipe"))
    assert trust_word(known, "margin") == "reliable"
    width = 2 * 4.302653 * 0.01 * np.sqrt(1 / 3 + 1)
    assert dict(known.over_draws)["margin"] == pytest.approx(width)
    assert "±5 % over draws" in trust_label(known, "margin")
    assert trust_word(known, "accuracy") == trust_word(known) == "rough"  # around zero


def test_a_behaviour_without_values_has_no_row(mlp: Run) -> None:
    made = measure_draws(mlp, "test", 3, QUIET)
    empty = made.table["behaviour"] == "margin"
    table = made.table.assign(effect=made.table["effect"].mask(empty))
    rows = drawn_rows(mlp, "test", DrawnEffects(table, "recipe"), ["first"])
    assert len(rows) and "margin" not in set(rows["behaviour"])


def test_further_runs_are_opened_with_the_code_that_was_given(
    mlp: Run, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, opened = _record_mlp(tmp_path / "other", 1), []
    plain = of_command.opened_with

    def noted(path: str, task: str | None) -> Run:
        opened.append((path, task))
        return plain(path, task)

    monkeypatch.setattr(of_command, "opened_with", noted)
    answer = command("draws", mlp.path, "--draws", other.path, "--json", "--processes", 1)
    assert answer.status == 0, answer.err
    assert opened == [(str(other.path), None)]
    assert {row["draws"] for row in json.loads(answer.out)} == {2}


def test_a_width_is_told_in_draws_and_refused_where_it_needs_too_many(
    mlp: Run, command: Command
) -> None:
    words = ("draws", mlp.path, "--stage", "first", "--number", 3, "--processes", 1)
    both = command(*words, "--width", 1)
    assert both.status == 1 and "--width needs --same-data" in both.err
    words = (*words, "--same-data")
    small = command(*words, "--number", 2, "--width", 1)
    assert small.status == 1 and "--number 2 is too small a pilot" in small.err
    refused = command(*words, "--width", 1e-6, "--behaviour", "margin")
    assert refused.status == 1 and "--at-most" in refused.err
    assert draws.governing(mlp, "test") is None  # the same data say less
    ((_, drawn),) = draws.stored_draws(mlp, "test")
    assert drawn.count == 3 and drawn.pilot is None
    pilot = drawn.table[drawn.table["behaviour"] == "margin"].groupby("draw")["effect"].mean()
    width = 2 * 4.302652729 * pilot.std() / np.sqrt(5) * 1.0001
    answer = command(*words, "--width", width, "--behaviour", "margin", "--json")
    assert answer.status == 0, answer.err
    assert "The width needs 5 draws" in answer.err and "2 draws to make" in answer.err
    (row,) = [row for row in json.loads(answer.out) if row["behaviour"] == "margin"]
    assert row["draws"] == 5 and row["high"] - row["low"] <= width * 1.0001


def test_few_draws_are_said_to_give_conservative_intervals() -> None:
    table = pd.DataFrame({"draw": range(8), "effect": 0.0})
    facts = draws.DrawFacts(run_digest="", set_digest="", kind="recipe", behaviours=[])
    few, more = (draws.sentence(facts, DrawnEffects(table.head(n), "recipe")) for n in (7, 8))
    assert "conservative" in few and "shows what is chance alone" not in few
    assert "conservative" not in more and "shows what is chance alone" in more
