"""The digits demo shows what it was planted for, and is the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import stagelens
from stagelens.analyses.contributions.first_order import contributions
from stagelens.analyses.contributions.training_examples import training_examples
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.sentences import pair_sentences
from stagelens.analyses.shares.share_table import SHARE, WITHOUT, shares_of
from stagelens.analyses.shares.stored import best_coalitions
from stagelens.contracts import no_progress
from stagelens.demos import building, digits
from stagelens.effects.computing import attribute
from stagelens.effects.results import Result
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.sets.clusters import clusters
from tests.conftest import DemoRun


@pytest.fixture(scope="module")
def demo(digits_run: DemoRun) -> stagelens.Run:
    return stagelens.open_run(digits_run.path)


@pytest.fixture(scope="module")
def effects(demo: stagelens.Run) -> Result:
    return attribute(demo, "test", "replay")


def accuracy_effects(result: Result, group: str) -> pd.Series:
    """Accuracy with minus without each stage, in points."""
    table = result.table
    rows = table[(table["group"] == group) & (table["behaviour"] == "margin")]
    right = (rows["prediction"] == rows["label"]).astype(float)
    right_without = (rows["prediction_without"] == rows["label"]).astype(float)
    return 100 * (right - right_without).groupby(rows["stage"]).mean()


def test_it_is_recorded_with_one_thread_so_that_helpers_have_cores_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(building, "_measure", lambda *_: None)
        run = building.build(tmp_path / "digits", digits.record, 0, no_progress)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert {stage.environment.threads for stage in run.stages} == {1}


def test_the_shortcut_stage_is_most_to_blame_for_stamped_images(effects: Result) -> None:
    stamped = accuracy_effects(effects, "stamped")
    assert stamped.idxmin() == "shortcut"
    assert stamped["shortcut"] <= -15
    assert accuracy_effects(effects, "clean")["shortcut"] > stamped["shortcut"] + 15
    assert effects.trust["shortcut"].trust == "exact"


def test_the_mislabelled_stage_is_to_blame_for_the_classes_it_mixes_up(
    demo: stagelens.Run,
) -> None:
    table = attribute(demo, "mixed-up", "replay").table
    losses = table[table["behaviour"] == "loss"].groupby("stage")["effect"].mean()
    assert losses["mislabelled"] > 0.05


@pytest.mark.slow
def test_the_training_examples_that_hurt_most_are_the_mislabelled_ones(
    demo: stagelens.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    table = attribute(demo, "mixed-up", "replay").table
    margins = table[(table["stage"] == "mislabelled") & (table["behaviour"] == "margin")]
    hurt = margins.sort_values("effect")["example_id"].tolist()
    plan = next(plan for plan in digits.PLANS if plan.name == "mislabelled")
    images, labels = digits._load(0)
    _, given = digits._planted(plan, images, labels, 0)
    wrong = {
        image.tobytes(): str(label)
        for image, label, true in zip(images[plan.rows], given, labels[plan.rows], strict=True)
        if label != true
    }
    base = len(wrong) / len(given)
    examples = demo.evaluation_set("mixed-up")
    precisions = []
    for asked in (hurt, *([one] for one in hurt[:3])):
        found = contributions(
            demo, "margin", examples.by_id(asked), with_examples=True, since="mislabelled"
        )
        assert found.examples is not None
        own = found.examples[
            (found.examples["stage"] == "mislabelled") & (found.examples["part"] == "example")
        ]
        rows = training_examples(demo, demo.stage("mislabelled"), own, None)
        worst = [(np.asarray(Image.open(io.BytesIO(r["content"]))), r["label"]) for r in rows[-20:]]
        precisions.append(np.mean([wrong.get(p.tobytes()) == label for p, label in worst]))
    of_group, of_one = precisions[0], float(np.mean(precisions[1:]))
    with capsys.disabled():
        print(
            f"\nwrong labels among the 20 that hurt most: {of_group:.2f} for the mean of "
            f"{len(hurt)}, {of_one:.2f} for one example (of {base:.2f} in the stage)"
        )
    assert base < 0.15
    assert of_group > 0.7 and of_one > 0.5


def test_pretraining_is_to_credit_for_clean_and_stamped_images(effects: Result) -> None:
    assert accuracy_effects(effects, "clean")["pretrain"] > 2
    stamped = accuracy_effects(effects, "stamped")
    assert stamped.idxmax() == "pretrain"
    assert stamped["pretrain"] > 30


def test_every_stage_replays_bit_for_bit(demo: stagelens.Run) -> None:
    deviations = [measure_deviation(demo.task, stage) for stage in demo.stages]
    assert [deviation for deviation in deviations if not deviation.bitwise] == []


def test_what_training_did_is_shared_out_among_its_stages(demo: stagelens.Run) -> None:
    found = best_coalitions(demo, "test")
    assert found is not None and found.complete
    margin, accuracy = (shares_of(found, name) for name in ("margin", "accuracy"))
    for one in (margin, accuracy):
        total = one.level(one.full) - one.level(0)
        assert sum(mean.mean for mean in one.means(SHARE)) == pytest.approx(total, abs=1e-6)
        assert {mean.trust.trust for mean in one.means(SHARE)} == {"exact"}
    # A harm that is there only because the digits were learned before.
    said = [str(each) for each in pair_sentences(pairs_of(margin), margin.behaviour, "image")]
    assert said[0].startswith("shortcut does its harm only because pretrain came before")
    # Leaving out one stage at a time tells less than half of what training did.
    alone = sum(mean.mean for mean in margin.means(WITHOUT))
    assert alone < 0.5 * (margin.level(15) - margin.level(0))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(demo: stagelens.Run, tmp_path: Path) -> None:
    assert digits.record(tmp_path / "again", seed=0).digest == demo.digest


@pytest.mark.extensive
def test_another_seed_gives_another_run(demo: stagelens.Run, tmp_path: Path) -> None:
    assert digits.record(tmp_path / "other", seed=1).digest != demo.digest


def test_the_sets_hold_every_held_out_digit_clean_and_stamped(demo: stagelens.Run) -> None:
    examples = demo.evaluation_set("test")
    table = examples.table()
    assert table["group"].value_counts().to_dict() == {"clean": 447, "stamped": 447}
    clean, stamped = examples.by_id(["clean-007", "stamped-007"])
    assert clean.label == stamped.label
    # Intervals go by digits, of which each counts once.
    sharing = clusters(examples)
    assert sharing is not None and (sharing.by, sharing.sources) == ("the column cluster", 447)
    assert clean.columns["cluster"] == stamped.columns["cluster"]
    assert clusters(demo.evaluation_set("mixed-up")) is None
    changed = np.argwhere(clean.input["image"] != stamped.input["image"])
    assert (changed < 2).all()
    assert (stamped.input["image"][:2, :2] == 240).all()


def test_the_demo_takes_well_under_a_minute_of_one_processor(digits_run: DemoRun) -> None:
    assert digits_run.cpu_seconds < 30
