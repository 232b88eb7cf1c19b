"""Draws of a recipe shared between helper processes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stagelens.compute import helpers
from stagelens.replaying.draw_plan import Draw
from stagelens.runs.run import Run, open_run
from stagelens.runs.states import Weights
from stagelens.trust import drawing_coalitions, one_draw
from stagelens.trust.drawn_coalitions import FOLDER
from tests.support.made_draws import measure_draws
from tests.unit.test_helpers import recorded, waits_for

__all__ = ["recorded"]  # a fixture


@pytest.mark.slow
def test_helpers_share_the_draws(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(shutil.copytree(recorded, tmp_path / "run"))
    mine: list[int] = []
    train = one_draw.drawn_models

    def patient(run: Run, draw: Draw, *rest: Any) -> Iterator[tuple[str, bool, Weights]]:
        mine.append(draw.number)
        # So that the helper has its share, however late it starts.
        waits_for(lambda: any(run.path.glob("results/shards/*/*.parquet")))
        return train(run, draw, *rest)

    monkeypatch.setattr(one_draw, "drawn_models", patient)
    monkeypatch.setenv(helpers.ASKED, "2")
    command = [sys.executable, "-m", "stagelens", "help-out", str(run.path)]
    with helpers.allowed(run.path, command) as given:
        found = measure_draws(run, "test", 4, lambda *_: None)
        assert len(given.started) == 1
    assert found.count == 4 and len(set(mine)) == len(mine) < 4
    monkeypatch.undo()
    alone = open_run(shutil.copytree(recorded, tmp_path / "alone"))
    expected = measure_draws(alone, "test", 4, lambda *_: None)
    keys = ["draw", "stage", "behaviour", "example_id"]
    pd.testing.assert_frame_equal(
        *(each.table.sort_values(keys, ignore_index=True) for each in (found, expected))
    )


@pytest.mark.slow
def test_helpers_share_draws_of_every_set_of_stages(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(shutil.copytree(recorded, tmp_path / "run"))
    mine: list[int] = []
    train = drawing_coalitions.drawn_coalitions

    def patient(run: Run, draw: Draw, *rest: Any) -> Iterator[tuple[int, Weights]]:
        mine.append(draw.number)
        waits_for(lambda: any(run.path.glob(f"{FOLDER}/*/*.parquet")))
        return train(run, draw, *rest)

    monkeypatch.setattr(drawing_coalitions, "drawn_coalitions", patient)
    monkeypatch.setenv(helpers.ASKED, "2")
    command = [sys.executable, "-m", "stagelens", "help-out", str(run.path)]
    measured = drawing_coalitions.measure_coalitions_of_draws
    with helpers.allowed(run.path, command) as given:
        found = measured(run, ["test"], 3, lambda *_: None)["test"]
        assert len(given.started) == 1
    assert found.count == 3 and len(set(mine)) == len(mine) < 3
    monkeypatch.undo()
    alone = open_run(shutil.copytree(recorded, tmp_path / "alone"))
    expected = measured(alone, ["test"], 3, lambda *_: None)["test"]
    for one, other in zip(found.values("margin"), expected.values("margin"), strict=True):
        assert one.keys() == other.keys() == set(range(16))
        assert all((one[mask] == other[mask]).all() for mask in one)
