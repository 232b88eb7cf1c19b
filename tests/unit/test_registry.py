"""A new estimator is one file and one registration: nothing else lists the estimators."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stagelens.contracts import Refused
from stagelens.effects.computing import attribute
from stagelens.estimators import registry
from stagelens.estimators.durations import paces
from stagelens.runs.run import Run, open_run
from stagelens.trust.durations import verify_seconds
from stagelens.trust.estimates import stored_estimates
from stagelens.trust.verification import trusted, verify
from tests.support.toy_estimator import StartState, register_toy


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    return register_toy(monkeypatch)


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """A copy of the small run, without results."""
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(folder / "results", ignore_errors=True)
    return open_run(folder, run.task)


def test_it_attributes_and_is_found_among_the_stored_estimates(toy: str, own: Run) -> None:
    result = attribute(own, "test", toy)
    effects = result.table.dropna(subset=["effect"])
    assert set(effects["stage"]) == {stage.name for stage in own.stages}
    attribute(own, "test", "task-vector")
    assert list(stored_estimates(own, "test")) == ["task-vector", toy]  # by preference


def test_it_is_verified_where_nobody_chooses(toy: str, own: Run) -> None:
    assert toy in registry.proposed() and toy in registry.verifiable()
    wanted = [(name, registry.find(name).default_settings()) for name in (toy, "task-vector")]
    rows = verify(own, "test", wanted, lambda *_: None)
    first = rows[(rows["estimator"] == toy) & (rows["stage"] == own.stages[0].name)]
    assert set(first["trust"]) <= {"verified", "does not agree"}
    known = trusted(own, attribute(own, "test", toy)).trust[own.stages[0].name]
    assert known.agreements


def test_its_time_is_predicted(toy: str, own: Run) -> None:
    assert registry.estimate_seconds(own.stages, toy, {}) == 1.5
    stages = paces(own).stages
    without, with_it = (verify_seconds(stages, wanted, 0, []) for wanted in ([], [(toy, {})]))
    assert without is not None and with_it == pytest.approx(without + 1.5)


def test_help_and_errors_list_it(toy: str) -> None:
    assert registry.help_text().startswith("start-state (a toy), task-vector (free)")
    with pytest.raises(Refused, match=r"no estimator 'magic'; use one of start-state, task-vector"):
        registry.make_estimator("magic")
    with pytest.raises(Refused, match="start-state does not take the setting budget; omit it"):
        registry.make_estimator(toy, {"budget": 0.5})


def test_a_name_is_taken_once(toy: str) -> None:
    registry.register(StartState)  # the same again changes nothing
    with pytest.raises(ValueError, match="there is an estimator 'start-state' already"):
        registry.register(type("Other", (StartState,), {}))
