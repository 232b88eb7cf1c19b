"""A stage's change undone block by block: what adds up, what is stored, what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stagelens.analyses.network.block_table import (
    READINGS,
    REST,
    Network,
    load_network,
    network_path,
    network_rows,
    strongest_block,
)
from stagelens.analyses.network.measuring import (
    Mixed,
    check_same_tensors,
    measure_network,
    moved,
)
from stagelens.analyses.network.sentences import for_json, network_sentence, notes
from stagelens.contracts import ACCURACY, Refused, no_progress
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.runs.run import Run, open_run
from stagelens.runs.sets.writer import write_set
from stagelens.runs.states import load_into
from stagelens.trust.verification import verify
from stagelens.wording.sentences import slice_parts
from tests.conftest import DemoRun
from tests.support.small_runs import SHAPE, Phase, make_task, record
from tests.unit.conftest import Command
from tests.unit.test_adapter_estimates import FULL, WHOLE_HEAD, adapted


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05)


def small(path: Path, network: str, phases: list[Phase]) -> Run:
    record(path, network, phases)
    images = np.random.default_rng(0).normal(size=(7, *SHAPE)).astype(np.float32)
    write_set(
        path, make_task(network), "test", images=images, labels=list("abcabca"), channels="first"
    )
    return open_run(path, make_task(network))


def three() -> list[Phase]:
    return [Phase(name, sgd) for name in ("first", "second", "third")]


def by_hand(run: Run, stage: str, undone: tuple[str, ...] | None, behaviour: str) -> np.ndarray:
    """A behaviour with these tensors of the final model undone, or all others of them."""
    (without,) = counterfactuals(run, make_estimator("replay", None), [run.stage(stage)])
    weights = dict(run.last.end().model.items())
    assert without.weights is not None
    weights |= {name: without.weights[name] for name in (weights if undone is None else undone)}
    model = run.task.build_model(run.last.facts.build_config)
    load_into(model, weights)
    model.eval()
    batch = run.task.collate(list(itertools.chain(*run.evaluation_set("test").batches(7))))
    with torch.no_grad():
        return run.task.behaviours(run.task.outputs(model, batch), batch)[behaviour].numpy()


def test_every_reading_and_its_rest_sum_to_the_stage_effect(tmp_path: Path) -> None:
    run = small(tmp_path / "run", "batch norm", three())
    found = measure_network(run, "test", "second", "replay")
    final = by_hand(run, "second", (), "margin")
    for number, block in enumerate(found.facts.blocks):
        own = final - by_hand(run, "second", block.tensors, "margin")
        np.testing.assert_allclose(found.effects("margin", "undone")[:, number], own, atol=1e-12)
        others = tuple(n for b in found.facts.blocks if b != block for n in b.tensors)
        alone = by_hand(run, "second", others, "margin") - by_hand(run, "second", None, "margin")
        np.testing.assert_allclose(found.effects("margin", "alone")[:, number], alone, atol=1e-12)
    total = final - by_hand(run, "second", None, "margin")
    for reading in READINGS:
        summed = found.effects("margin", reading).sum(1) + found.rest("margin", reading)
        np.testing.assert_allclose(summed, total, atol=1e-12)
    assert found.facts.trust.trust == "exact"
    norm = next(block for block in found.facts.blocks if block.kind == "norm")
    assert norm.moved and any("running_mean" in name for name in norm.tensors)


def test_where_only_pairs_interact_what_is_carried_leaves_no_rest(tmp_path: Path) -> None:
    """Two blocks: whatever they do together is a pair's, and the mean is the Shapley value."""
    run = small(tmp_path / "run", "dead units", three())
    found = measure_network(run, "test", "second", "replay")
    assert len(found.facts.blocks) == 2
    assert np.abs(found.rest("loss", "undone")).max() > 1e-6
    np.testing.assert_allclose(found.rest("loss"), 0, atol=1e-12)


def test_a_block_that_a_stage_left_alone_carries_nothing_and_costs_nothing(tmp_path: Path) -> None:
    def only_head(model: torch.nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(model[3].parameters())}]  # type: ignore[index]

    phases = [Phase("first", sgd), Phase("second", sgd, groups=only_head)]
    run = small(tmp_path / "run", "dead units", phases)
    found = measure_network(run, "test", "second", "replay")
    still, head = found.facts.blocks
    assert still.moved == 0 and head.moved > 0
    assert set(found.table["model"]) == {0, 1, 4, 5}
    for reading in READINGS:
        assert not found.effects("loss", reading)[:, 0].any()
        np.testing.assert_allclose(found.effects("loss", reading)[:, 1], found.total("loss"))
    assert any("Not changed by second" in note and "linear" in note for note in notes(found))


def test_a_new_head_and_an_adapter_are_undone_to_what_they_began_with(tmp_path: Path) -> None:
    run = small(tmp_path / "run", "encoder", [FULL, adapted(WHOLE_HEAD)])
    found = measure_network(run, "test", "lora", "replay")
    blocks = {block.name: block for block in found.facts.blocks}
    assert {name for name, block in blocks.items() if block.moved} == {"qkv", "head"}
    assert blocks["qkv"].begins and not blocks["out"].begins
    assert any("lora_A" in name for name in blocks["qkv"].tensors)
    said = " ".join(notes(found))
    assert "Undone, what began in lora has the values that it began with: qkv" in said
    np.testing.assert_allclose(found.rest("margin"), 0, atol=1e-12)


