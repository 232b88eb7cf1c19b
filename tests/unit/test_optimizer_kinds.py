"""Optimisers of every registered class: recorded, replayed and retrained to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stagelens.contracts import SUPPORTED_OPTIMIZERS
from tests.support.optimizer_cases import CASES, EAGER, Case, find, table_row

DOCS = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"

ALWAYS = (
    "SGD",
    "Adam, amsgrad",
    "NAdam",
    "Adagrad",
    "Rprop",
    "Muon and AdamW",
    "transformers.Adafactor, relative_step",
    "lion_pytorch.Lion",
    "bitsandbytes.AdamW8bit",
    "torchao.AdamW8bit",
    "schedulefree.AdamWScheduleFree",
)
"""Of each way of keeping a state, one; the others are extensive."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=case.title, marks=[] if case.title in ALWAYS else pytest.mark.extensive
        )
        for case in CASES
    ],
)
def test_replay_and_retraining_agree_as_the_table_says(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not case.installed:
        pytest.skip(f"{case.package} is not installed")
    if case.package == EAGER:
        monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    found = find(case, tmp_path / "run")
    assert found.replay == found.without == "bit for bit"
    assert table_row(case, found) in DOCS.read_text()


def test_the_table_has_a_case_of_every_class_but_those_of_the_same_arithmetic() -> None:
    classes = {case.name for case in CASES}
    missing = {name for name in SUPPORTED_OPTIMIZERS if name not in classes}
    # Further numbers of bits, and paging, which is nothing on a CPU.
    assert all(name.startswith(("bitsandbytes.", "torchao.Adam")) for name in missing), missing
