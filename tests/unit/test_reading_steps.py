"""Recorded steps read in any order: the same as in their own, without opening files anew."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

import stagelens
from stagelens.runs import steps
from tests.support.loops import make_batches, make_task, train


@pytest.mark.parametrize("held", [64, 1])
def test_steps_are_the_same_in_any_order_and_each_part_is_opened_once_where_it_can_be_held(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_OPENED", held)
    task = make_task()
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = stagelens.Recorder(tmp_path / "run", task, name="parts")
    with recorder.stage("only", model=model, optimizer=optimizer, flush_every=2) as stage:
        train(task, model, optimizer, make_batches(7), stage=stage)
    recorded = stagelens.open_run(tmp_path / "run").stages[0]
    known = list(recorded.read_steps())
    opened: list[Path] = []
    read = steps.read_table

    def noted(path: Path) -> pa.Table:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(steps, "read_table", noted)
    again = recorded.read_steps()
    for number in (5, 0, 6, 2, 1, 4, 3, 5):
        one, other = again[number], known[number]
        assert (one.step, one.loss, one.groups) == (other.step, other.loss, other.groups)
        assert one.batches is not None and other.batches is not None
        for mine, theirs in zip(one.batches, other.batches, strict=True):
            torch.testing.assert_close(mine.batch, theirs.batch, rtol=0, atol=0)
    parts = len(list((tmp_path / "run").rglob("steps-*.parquet")))
    assert parts > 1 and len(set(opened)) == parts
    assert (len(opened) == parts) == (held > 1)