def test_it_is_stored_and_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    run = small(tmp_path / "run", "cnn", three())
    examples = run.evaluation_set("test")
    made = measure_network(run, "test", "second", "replay")
    key = (run, examples, "second", "replay", made.facts.settings)
    stored = load_network(*key)
    assert stored is not None and stored.facts == made.facts
    np.testing.assert_array_equal(stored.effects("loss"), made.effects("loss"))
    assert load_network(run, examples, "first", "replay", {}) is None
    path = network_path(*key)
    path.write_bytes(path.read_bytes()[:-40])
    assert load_network(*key) is None
    again = measure_network(run, "test", "second", "replay")
    np.testing.assert_array_equal(again.effects("loss"), made.effects("loss"))


def test_what_is_known_of_a_stored_measurement_is_what_is_known_now(tmp_path: Path) -> None:
    run = small(tmp_path / "run", "cnn", three())
    made = measure_network(run, "test", "first", "task-vector")
    assert made.facts.trust.trust == "estimated" and not made.facts.trust.agreements
    verify(run, "test", [("task-vector", {})], no_progress, ["first"])
    again = measure_network(run, "test", "first", "task-vector")
    assert again.facts.trust.agreements
    np.testing.assert_array_equal(again.effects("loss"), made.effects("loss"))


def test_no_interval_of_answers_that_could_turn_is_of_no_width(shortcut: Network) -> None:
    chosen = np.zeros(len(shortcut.ids), dtype=bool)
    ways = [shortcut.effects("accuracy", each) == 0 for each in ("undone", "alone")]
    same = np.flatnonzero(np.hstack(ways).all(axis=1) & (shortcut.total("accuracy") == 0))
    chosen[same[:5]] = True
    changed = [block.moved > 0 for block in shortcut.facts.blocks]
    # Two blocks share all that they do when the reading gives each its half.
    for reading, fewest in (("carried", 3), ("undone", 2), ("alone", 2)):
        rows = network_rows(shortcut, "accuracy", chosen, reading)
        assert any(changed) and (rows["effect"] == 0).all()
        wide = ((rows["low"] < 0) & (rows["high"] > 0)).tolist()
        assert wide == [*changed, sum(changed) >= fewest]


def test_models_that_do_not_fit_together_are_refused_by_name() -> None:
    one = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(Refused, match=r"b is in the final model only, so tuned cannot"):
        check_same_tensors(one, {"a": torch.zeros(2)}, "tuned")
    with pytest.raises(Refused, match=r"c is in the model without tuned only"):
        check_same_tensors({"a": torch.zeros(2)}, {"a": torch.zeros(2), "c": one["b"]}, "tuned")
    with pytest.raises(Refused, match=r"b has shape \(3,\) in the final model and \(2,\) without"):
        check_same_tensors(one, {"a": torch.zeros(2), "b": torch.zeros(2)}, "tuned")


def test_a_mixed_model_copies_nothing() -> None:
    one, other = ({"a": torch.full((2,), v), "b": torch.full((3,), v)} for v in (1.0, 2.0))
    mixed = Mixed(one, other, ["b"])
    assert mixed["a"] is one["a"] and mixed["b"] is other["b"] and list(mixed) == ["a", "b"]
    assert torch.cat(list(mixed.blocks("b"))).tolist() == [2.0] * 3


def test_how_far_a_block_moved_is_zero_only_where_nothing_changed() -> None:
    still = {"w": torch.ones(4), "count": torch.tensor(3)}
    assert moved(still, dict(still), ["w", "count"]) == 0
    assert moved({"w": torch.full((4,), 1.5)}, {"w": torch.ones(4)}, ["w"]) == pytest.approx(0.5)
    assert moved(still, still | {"count": torch.tensor(4)}, ["w", "count"]) > 0
    assert moved({"w": torch.ones(2)}, {"w": torch.zeros(2)}, ["w"]) == float("inf")


