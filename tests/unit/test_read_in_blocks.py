"""Commands on a run of checkpoints read weights in blocks: no second model is ever in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

import stagelens
from stagelens.runs.streaming import MappedTensors
from tests.support.checkpoints import labelled_texts, language_models
from tests.unit.conftest import Command


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors of which a view was made, as pages of such a view stay in memory."""
    named: list[str] = []
    view = MappedTensors.__getitem__

    def noted(self: MappedTensors, name: str) -> Tensor:
        named.append(name)
        return view(self, name)

    monkeypatch.setattr(MappedTensors, "__getitem__", noted)
    return named


def test_attributing_checking_and_saving_make_no_view_of_a_tensor(
    command: Command, whole: list[str], tmp_path: Path
) -> None:
    texts = labelled_texts(tmp_path / "test.jsonl")
    run = stagelens.assemble(language_models(tmp_path), tmp_path / "run", evaluation=texts)
    whole.clear()  # of a few matrices the first values are looked at, for merged models
    for words in (
        ["attribute", run.path, "--estimator", "task-vector"],
        ["check", run.path],
        ["size", run.path],
        ["remove", run.path, "--stage", "sft", "--strength", 0.5, "--out", tmp_path / "half"],
    ):
        answer = command(*words)
        assert answer.status in (0, 4), answer.err  # 4: what was not recorded cannot be checked
        assert whole == [], words[0]
