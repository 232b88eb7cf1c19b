"""The example of docs/objectives.md, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.contracts import Refused
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import make_batches, make_task

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_a_loss_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defined, recorded, opened = BLOCKS[:3]
    assert (defined + recorded).count("\n") < 20
    (tmp_path / "losses.py").write_text(defined, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import losses  # type: ignore[import-not-found]

    try:
        task = make_task()
        torch.manual_seed(0)
        model = task.build_model()
        known: dict[str, Any] = {
            "stagelens": stagelens,
            "recorder": stagelens.Recorder("runs/digits", task),
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "batches": make_batches(4),
            "focal": losses.focal,
        }
        exec(recorded, known)
        exec(opened, known)
        run = known["run"]
        assert run.last.facts.problem is None
        assert measure_deviation(task, run.last).bitwise
        with pytest.raises(Refused, match="--objective tune="):
            measure_deviation(task, stagelens.open_run("runs/digits", task).last)
    finally:
        del sys.modules["losses"]