@pytest.fixture(scope="module")
def digits_run(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """A copy: what is measured here is stored with the run."""
    folder = tmp_path_factory.mktemp("network") / "digits"
    return replace(digits_run, path=Path(shutil.copytree(digits_run.path, folder)))


@pytest.fixture(scope="module")
def shortcut(digits_run: DemoRun) -> Network:
    return measure_network(open_run(digits_run.path), "test", "shortcut", "replay")


def stamped(found: Network, run: Run) -> np.ndarray:
    return (run.evaluation_set("test").table(["group"])["group"] == "stamped").to_numpy()


def test_accuracy_and_groups_are_those_of_the_effect_table(
    digits_run: DemoRun, shortcut: Network
) -> None:
    from stagelens.effects.computing import attribute
    from stagelens.effects.summary import with_accuracy

    run = open_run(digits_run.path)
    table = with_accuracy(attribute(run, "test", "replay", ["shortcut"]).table)
    for name in ("accuracy", "margin"):
        rows = table[table["behaviour"] == name]
        effects = rows.set_index("example_id")["effect"].reindex(shortcut.ids).to_numpy(float)
        np.testing.assert_allclose(shortcut.total(name), effects, atol=1e-6)
    chosen = stamped(shortcut, run)
    rows = network_rows(shortcut, "accuracy", chosen)
    assert rows["block"].iloc[-1] == REST and set(rows["n"]) == {int(chosen.sum())}
    total = float(shortcut.total("accuracy")[chosen].mean())
    assert rows["effect"].sum() == pytest.approx(total)
    assert ((rows["low"] <= rows["effect"]) & (rows["effect"] <= rows["high"])).all()
    place = strongest_block(rows)
    said = str(network_sentence(rows, total, "shortcut", ACCURACY, shortcut.facts.trust,
                                slice_parts("image", "group", "stamped")))  # fmt: skip
    assert place is not None and f"{rows['block'][place]} carries" in said
    assert said.startswith("Without shortcut, accuracy on stamped images would be ")


def test_one_example_has_no_interval_and_its_own_sentence(shortcut: Network) -> None:
    chosen = np.arange(len(shortcut.ids)) == 4
    rows = network_rows(shortcut, "margin", chosen)
    assert rows["low"].isna().all()
    kind = shortcut.behaviours["margin"]
    said = str(network_sentence(rows, float(shortcut.total("margin")[4]), "shortcut", kind,
                                shortcut.facts.trust, None))  # fmt: skip
    assert said.startswith("Without shortcut, the margin would be ")


def test_a_sentence_tells_of_blocks_that_go_another_way_or_act_together(shortcut: Network) -> None:
    kind = shortcut.behaviours["margin"]

    def said(effects: list[float], total: float) -> str:
        rows = pd.DataFrame({"block": ["one", "two", REST], "effect": effects})
        return str(network_sentence(rows, total, "s", kind, shortcut.facts.trust, None))

    assert "two carries 2.00 of it." in said([0.5, 2.0, 0.0], 2.5)
    assert "two carries 3.00, which others take back in part" in said([-0.5, 3.0, 0.0], 2.5)
    assert "carried by one, the other way: 3.00 lower" in said([3.0, -2.5, -1.0], -0.5)
    assert "no block alone accounts for 2.00" in said([0.5, 0.0, 2.0], 2.5)
    assert "no block of the network was changed" in said([0.0, 0.0, 0.0], 0.0)


def test_the_command_prints_tables_json_and_files(
    digits_run: DemoRun, shortcut: Network, command: Command, tmp_path: Path
) -> None:
    asked = ("network", digits_run.path, "--stage", "shortcut", "--estimator", "replay")
    answer = command(*asked, "--group", "group=stamped", "--behaviour", "accuracy")
    assert answer.status == 0, answer.err
    words = " ".join(answer.out.split())
    for part in ("accuracy on stamped examples would be", "interaction of the blocks",
                 "an intervention, not a training", "By replay: exact"):  # fmt: skip
        assert part in words
    out = tmp_path / "blocks.csv"
    answer = command(*asked, "--json", "--out", out)
    told = json.loads(answer.out[: answer.out.rindex("}") + 1])
    rows = network_rows(shortcut, "margin")
    assert [one["block"] for one in told["blocks"]] == rows["block"].tolist()[:-1]
    assert told["blocks"][2]["carried"] == pytest.approx(rows["effect"][2])
    assert set(told["blocks"][2]["tensors"]) == set(shortcut.facts.blocks[2].tensors)
    kept = pd.read_csv(out)
    mine = kept[(kept["behaviour"] == "margin") & (kept["block"] == REST)]
    np.testing.assert_allclose(mine["undone"], shortcut.rest("margin", "undone"), atol=1e-9)


def test_the_command_names_what_is_wrong(digits_run: DemoRun, command: Command) -> None:
    asked = ("network", digits_run.path, "--stage")
    assert "has no finished stage 'nope'" in command(*asked, "nope").err
    wrong = command(*asked, "shortcut", "--behaviour", "beauty")
    assert wrong.status == 1 and "there is no behaviour 'beauty' here; use accuracy" in wrong.err
    assert "--group takes COLUMN=VALUE" in command(*asked, "shortcut", "--group", "stamped").err


def test_json_has_no_infinity(shortcut: Network) -> None:
    blocks = (shortcut.facts.blocks[0].model_copy(update={"moved": float("inf")}),)
    found = Network(
        shortcut.facts.model_copy(update={"blocks": blocks}), shortcut.table, shortcut.labels
    )
    tables = {way: network_rows(found, "margin", None, way) for way in READINGS}
    told = for_json(found, tables, float("nan"), found.behaviours["margin"])
    assert json.loads(json.dumps(told, allow_nan=False))["blocks"][0]["moved"] is None
    again = type(found.facts).model_validate_json(found.facts.model_dump_json())
    assert again.blocks[0].moved == float("inf")
