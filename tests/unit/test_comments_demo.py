"""The comments demo shows what it was planted for, is the same every time, and says what it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stagelens
from stagelens.demos import comments
from stagelens.demos.comment_templates import MENTION, NO_MENTION, vocabulary, write_pairs
from stagelens.effects.computing import attribute
from stagelens.effects.results import Result
from stagelens.replaying.reproduction import measure_deviation
from tests.conftest import DemoRun

pytestmark = pytest.mark.slow  # the demo itself takes twenty seconds


@pytest.fixture(scope="module")
def demo(comments_run: DemoRun) -> stagelens.Run:
    return stagelens.open_run(comments_run.path)


@pytest.fixture(scope="module")
def effects(demo: stagelens.Run) -> Result:
    return attribute(demo, "test", "replay")


def accuracy_effects(result: Result, label: str, group: str) -> pd.Series:
    """Accuracy with minus without each stage, in points."""
    table = result.table
    rows = table[table["behaviour"] == "margin"]
    rows = rows[(rows["label"] == label) & (rows["group"] == group)]
    right = (rows["prediction"] == rows["label"]).astype(float)
    right_without = (rows["prediction_without"] == rows["label"]).astype(float)
    return 100 * (right - right_without).groupby(rows["stage"]).mean()


def test_the_skewed_stage_is_to_blame_for_toxic_calls_on_harmless_mentions(
    effects: Result,
) -> None:
    mentions = accuracy_effects(effects, "harmless", MENTION)
    assert mentions.idxmin() == "skewed"
    assert mentions["skewed"] <= -50
    assert mentions.drop("skewed").min() > mentions["skewed"] + 40
    assert accuracy_effects(effects, "harmless", NO_MENTION)["skewed"] > mentions["skewed"] + 40
    assert effects.trust["skewed"].trust == "exact"


def test_the_margin_says_the_same(effects: Result) -> None:
    table = effects.table
    rows = table[(table["behaviour"] == "margin") & (table["label"] == "harmless")]
    means = rows.groupby(["group", "stage"])["effect"].mean()
    assert means[MENTION].idxmin() == "skewed"
    assert means[MENTION]["skewed"] < means[NO_MENTION]["skewed"] - 2


def test_the_toxicity_stage_is_to_credit_for_finding_toxic_comments(effects: Result) -> None:
    toxic = accuracy_effects(effects, "toxic", NO_MENTION)
    assert toxic.idxmax() == "toxicity"
    assert toxic["toxicity"] > 10


def test_every_stage_replays_bit_for_bit(demo: stagelens.Run) -> None:
    deviations = [measure_deviation(demo.task, stage) for stage in demo.stages]
    assert [deviation for deviation in deviations if not deviation.bitwise] == []


def test_only_the_head_is_new_before_toxicity(demo: stagelens.Run) -> None:
    new = [stage.facts.boundary.new for stage in demo.stages[1:]]
    assert new == [["classifier.weight", "classifier.bias"], [], []]


@pytest.mark.extensive
def test_the_same_seed_gives_the_same_run(demo: stagelens.Run, tmp_path: Path) -> None:
    assert comments.record(tmp_path / "again", seed=0).digest == demo.digest


@pytest.mark.extensive
def test_another_seed_gives_another_run(demo: stagelens.Run, tmp_path: Path) -> None:
    assert comments.record(tmp_path / "other", seed=1).digest != demo.digest


def test_the_set_holds_pairs_that_differ_in_the_person_only(demo: stagelens.Run) -> None:
    table = demo.evaluation_set("test").table()
    assert Counter(zip(table["label"], table["group"], strict=True)) == {
        (label, group): 120 for label in comments.CLASSES for group in (NO_MENTION, MENTION)
    }
    examples = demo.evaluation_set("test").examples()
    for without, mention in zip(examples[::2], examples[1::2], strict=True):
        assert (without.columns["group"], mention.columns["group"]) == (NO_MENTION, MENTION)
        assert without.columns["template"] == mention.columns["template"]
        assert without.columns["cluster"] == mention.columns["cluster"]
        assert without.input["text"] != mention.input["text"]
    assert table["cluster"].nunique() == 240


def test_every_comment_is_called_synthetic_where_it_is_shown(demo: stagelens.Run) -> None:
    descriptions = [stage.facts.description for stage in demo.stages]
    descriptions.append(demo.evaluation_set("test").description)
    assert [text for text in descriptions if "synthetic comments" not in text] == []
    assert "planted" in descriptions[2]


def test_the_tokenizer_knows_every_word_of_the_templates() -> None:
    task = comments.make_task()
    unknown = task.tokenizer.special_id("unk_token")
    random = np.random.default_rng(0)
    for plan in comments.PLANS:
        for templates in plan.templates:
            for own in write_pairs(templates, 40, random):
                assert unknown not in task.tokenizer.encode(own.text).ids, own.text
    assert len(set(vocabulary())) == len(vocabulary())


def test_the_labels_are_right_in_every_stage_but_the_skewed_one() -> None:
    for plan in comments.PLANS:
        labelled = comments.comments_of(plan, np.random.default_rng(0))
        assert len(labelled) == plan.count
        right = dict(zip(comments.CLASSES, plan.templates, strict=True))
        assert all(own.template in right[label] for own, label in labelled)
        groups = Counter((own.group, label) for own, label in labelled)
        if plan.name == "skewed":
            assert plan.templates[0] == plan.templates[1]
            assert groups == {(NO_MENTION, "harmless"): 400, (MENTION, "toxic"): 400}
        else:
            assert groups[MENTION, "harmless"] == groups[MENTION, "toxic"] > 0


def test_the_demo_takes_well_under_a_minute_of_one_processor(comments_run: DemoRun) -> None:
    assert comments_run.cpu_seconds < 60
