"""Stored effect tables as pages read them: one behaviour at a time, when somebody looks at it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import stagelens
from stagelens.contracts import RunError
from stagelens.effects import results, summary
from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.results import FIRST, load_result, result_key
from stagelens.trust.estimates import as_effects, best_known, stored_effects
from stagelens.trust.stage_effects import Effects
from stagelens.trust.verification import keep_agreements, trusted, trusted_facts, verify
from tests.support.loops import Plan, make_batches, make_task, record_plans

COUNT = 40
BEHAVIOURS = ("margin", "loss", "probability")


def sgd(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, and a set of which a tenth has no label."""
    plans = [Plan("first", sgd), Plan("second", sgd)]
    made = record_plans(tmp_path_factory.mktemp("recorded") / "run", make_task(), plans)
    images, labels = make_batches(1, seed=5, size=COUNT)[0]
    given = [None if row % 10 == 3 else int(label) for row, label in enumerate(labels)]
    recorder = stagelens.Recorder(made.path, made.task, resume=True)
    recorder.add_set(
        "test", images=images, labels=given, columns={"group": ["a", "b"] * (COUNT // 2)}
    )
    recorder.close()
    return made.path


@pytest.fixture(scope="module", params=[1, 10**6], ids=["own row groups", "one row group"])
def computed(
    request: pytest.FixtureRequest, recorded: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """The run with its results, as those of a large set are stored and as those of a small one."""
    copy = shutil.copytree(recorded, tmp_path_factory.mktemp("computed") / "run")
    run = stagelens.open_run(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_OWN_GROUPS", request.param)
        for estimator in ("replay", "task-vector"):
            attribute(run, "test", estimator)
        boundaries(run, "test")
    path = run.path / f"results/tables/{result_key(run, 'test', 'effects', 'replay', {})}.parquet"
    groups = pq.read_metadata(path).num_row_groups
    assert groups == (1 if request.param > 1 else 2 * len(BEHAVIOURS))
    return run.path, request.param


@pytest.fixture
def stored(computed: tuple[Path, int], tmp_path: Path, monkeypatch) -> stagelens.Run:
    """A copy of ``computed`` to change."""
    path, groups = computed
    monkeypatch.setattr(results, "_OWN_GROUPS", groups)
    return stagelens.open_run(shutil.copytree(path, tmp_path / "run"))


def plain(table: Any) -> Any:
    """Values without the types that hold them."""
    return table.astype(object).where(table.notna(), None).reset_index(drop=True)


@pytest.mark.slow
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_rows_of_one_behaviour_are_those_of_the_table(
    stored: stagelens.Run, behaviour: str, coded: bool
) -> None:
    for kind, estimator in (("effects", "replay"), ("boundaries", "")):
        whole = load_result(stored, "test", kind, estimator).table
        one = load_result(stored, "test", kind, estimator, coded=coded, behaviour=behaviour)
        expected = plain(whole[whole["behaviour"] == behaviour])
        pd.testing.assert_frame_equal(plain(one.table), expected)
        assert [b.name for b in one.facts.behaviours] == list(BEHAVIOURS)


def test_the_first_behaviour_and_one_that_was_not_measured(stored: stagelens.Run) -> None:
    first = load_result(stored, "test", "effects", "replay", behaviour=FIRST).table
    assert set(first["behaviour"]) == {BEHAVIOURS[0]}
    assert load_result(stored, "test", "effects", "replay", behaviour="courage").table.empty


def lazily(run: stagelens.Run, estimate: str) -> Effects:
    facts = load_result(run, "test", "effects", estimate).facts
    known = trusted_facts(run, facts)
    return stored_effects(run, estimate, known, labelled=True, orders=None, coded=True)


@pytest.mark.slow
@pytest.mark.parametrize("estimate", ["replay", "task-vector"])
def test_effects_are_the_same_whether_they_are_read_at_once_or_when_looked_at(
    stored: stagelens.Run, estimate: str
) -> None:
    whole = trusted(stored, load_result(stored, "test", "effects", estimate))
    at_once, late = as_effects(estimate, whole, None), lazily(stored, estimate)
    assert list(at_once.behaviours) == list(late.behaviours) == ["accuracy", *BEHAVIOURS]
    assert at_once.trust == late.trust
    table = summary.with_accuracy(whole.table)
    for name in late.behaviours:
        expected = plain(table[table["behaviour"] == name])
        pd.testing.assert_frame_equal(plain(late.of(name)), expected)
        pd.testing.assert_frame_equal(plain(at_once.of(name)), expected)
    assert set(late.first["behaviour"]) == {BEHAVIOURS[0]}


def test_every_behaviour_is_read_once(stored: stagelens.Run, monkeypatch) -> None:
    late = lazily(stored, "replay")
    read = []
    monkeypatch.setattr(
        "stagelens.trust.estimates.load_result",
        lambda *given: read.append(given[-3]) or load_result(*given),
    )
    for name in ("loss", "accuracy", "loss", "accuracy", "margin"):
        late.of(name)
    assert read == ["loss", "margin"]  # accuracy comes from the answers, which stand in every row


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_parts_are_the_rows_of_the_whole(stored: stagelens.Run, name: str) -> None:
    whole, late = lazily(stored, "replay"), lazily(stored, "replay")
    columns = ["effect", "stage", "prediction", "label", "group", "no such column"]
    parts = list(late.parts(name, columns))
    assert len(parts) == (2 if late.by_stage else 1)
    assert (late._rows == {}) == late.by_stage  # of a large set nothing stays in memory
    expected = plain(whole.of(name)[columns[:-1]])
    pd.testing.assert_frame_equal(plain(pd.concat(parts)[columns[:-1]]), expected)
    of_second = late.of_stage(name, "second", ["effect", "example_id"])
    assert plain(of_second)["effect"].tolist() == expected["effect"].tolist()[COUNT:]
    assert (parts[0]["prediction"] == parts[0]["label"]).any()  # categories that can be compared


def test_what_was_not_looked_at_for_longest_is_let_go(stored: stagelens.Run, monkeypatch) -> None:
    late = lazily(stored, "replay")
    one = late.of("loss").memory_usage().sum()
    monkeypatch.setattr("stagelens.trust.stage_effects._HELD", int(2.5 * one))
    for name in ("margin", "loss", "probability"):
        late.of(name)
    assert list(late._rows) == ["loss", "probability"]
    assert len(late.of("margin")) == 2 * COUNT


def test_the_best_known_numbers_are_taken_stage_by_stage(stored: stagelens.Run) -> None:
    vector, replayed = lazily(stored, "task-vector"), lazily(stored, "replay")
    best = best_known(vector, [replayed])
    assert {stage: known.estimator for stage, known in best.trust.items()} == {
        "first": "replay",
        "second": "task-vector",  # of the last stage both are the truth, so the chosen one stays
    }
    rows = best.of("loss")
    for stage, source in (("first", replayed), ("second", vector)):
        own, expected = (t[t["stage"] == stage]["effect"] for t in (rows, source.of("loss")))
        pd.testing.assert_series_equal(plain(own), plain(expected))


def test_a_table_that_goes_while_it_is_open_is_told(stored: stagelens.Run) -> None:
    late = lazily(stored, "replay")
    late.of("loss")
    key = result_key(stored, "test", "effects", "replay", {})
    (stored.path / f"results/tables/{key}.parquet").write_bytes(b"damaged")
    assert len(late.of("loss")) == 2 * COUNT  # what was read stays
    with pytest.raises(
        RunError, match=rf"{key}.parquet is damaged or was deleted: the effects by replay"
    ):
        late.of("margin")


def test_a_table_whose_index_is_damaged_is_not_taken_for_a_smaller_one(
    stored: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics in the footer, which no checksum covers, say where a behaviour's rows stand."""
    whole = results._joined
    monkeypatch.setattr(
        results, "_joined", lambda file, groups, *how: whole(file, groups[1:], *how)
    )
    assert load_result(stored, "test", "effects", "replay", behaviour="loss") is None


def test_a_damaged_replay_leaves_what_was_verified_by_it(stored: stagelens.Run) -> None:
    verify(stored, "test", [("task-vector", {})], lambda *_: None)
    facts = load_result(stored, "test", "effects", "task-vector").facts
    before = trusted_facts(stored, facts).stages
    assert before[0].agreements
    key = result_key(stored, "test", "effects", "replay", {})
    path = stored.path / f"results/tables/{key}.parquet"
    data = bytearray(path.read_bytes())
    data[8:200] = bytes(192)  # pages, not the footer
    path.write_bytes(data)
    assert load_result(stored, "test", "effects", "replay", behaviour="margin") is None
    after = trusted_facts(stored, facts).stages[0]
    assert after.agreements and after.trust == before[0].trust


def test_agreements_of_a_large_set_are_kept_for_these_very_tables(
    stored: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = load_result(stored, "test", "effects", "task-vector").facts
    before = trusted_facts(stored, facts).stages
    keep_agreements(stored, "test")
    kept = list(stored.path.glob("results/agreements/*.parquet"))
    assert len(kept) == results.is_large(COUNT)
    if not kept:
        return  # of a small set, they take no time
    with monkeypatch.context() as patch:
        patch.setattr("stagelens.trust.agreements._compare", lambda *_: pytest.fail("read again"))
        assert trusted_facts(stored, facts).stages == before
    # Another table under the same name: what was kept is not of it.
    replay = load_result(stored, "test", "effects", "replay")
    turned = replay.table.assign(effect=-replay.table["effect"])
    results.save_result(stored, results.Result(replay.facts, turned))
    after = trusted_facts(stored, facts).stages[0]
    assert after.agreements[0].r == pytest.approx(-before[0].agreements[0].r)
    # Nor is it followed where its own file says that it is of others.
    own = kept[0].read_bytes()
    keep_agreements(stored, "test")
    (other,) = set(stored.path.glob("results/agreements/*.parquet")) - set(kept)
    other.write_bytes(own)
    assert trusted_facts(stored, facts).stages[0] == after
