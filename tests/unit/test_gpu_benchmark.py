"""The benchmark for a GPU, which is seldom at hand, runs in small on the CPU."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu


@pytest.mark.slow
def test_it_measures_everything_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAGELENS_DEVICE", "cpu")  # which it sets itself
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["bitwise"] == [True, True]
    assert figures["device"] == "CPU"
    numbers = [value for value in figures.values() if isinstance(value, float)]
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    printed = capsys.readouterr().out
    assert all(name in printed for name in gpu.GOALS)


def test_without_a_gpu_it_says_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="--small"):
        gpu.main()
