"""Coalitions on disk, and who can be a party."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import RunError, StageLensError
from stagelens.effects.coalition_results import (
    CoalitionPart,
    CoalitionResult,
    key_of,
    load_coalitions,
    save_part,
    stored_coalitions,
)
from stagelens.effects.results import BehaviourFacts
from stagelens.estimators.parties import check_parties, name_of, parties_of, stage_masks
from stagelens.runs.run import Run, open_run
from tests.support.stage_trust import trust

MARGIN = BehaviourFacts(name="margin", better="higher")


def store(run: Run, mask: int, kind: str = "exact") -> np.ndarray:
    """Values of a coalition, made up and stored."""
    examples = run.evaluation_set("test")
    values = np.arange(examples.count) + 100.0 * mask
    part = CoalitionPart(
        key=key_of(run, examples, "replay", {}), mask=mask, behaviours=[MARGIN], passes=2,
        trust=trust(kind, stage=f"{mask:b}", estimator="replay", seconds=1.5, reason="So."),
    )  # fmt: skip
    ids = examples.table([])["example_id"]
    table = pd.DataFrame(
        {"example_id": ids, "prediction": "b", "confidence": 0.5, "margin": values}
    )
    save_part(run, part, table if kind != "refused" else table[:0])
    return values


def loaded(run: Run, together: list[list[str]] | None = None) -> CoalitionResult:
    found = load_coalitions(run, "test", "replay", parties=parties_of(run, together or []))
    assert found is not None
    return found


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """The run in a folder of its own."""
    return open_run(shutil.copytree(run.path, tmp_path / "run"), run.task)


def test_what_was_stored_is_loaded(own: Run) -> None:
    assert load_coalitions(own, "test", "replay") is None
    values = {mask: store(own, mask) for mask in (0, 5, 7)}
    found = loaded(own)
    assert found.parties == (("first",), ("second",), ("third",))
    # What is the same in every model is kept once, of 200,000 examples and 64 models, too.
    assert list(found.examples.columns) == ["example_id", "label"]
    assert {tuple(own.columns) for own in found.models.values()} == {
        ("prediction", "confidence", "margin")
    }
    assert all(str(own["prediction"].dtype) == "category" for own in found.models.values())
    assert found.values("margin").keys() == values.keys() and not found.complete
    for mask, known in values.items():
        assert np.array_equal(found.value(mask, "margin"), known)
    assert found.name(5) == "first + third" and found.name(0) == "no stage"
    assert (found.facts.passes, found.facts.seconds) == (6, 4.5)
    labels = own.evaluation_set("test").table([])["label"]
    assert np.array_equal(found.value(5, "accuracy"), (labels == "b").to_numpy(float))
    assert set(found.predictions(5)) == {"b"} and set(found.confidences(5)) == {0.5}
    with pytest.raises(StageLensError, match=r"coalition of second \+ third was not measured"):
        found.value(6, "margin")
    with pytest.raises(StageLensError, match="no behaviour 'loss' was measured; there is margin"):
        found.value(5, "loss")
    assert load_coalitions(own, "test", "task-vector") is None
    (facts,) = stored_coalitions(own, "test")
    assert facts.estimator == "replay" and facts.trust.keys() == values.keys()


def test_a_refused_coalition_has_a_reason_and_no_values(own: Run) -> None:
    store(own, 3, "refused")
    found = loaded(own)
    assert found.trust[3].trust == "refused" and found.values("margin") == {}
    with pytest.raises(StageLensError, match=r"first \+ second was refused: So\."):
        found.predictions(3)


def test_stages_taken_as_one_read_what_was_measured_of_them_apart(own: Run) -> None:
    values = {mask: store(own, mask) for mask in range(8)}
    assert loaded(own).complete
    # "first" and "third" as one party are bit 0, because it begins first; "second" is bit 1.
    merged = loaded(own, [["third", "first"]])
    assert merged.parties == (("first", "third"), ("second",)) and merged.complete
    for mask, stages in {0: 0, 1: 5, 2: 2, 3: 7}.items():
        assert np.array_equal(merged.value(mask, "margin"), values[stages])
    assert merged.name(1) == "first + third"


def test_a_damaged_or_misplaced_file_is_not_believed(own: Run) -> None:
    for mask in (1, 2, 4):
        store(own, mask)
    files = {int(p.stem, 16): p for p in own.path.glob("results/coalitions/*/*.parquet")}
    shutil.copy(files[1], files[2])
    content = bytearray(files[4].read_bytes())
    content[len(content) // 2] ^= 1
    files[4].write_bytes(content)
    assert set(loaded(own).trust) == {1}


def test_parties(run: Run) -> None:
    assert name_of(parties_of(run), 6) == "second + third"
    assert stage_masks(run, parties_of(run, [["second", "third"]]), [0, 2]) == {0: 0, 2: 6}
    assert check_parties(run, (("second",), ("first",), ("third",))) == parties_of(run)
    with pytest.raises(StageLensError, match="'second' is in two parties"):
        parties_of(run, [["first", "second"], ["second", "third"]])
    with pytest.raises(StageLensError, match="'third' is in no party"):
        check_parties(run, (("first", "second"),))
    with pytest.raises(RunError, match="fourth"):
        parties_of(run, [["first", "fourth"]])
    with pytest.raises(StageLensError, match="coalition 8 is none of 3 parties"):
        stage_masks(run, parties_of(run), [8])
