"""What works with which loss is as docs/objectives.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.losses import DOCS
from tests.support.loss_cases import CASES, Case, seeded, table_row

OFTEN = {
    "your own, with a reference",
    "your own, with a reference that moves",
    "`plain-dpo`",
    "`dpo`",
}
"""Cases that are quick or tell most; `make fuzz` runs all."""


def _marked(case: Case) -> object:
    marks = [pytest.mark.slow] * case.trl  # TRL takes four seconds to import
    marks += [pytest.mark.extensive] * (case.title not in OFTEN)
    return pytest.param(case, marks=marks, id=case.title)


@pytest.mark.parametrize("case", [*map(_marked, CASES)])
def test_the_table_says_what_comes_of_a_loss(case: Case, tmp_path: Path) -> None:
    assert table_row(case, seeded(case, tmp_path / "run")) in DOCS.read_text()


def test_every_objective_and_task_of_texts_has_a_row() -> None:
    from stagelens.tasks.built_in import BUILT_IN
    from stagelens.tasks.objectives import BUILT_IN as OBJECTIVES

    titles = " ".join(case.title for case in CASES)
    named = {*BUILT_IN, *OBJECTIVES} - {"model", "own", "image-classification"}
    assert [name for name in sorted(named) if f"`{name}`" not in titles] == []
    told = DOCS.read_text()
    assert [case.title for case in CASES if f"\n| {case.title} | " not in told] == []
