"""Tables of the command line: what holds for several stages is said once."""

from __future__ import annotations

import pandas as pd
import pytest

from stagelens.cli.terminal import print_verification


def test_stages_refused_for_one_reason_are_told_together(capsys: pytest.CaptureFixture) -> None:
    figures = ("r", "rho", "slope", "relative_error", "sign_agreement", "cost", "wall_cost")
    row = {
        "set": "test",
        "behaviour": "loss",
        "estimator": "coarse-replay",
        "settings": '{"budget": 0.25}',
        "budget": 0.25,
        "trust": "refused",
        **dict.fromkeys((*figures, "expected_error", "noise_floor_r"), float("nan")),
    }
    reasons = {"a": "no step is stable", "b": "no step is stable", "c": "batches are missing"}
    rows = [{**row, "stage": stage, "reason": reason} for stage, reason in reasons.items()]
    print_verification(pd.DataFrame(rows))
    said = " ".join(capsys.readouterr().out.split())
    assert "Refused: a, b by coarse-replay 0.25: no step is stable" in said
    assert "Refused: c by coarse-replay 0.25: batches are missing" in said
