"""Draws on several sets, and by several commands at once: trained once, and none is lost."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

from stagelens.measuring.partial_results import Shards
from stagelens.replaying.draw_plan import Draw
from stagelens.runs import fact_tables
from stagelens.runs.claims import claim
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from stagelens.runs.states import Weights
from stagelens.trust import drawing, draws, one_draw
from stagelens.ui.reading.sources import source
from stagelens.wording.trust_words import trust_word
from tests.support.made_draws import measure_draws
from tests.unit.conftest import Command
from tests.unit.test_draws import mlp

__all__ = ["mlp"]  # a fixture

QUIET = lambda *_: None  # noqa: E731


@pytest.fixture
def fresh(run: Run, tmp_path: Path) -> Run:
    """The run with a second set, and without draws of other tests."""
    path = Path(shutil.copytree(run.path, tmp_path / "run"))
    images = np.random.default_rng(3).normal(size=(5, 4, 4)).astype(np.float32)
    write_set(path, run.task, "more", images=images, labels=[0, 1, 2, 0, 1])
    return open_run(path, run.task)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The draws that were trained, by number."""
    made: list[int] = []
    train = one_draw.drawn_models

    def noted(run: Run, draw: Draw, *rest: object) -> Iterator[tuple[str, bool, Weights]]:
        made.append(draw.number)
        return train(run, draw, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(one_draw, "drawn_models", noted)
    return made


def _pairs(run: Run, set_name: str) -> list[tuple[int, str]]:
    """Draw and stage of each effect that is stored on one example and behaviour."""
    drawn = draws.governing(run, set_name)
    assert drawn is not None
    table = drawn.table[drawn.table["behaviour"] == "margin"]
    table = table[table["example_id"] == table["example_id"].iloc[0]]
    return sorted(zip(table["draw"], table["stage"], strict=True))


def test_a_draw_is_trained_once_for_all_sets_and_is_the_same_as_for_each(
    fresh: Run, trained: list[int], tmp_path: Path
) -> None:
    apart = open_run(shutil.copytree(fresh.path, tmp_path / "apart"), fresh.task)
    both = drawing.measure_on_sets(fresh, ["test", "more"], 2, QUIET)
    assert trained == [0, 1]
    for name, found in both.items():
        alone = measure_draws(apart, name, 2, QUIET)
        pd.testing.assert_frame_equal(found.table, alone.table, check_exact=True)
        facts, stored = draws.of_recipe(fresh, name) or pytest.fail("nothing is stored")
        assert facts.set_digest == fresh.evaluation_set(name).digest
        pd.testing.assert_frame_equal(stored.table, found.table)
    assert trained == [0, 1, 0, 1, 0, 1]


def test_what_one_set_has_is_not_measured_again_for_it(fresh: Run, trained: list[int]) -> None:
    first = measure_draws(fresh, "test", 1, QUIET, ["second"])
    both = drawing.measure_on_sets(fresh, ["test", "more"], 2, QUIET, ["second"])
    assert trained == [0, 0, 1]
    assert _pairs(fresh, "test") == _pairs(fresh, "more") == [(0, "second"), (1, "second")]
    own = both["test"].table
    pd.testing.assert_frame_equal(own[own["draw"] == 0], first.table, check_exact=True)
    drawing.measure_on_sets(fresh, ["test", "more"], 2, QUIET, ["second"])
    assert trained == [0, 0, 1]


def test_what_another_command_stored_meanwhile_is_read_before_it_is_written_again(
    fresh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the results are held by this one, and after it had trained."""

    def late(path: Path, wait: bool = True) -> AbstractContextManager[bool]:
        monkeypatch.undo()
        measure_draws(fresh, "test", 3, QUIET, ["third"])
        return claim(path, wait)

    monkeypatch.setattr(drawing, "claim", late)
    measure_draws(fresh, "test", 2, QUIET, ["second"])
    expected = [(0, "second"), (0, "third"), (1, "second"), (1, "third"), (2, "third")]
    assert _pairs(fresh, "test") == expected


def test_two_commands_at_once_share_the_draws_and_each_has_all(
    fresh: Run, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    """The other one begins while this one trains its first draw, and takes the next."""
    other = open_run(fresh.path, fresh.task)
    found: dict[str, pd.DataFrame] = {}

    def beside() -> None:
        found["other"] = measure_draws(other, "test", 3, QUIET, ["second"]).table

    thread = threading.Thread(target=beside)
    train = one_draw.drawn_models
    has_one = threading.Event()

    def noted(run: Run, draw: Draw, *rest: object) -> Iterator[tuple[str, bool, Weights]]:
        if run is other:
            has_one.set()
        elif draw.number == 0:
            thread.start()
            assert has_one.wait(60)  # it left the draw that is held here, and took another
        return train(run, draw, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(one_draw, "drawn_models", noted)
    mine = measure_draws(fresh, "test", 3, QUIET, ["second"]).table
    thread.join()
    assert sorted(trained) == [0, 1, 2]
    expected = [(0, "second"), (1, "second"), (2, "second")]
    assert _pairs(fresh, "test") == expected
    for table in (mine, found["other"]):
        assert sorted(set(zip(table["draw"], table["stage"], strict=True))) == expected
        assert not table.duplicated(["draw", "stage", "behaviour", "example_id"]).any()
    assert not list(fresh.path.glob("results/shards/*/*"))


def test_what_others_keep_of_their_draws_is_left(fresh: Run) -> None:
    message = {"draw": 7, "kind": "recipe", "sets": ["test"], "stages": ["first"]}
    message["seen"] = {"first": 1, "second": 1, "third": 1}
    one_draw.do(fresh, message, QUIET)
    measure_draws(fresh, "test", 1, QUIET, ["second"])
    assert len(one_draw.kept(fresh, "test", message))


def test_who_claims_a_draw_is_nothing_that_pages_read(fresh: Run) -> None:
    message = {"draw": 7, "kind": "recipe", "sets": ["test"], "stages": ["first"], "seen": {}}
    measure_draws(fresh, "test", 1, QUIET, ["second"])
    before = source(fresh.path)
    one_draw.do(fresh, message, QUIET)
    one_draw.drop(fresh, message)
    assert source(fresh.path) == before


def test_parts_are_dropped_while_others_are_written(
    fresh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process drops the last part when the folder of the new one was just made."""
    mine, other, table = Shards(fresh, "a"), Shards(fresh, "a"), pd.DataFrame({"x": [1]})
    other.put("other", table)
    write = parquet.write_table

    def late(*args: object, **layout: object) -> None:
        other.drop("other")
        write(*args, **layout)

    monkeypatch.setattr(parquet, "write_table", late)
    mine.put("mine", table)
    assert "mine" in mine and "other" not in other


@pytest.mark.parametrize(("first", "word"), [(0.99, "reliable"), (np.nan, "rough")])
def test_a_draw_without_a_number_leaves_the_mean_unknown(
    fresh: Run, first: float, word: str
) -> None:
    measure_draws(fresh, "test", 1, QUIET, ["second"])
    examples = fresh.evaluation_set("test")
    found = draws.load(fresh, examples.digest, "recipe")
    assert found is not None
    each = [first, *np.linspace(1, 1.02, 11)]
    table = pd.concat([found[1].table.assign(draw=n, effect=one) for n, one in enumerate(each)])
    fact_tables.write(draws.draws_path(fresh, examples.digest, "recipe"), table, found[0])
    effects = draws.recipe_effects(fresh, "test")
    assert effects is not None and trust_word(effects.trust["second"], "margin") == word


def test_a_claim_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with claim(tmp_path / "new" / ".lock") as mine, claim(tmp_path / "new" / ".lock", False) as two:
        assert mine and not two
    with claim(tmp_path / "new" / ".lock", False) as again:
        assert again


def test_the_command_draws_on_several_sets_at_once(mlp: Run, command: Command) -> None:
    images = np.random.default_rng(3).normal(size=(5, 4, 5)).astype(np.float32)
    write_set(mlp.path, mlp.task, "more", images=images, labels=[0, 1, 2, 0, 1])
    words = ("draws", mlp.path, "--number", 3, "--processes", 1, "--stage", "second")
    answer = command(*words, "--set", "more", "--set", "test", "--json")
    assert answer.status == 0, answer.err
    assert answer.err.count("3 draws to make") == 1
    assert {row["set"] for row in json.loads(answer.out)} == {"more", "test"}
    every = command(*words, "--all-sets")
    assert "to make" not in every.err
    assert "on set more" in every.out and "on set test" in every.out
    both = command(*words, "--all-sets", "--set", "test")
    assert both.status == 1 and "--set or --all-sets, not both" in both.err
