"""Slices: kept whole under their names, measured with honest intervals, never made more of."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.slices.effects import (
    difference_sentence,
    largest_difference,
    slice_summary,
)
from stagelens.analyses.slices.saved import (
    Slice,
    column_key,
    delete_slice,
    examples_of,
    joined,
    save_slice,
    stored_slices,
)
from stagelens.contracts import OTHER_EXAMPLES, Behaviour, StageLensError
from stagelens.effects.draws import DrawnEffects, interval_over_draws
from stagelens.effects.headlines import FEWEST
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run
from tests.support.damage import edit_and_seal
from tests.support.effect_tables import effect_table, other_orders

LOSS = Behaviour("loss", "lower", "nats")


def made(name: str, ids: list[str], **filters: str) -> Slice:
    return Slice(
        name=name,
        run_digest="run",
        set_name="test",
        set_digest="set",
        estimate="replay",
        behaviour="loss",
        filters=filters,
        example_ids=tuple(ids),
        saved="2026-01-01T00:00:00Z",
    )


def trust(stage: str, **more) -> dict[str, StageTrust]:
    return {stage: StageTrust(stage=stage, estimator="replay", trust="exact", reason="", **more)}


def ids(start: int, stop: int) -> list[str]:
    return [f"e{number}" for number in range(start, stop)]


# ------------------------------------------------------------------------------------ on disk


@pytest.fixture
def kept(run: Run) -> Iterator[Run]:
    """The run ``run``, without slices before and after."""
    yield run
    for path in (run.path / "slices").glob("*"):
        path.unlink()


def test_a_saved_slice_comes_back_whole(kept: Run) -> None:
    examples = kept.evaluation_set("test")
    saved = save_slice(kept, examples, " hard ones ", ["7", "3"], {"label": "1"})
    assert saved.name == "hard ones"
    assert saved.example_ids == ("3", "7")  # in the set's order
    assert stored_slices(kept, examples) == ([saved], [])
    delete_slice(kept, saved)
    delete_slice(kept, saved)
    assert stored_slices(kept, examples) == ([], [])


def test_its_file_describes_itself(kept: Run) -> None:
    examples = kept.evaluation_set("test")
    save_slice(kept, examples, "one", ["3"], {"label": "1"})
    (path,) = (kept.path / "slices").iterdir()
    content = json.loads(path.read_text())
    assert content["name"] == "one" and content["example_ids"] == ["3"]
    assert content["filters"] == {"label": "1"}
    assert (content["run_digest"], content["set_digest"]) == (kept.digest, examples.digest)


@pytest.mark.parametrize(
    ("name", "chosen", "said"),
    [
        ("empty", [], "'empty' would hold no examples; loosen a filter"),
        ("../up", ["3"], "not a usable name"),
        ("", ["3"], "not a usable name"),
        ("x" * 65, ["3"], "not a usable name"),
        ("Others", ["3"], "choose another name"),
        ("foreign", ["3", "nobody"], "'nobody' is not an example of set 'test'"),
        ("TAKEN", ["3"], "there is a slice 'TAKEN' already"),
    ],
)
def test_what_cannot_be_a_slice_is_refused_by_name(
    kept: Run, name: str, chosen: list[str], said: str
) -> None:
    examples = kept.evaluation_set("test")
    save_slice(kept, examples, "taken", ["1"], {})
    with pytest.raises(StageLensError, match=said):
        save_slice(kept, examples, name, chosen, {})
    assert len(list((kept.path / "slices").iterdir())) == 1


@pytest.mark.parametrize("damage", ["", "{", '{"name": "x"}', "[1]", "\x00"])
def test_a_damaged_file_is_told_and_the_others_are_shown(kept: Run, damage: str) -> None:
    examples = kept.evaluation_set("test")
    good = save_slice(kept, examples, "good", ["1"], {})
    bad = kept.path / "slices" / "bad.json"
    bad.write_text(damage)
    found, problems = stored_slices(kept, examples)
    assert found == [good]
    assert len(problems) == 1 and str(bad) in problems[0]


def test_a_copy_under_another_file_name_is_no_second_slice(kept: Run) -> None:
    examples = kept.evaluation_set("test")
    save_slice(kept, examples, "one", ["1"], {})
    (path,) = (kept.path / "slices").iterdir()
    path.with_name("copy.json").write_bytes(path.read_bytes())
    found, problems = stored_slices(kept, examples)
    assert [one.name for one in found] == ["one"]
    assert "copy.json" in problems[0]


def test_one_chosen_by_what_another_recording_did_is_not_shown(kept: Run) -> None:
    examples = kept.evaluation_set("test")
    for name, filters in (("by label", {"label": "1"}), ("by answer", {"answers": "wrong"})):
        save_slice(kept, examples, name, ["1"], filters)
        (path,) = [p for p in (kept.path / "slices").iterdir() if name in p.read_text()]
        edit_and_seal(path, lambda one: one.update(run_digest="of another recording"))
    found, problems = stored_slices(kept, examples)
    assert [one.name for one in found] == ["by label"]
    assert "'by answer'" in problems[0] and "another recording" in problems[0]


def test_a_slice_is_a_column_of_two_values(kept: Run) -> None:
    examples = kept.evaluation_set("test")
    save_slice(kept, examples, "one", ["1", "5"], {})
    table = examples_of(kept, examples)
    column = table.set_index("example_id")["slice: one"]
    assert column.loc[["1", "5"]].tolist() == ["one", "one"]
    assert (column.drop(["1", "5"]) == OTHER_EXAMPLES).all()
    assert list(joined(table.head(0), []).columns) == list(table.columns)


def test_results_of_a_column_are_not_those_of_a_slice_of_its_name_before(kept: Run) -> None:
    examples = kept.evaluation_set("test")
    first = save_slice(kept, examples, "one", ["1"], {})
    before = column_key(kept, examples, first.column)
    delete_slice(kept, first)
    save_slice(kept, examples, "one", ["2"], {})
    assert column_key(kept, examples, first.column) != before
    assert column_key(kept, examples, "group") == ()


# -------------------------------------------------------------------------------------- slices


def test_a_summary_has_the_mean_and_the_count_of_each_slice() -> None:
    values = np.random.default_rng(4).normal(size=60)
    table = effect_table({"a": values.tolist(), "b": [np.nan] * 60})
    slices = [made("early", ids(0, 25)), made("late", ids(20, 60))]
    rows = slice_summary([table], LOSS, ["a", "b"], slices).set_index(["slice", "stage"])
    assert rows.loc[("early", "a"), "effect"] == pytest.approx(values[:25].mean())
    assert rows.loc[("late", "a"), "effect"] == pytest.approx(values[20:].mean())
    assert rows.loc[("early", "a"), "n"] == 25
    low, high = rows.loc[("late", "a"), ["low", "high"]]
    assert low < values[20:].mean() < high
    assert rows.loc[("late", "b"), "n"] == 0 and np.isnan(rows.loc[("late", "b"), "low"])


def test_the_largest_difference_is_found_and_said() -> None:
    random = np.random.default_rng(5)
    values = random.normal(size=90) * 0.1
    values[30:60] += 1.0
    values[60:] += 0.5
    table = effect_table({"a": values.tolist(), "b": (random.normal(size=90) * 0.1).tolist()})
    slices = [made(name, ids(30 * n, 30 * n + 30)) for n, name in enumerate(("x", "y", "z"))]
    found = largest_difference([table], LOSS, trust("a") | trust("b"), slices)
    assert found is not None
    assert found.stage == "a" and found.more.name == "y" and found.looked_at == 6
    means = sorted(values.reshape(3, 30).mean(1))
    assert found.size == pytest.approx(means[2] - means[0])
    assert 0 < found.low < found.size < found.high
    said = str(difference_sentence(found, LOSS, "image", trust("a")["a"]))
    assert said.startswith("Without a, the mean loss would be 0.98 lower on images in slice y, but")
    assert "would be 0.022 higher on images in slice x: a difference of 1.00" in said
    assert f"95 % interval {found.low:.2f} to {found.high:.2f}, corrected for 6 comparisons" in said


def test_of_many_slices_of_noise_the_largest_difference_is_hardly_ever_told() -> None:
    random = np.random.default_rng(6)
    slices = [made(f"s{n}", ids(30 * n, 30 * n + 30)) for n in range(8)]
    told = 0
    for _ in range(60):
        table = effect_table({"a": random.normal(size=240).tolist()})
        told += largest_difference([table], LOSS, trust("a"), slices) is not None
    assert told <= 9  # 5 % of 60 are 3; without the correction it would be most of them


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (made("y", ids(30, 30 + FEWEST - 1)), "too few"),
        (made("y", ids(30, 60), side="blame"), "chosen by its effect"),
        (made("y", ids(30, 60), answers="wrong"), "chosen by its answers"),
    ],
)
def test_slices_that_prove_nothing_give_no_difference(spoiled: Slice, why: str) -> None:
    values = np.where(np.arange(60) < 30, 0.0, 5.0) + np.random.default_rng(7).normal(size=60)
    table = effect_table({"a": values.tolist()})
    sound = made("y", ids(30, 60))
    assert largest_difference([table], LOSS, trust("a"), [made("x", ids(0, 30)), sound]) is not None
    assert largest_difference([table], LOSS, trust("a"), [made("x", ids(0, 30)), spoiled]) is None


def test_stages_that_are_refused_give_no_difference() -> None:
    values = np.where(np.arange(60) < 30, 0.0, 5.0) + np.random.default_rng(8).normal(size=60)
    table = effect_table({"a": values.tolist()})
    slices = [made("x", ids(0, 30)), made("y", ids(30, 60))]
    refused = StageTrust(stage="a", estimator="task-vector", trust="refused", reason="")
    assert largest_difference([table], LOSS, {"a": refused}, slices) is None


def test_a_difference_within_training_noise_is_said_to_be_no_finding() -> None:
    random = np.random.default_rng(9)
    values = np.where(np.arange(60) < 30, 0.0, 1.0) + 0.1 * random.normal(size=60)
    table = effect_table({"a": values.tolist()})
    turned = [(values * factor).tolist() for factor in (1.0, -1.0, 3.0)]
    slices = [made("x", ids(0, 30)), made("y", ids(30, 60))]
    found = largest_difference([table], LOSS, trust("a"), slices, other_orders({"a": turned}))
    assert found is not None and found.within_noise is True
    assert "not a finding" in str(difference_sentence(found, LOSS, "image"))
    steady = other_orders({"a": [values.tolist(), (values + 0.01).tolist()]})
    found = largest_difference([table], LOSS, trust("a"), slices, steady)
    assert found is not None and found.within_noise is False


@pytest.mark.parametrize(("factors", "clear"), [((0.8, 1.0, 1.2), True), ((-2.0, 1.0, 2.0), False)])
def test_where_the_recipe_was_drawn_its_interval_governs_slices(factors, clear: bool) -> None:
    values = np.where(np.arange(60) < 30, 0.1, 1.0) + 0.1 * np.random.default_rng(9).normal(size=60)
    table = effect_table({"a": values.tolist()})
    drawn = other_orders({"a": [(values * factor).tolist() for factor in factors]})
    drawn = drawn.rename(columns={"order": "draw"})
    draws = DrawnEffects(drawn, "same data")
    # By the noise alone it would be the other way round.
    turned = (1.0, -1.0, 3.0) if clear else (1.0, 1.01)
    noise = other_orders({"a": [(values * factor).tolist() for factor in turned]})
    slices = [made("x", ids(0, 30)), made("y", ids(30, 60))]
    found = largest_difference([table], LOSS, trust("a"), slices, noise, draws)
    assert found is not None and found.over_draws is not None
    expected = interval_over_draws([found.size * factor for factor in factors], "same data")
    assert (found.over_draws.low, found.over_draws.high) == pytest.approx(
        (expected.low, expected.high)
    )
    said = str(difference_sentence(found, LOSS, "image"))
    assert "over 3 redraws" in said and ("not a finding" in said) is not clear
    rows = slice_summary([table], LOSS, ["a"], slices, noise, draws)
    assert rows["within_noise"].tolist() == [not clear] * 2
    assert set(rows["drawn"]) == {"3 redraws"}


def test_the_columns_of_a_set_are_never_taken_for_a_slice() -> None:
    table = pd.DataFrame({"example_id": ["e0"], "slice: x": ["own"]})
    assert joined(table, [made("x", ["e0"])])["slice: x"].tolist() == ["own"]
