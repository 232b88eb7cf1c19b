"""The regression gate on tiny runs: a slice that one stage spoiled, and all that is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.gate.asked import Asked
from stagelens.analyses.gate.blame import StageDrop, blamed, stage_drops
from stagelens.analyses.gate.finals import recorded, redrawn, shared_stages
from stagelens.analyses.gate.gate import gate
from stagelens.analyses.gate.report import GateReport, SliceFinding
from stagelens.analyses.gate.slices import GateSlice
from stagelens.analyses.gate.stored import stored_gates
from stagelens.analyses.gate.tables import counted
from stagelens.analyses.slices.saved import save_slice
from stagelens.contracts import ACCURACY, Progress, RunError, StageLensError, no_progress
from stagelens.effects.computing import attribute, boundaries
from stagelens.effects.results import (
    EFFECT_COLUMNS,
    BehaviourFacts,
    Result,
    ResultFacts,
    save_result,
)
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.run import Run, open_run
from tests.support.branching import record_branching
from tests.support.gated import record
from tests.support.loops import refused
from tests.unit.conftest import Command

OLD, NEW = "old", "new"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``old``, another seed of it, and ``new``, whose stage adapt spoils slice a."""
    path = tmp_path_factory.mktemp("gate")
    record(path / OLD, 1)
    record(path / "again", 2)
    record(path / NEW, 3, spoiled=True)
    return path


@pytest.fixture
def runs(folder: Path) -> dict[str, Run]:
    return {name: open_run(folder / name) for name in (OLD, "again", NEW)}


def judge(old: Run, new: Run, **asked: object) -> GateReport:
    given = {"slices": ["group"], "draws": 3, **asked}
    return gate((OLD, old), (NEW, new), Asked(**given))  # type: ignore[arg-type]


def by_group(found: GateReport) -> dict[str | None, SliceFinding]:
    return {each.group: each for each in found.slices}


@pytest.mark.slow
def test_the_spoiled_slice_is_found_and_laid_to_its_stage(runs: dict[str, Run]) -> None:
    found = judge(runs[OLD], runs[NEW])
    slices = by_group(found)
    assert found.verdict == "regressed" and found.exit_status == 3
    assert {name: each.verdict == "regressed" for name, each in slices.items()} == {
        "a": True,
        "b": False,
        "c": False,
    }
    spoiled = slices["a"]
    assert spoiled.drop == pytest.approx(0.1, abs=0.02)
    assert spoiled.low is not None and 0.02 < spoiled.low < 0.1
    assert found.comparisons == 3
    assert (found.old.trainings, found.old.source) == (4, "redraws")
    stages = {each.stage: each for each in found.stages}
    assert [name for name, each in stages.items() if each.did_it] == ["adapt"]
    assert stages["adapt"].how == "exchange" and stages["adapt"].trust == "exact"
    assert stages["adapt"].drop == pytest.approx(0.1, abs=0.03)
    assert "what the first stage began from" in stages["learn"].reason
    assert any("stage adapt of the new recipe did it" in note for note in found.notes)


@pytest.mark.slow
def test_another_seed_of_the_recipe_is_no_regression(runs: dict[str, Run]) -> None:
    found = judge(runs[OLD], runs["again"], behaviours=["accuracy", "margin"], max_drop={"": 0})
    assert found.verdict == "could not tell" and found.exit_status == 4
    assert not found.stages and len(found.slices) == 6
    assert all(each.p_adjusted == 1 or each.p_adjusted > 0.01 for each in found.slices)


def test_recorded_repeats_stand_in_for_redraws(runs: dict[str, Run]) -> None:
    found = gate(
        (OLD, runs[OLD]),
        (NEW, runs[NEW]),
        Asked(slices=["group=a"], draws=0, stages=False),
        old_repeats=[runs["again"]],
    )
    assert (found.old.trainings, found.old.source) == (2, "recorded runs")
    assert (found.new.trainings, found.new.source) == (1, "recorded")
    (one,) = found.slices
    means = [recorded(runs[n], runs[n].evaluation_set("test")) for n in (OLD, "again", NEW)]
    a, b, c = (each.values["accuracy"][:200].mean() for each in means)
    assert one.drop == pytest.approx((a + b) / 2 - c)
    # Of one other training: the other's mean square times 1/2 + 1.
    assert one.training_sd == pytest.approx(np.sqrt(1.5 * (a - b) ** 2 / 2))
    with refused("the same recording", by=StageLensError):
        gate((OLD, runs[OLD]), (NEW, runs[NEW]), Asked(), old_repeats=[runs[OLD]])
    with refused("no run of this recipe", by=StageLensError):
        gate((OLD, runs[OLD]), (NEW, runs[NEW]), Asked(), old_repeats=[odd(runs)])


def odd(runs: dict[str, Run]) -> Run:
    """A run of other stages."""
    path = runs[OLD].path.parent / "odd"
    if not path.exists():
        record_branching(path, soup=False)
    return open_run(path, leaf="rl")


def test_without_training_noise_it_cannot_be_told_but_the_two_models_can(
    runs: dict[str, Run],
) -> None:
    found = judge(runs[OLD], runs[NEW], draws=0)
    assert found.verdict == "could not tell"
    assert all("--estimand models" in each.reason for each in found.slices)
    assert by_group(found)["a"].drop == pytest.approx(0.1, abs=0.02)
    models = judge(runs[OLD], runs[NEW], draws=0, estimand="models", stages=False)
    assert by_group(models)["a"].verdict == "regressed"
    assert models.slices[0].training_sd is None and models.old.trainings == 1


def test_the_same_model_is_fine(runs: dict[str, Run]) -> None:
    found = judge(runs[OLD], runs[OLD])
    assert found.verdict == "fine" and found.exit_status == 0
    assert {(each.drop, each.low, each.high) for each in found.slices} == {(0.0, 0.0, 0.0)}
    assert found.same_model and any("Both models are the same" in note for note in found.notes)
    assert counted(found).startswith("both models are the same; of 3 slices")


def test_redraws_are_stored_and_are_no_matter_of_what_was_measured_before(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    path = shutil.copytree(runs[OLD].path, tmp_path / "copy")
    shutil.rmtree(path / "results", ignore_errors=True)
    run = open_run(path)
    examples = run.evaluation_set("test")
    first = [each.values["margin"] for each in redrawn(run, examples, 2)]
    assert not np.array_equal(first[0], first[1])
    again = [each.values["margin"] for each in redrawn(open_run(path), examples, 2)]
    np.testing.assert_array_equal(first, again)
    alone = recorded(run, examples)
    boundaries(run, "test")
    stored = recorded(run, examples)
    assert list(alone.kinds) == list(stored.kinds) and next(iter(stored.kinds)) == "accuracy"
    for name in alone.kinds:
        np.testing.assert_array_equal(alone.values[name], stored.values[name])


def test_two_leaves_share_what_is_not_drawn_again(tmp_path: Path) -> None:
    path = record_branching(tmp_path / "run", soup=False).path
    dpo, rl = (open_run(path, leaf=name) for name in ("dpo", "rl"))
    assert shared_stages(dpo, rl) == 1 and shared_stages(rl, rl) == 2
    found = judge(dpo, rl, slices=["all", "group"])
    assert [each.group for each in found.slices] == [None, "even", "odd"]
    assert (found.old.leaf, found.new.leaf) == ("dpo", "rl")
    assert found.old.trainings == 4


def test_a_stage_that_the_old_run_does_not_have_is_judged_by_its_own_effect(tmp_path: Path) -> None:
    path = record_branching(tmp_path / "run", soup=False).path
    dpo, rl = (open_run(path, leaf=name) for name in ("dpo", "rl"))
    examples = rl.evaluation_set("test")
    known = recorded(rl, examples)
    kinds = [known.kinds["accuracy"], known.kinds["loss"]]
    found = stage_drops(dpo, rl, examples, 1, known.values, kinds, (), Progress(no_progress))
    sft, own = found["loss"]
    assert found["accuracy"] == [sft, own]
    assert (sft.how, own.how) == ("same", "stage effect")
    assert not sft.drops["loss"].any() and "the old run has no such stage" in own.reason
    table = attribute(rl, "test", "replay", ["rl"]).table
    effect = table[table["behaviour"] == "loss"]["effect"].to_numpy()
    np.testing.assert_array_equal(own.drops["loss"], effect)  # a higher loss is a drop


def test_slices_that_are_not_there_or_that_answers_chose_are_refused(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    path = shutil.copytree(runs[NEW].path, tmp_path / "copy")
    run = open_run(path)
    examples = run.evaluation_set("test")
    ids = examples.table([])["example_id"].tolist()
    save_slice(run, examples, "mine", ids[:50], {"group": "a"})
    save_slice(run, examples, "wrong ones", ids[:50], {"answers": "right"}, "replay", "margin")
    found = judge(runs[OLD], run, slices=["mine"], stages=False)
    assert [(each.by, each.group, each.examples) for each in found.slices] == [
        ("slice", "mine", 50)
    ]
    with refused("chosen by what a model answers", by=StageLensError):
        judge(runs[OLD], run, slices=["wrong ones"])
    with refused("no column or saved slice 'colour'", "group", by=StageLensError):
        judge(runs[OLD], run, slices=["colour"])
    with refused("no example of set 'test' has group 'd'", by=StageLensError):
        judge(runs[OLD], run, slices=["group=d"])


def test_a_number_that_is_no_share_says_how_much_it_may_drop(runs: dict[str, Run]) -> None:
    with refused("--max-drop margin=0.1", by=StageLensError):
        judge(runs[OLD], runs[NEW], behaviours=["margin"])
    with refused("no behaviour 'kindness'", "margin", by=StageLensError):
        judge(runs[OLD], runs[NEW], behaviours=["kindness"])
    with refused("has no scores 'score:exact'", "stagelens answer", by=StageLensError):
        judge(runs[OLD], runs[NEW], behaviours=["score:exact"])
    for asked, name in (((), "margin"), (["accuracy"], "margn")):  # unjudged, mistyped
        hint = f"to judge {name} too: --behaviour accuracy --behaviour {name}"
        with refused(f"--max-drop {name}=0.1", "is accuracy", hint, by=StageLensError):
            judge(runs[OLD], runs[NEW], behaviours=asked, max_drop={"": 2, name: 0.1})
    asked = {"behaviours": ["loss"], "max_drop": {"loss": 0.1}, "estimand": "models"}
    found = judge(runs[OLD], runs[NEW], stages=False, **asked)
    assert by_group(found)["a"].verdict == "regressed"  # lower is better, a drop is a rise


@pytest.mark.slow
def test_the_command_says_it_in_words_in_json_and_by_its_status(
    command: Command, folder: Path
) -> None:
    words = ("gate", folder / OLD, folder / NEW, "--set", "test", "--slice", "group", "--draws", 3)
    told = command(*words)
    assert told.status == 3
    assert "REGRESSED: of 3 slices" in told.out and "stage adapt of the new recipe" in told.out
    found = json.loads(command(*words, "--json").out)
    assert (found["format"], found["version"]) == ("stagelens gate", 1)
    report = GateReport.model_validate(found)
    assert report.exit_status == 3
    new = open_run(folder / NEW)
    assert stored_gates(new, new.evaluation_set())[0].report == report
    assert command(*words, "--exit-zero").status == 0
    assert command(*words[:2], "--leaf", "polish").status == 2
    assert command(*words, "--estimand", "truth").status == 2
    assert command(*words, "--max-drop", "much").status == 2
    missing = command(*words[:3], "--set", "other")
    assert missing.status == 1 and "no evaluation set 'other'" in missing.err


def with_scores(
    path: Path, lost: int, stages: tuple[str, ...], empty: str = "", **scorer: object
) -> Run:
    """A run of whose answers the last ``lost`` of slice a score 0, because of stage ``adapt``.

    Those of slice ``empty`` have no score.
    """
    run = open_run(path)
    own = run.evaluation_set("test").table()
    final = np.ones(len(own))
    final[200 - lost : 200] = 0
    final[(own["group"] == empty).to_numpy()] = np.nan
    blocks = [
        pd.DataFrame(dict.fromkeys(EFFECT_COLUMNS), own.index).assign(
            set="test",
            example_id=own["example_id"],
            stage=name,
            behaviour="score:polite",
            final=final,
            without=1.0 if name == "adapt" else final,
            effect=final - 1.0 if name == "adapt" else 0.0,
        )
        for name in stages
    ]
    facts = ResultFacts(
        kind="scores",
        run_digest=run.digest,
        set_name="test",
        set_digest=run.evaluation_set("test").digest,
        estimator="replay",
        settings={"scorer": {"name": "polite", **scorer}, "answers": {"max_tokens": 4}},
        behaviours=[BehaviourFacts(name="score:polite", better="higher", lowest=0, highest=1)],
        stages=[
            StageTrust(stage=n, estimator="replay", trust="exact", reason="", expected_error=0.0)
            for n in stages
        ],
    )
    save_result(run, Result(facts, pd.concat(blocks, ignore_index=True)))
    return run


def test_scores_are_compared_and_laid_to_stages_as_they_were_stored(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    paths = [shutil.copytree(runs[n].path, tmp_path / n) for n in (OLD, NEW)]
    old = with_scores(paths[0], 0, ("adapt",))
    new = with_scores(paths[1], 30, ("adapt", "polish"))
    asked = {"behaviours": ["score:polite"], "estimand": "models"}
    found = judge(old, new, **asked)
    assert by_group(found)["a"].verdict == "regressed" and by_group(found)["a"].drop == 0.15
    assert [each.verdict for each in found.slices][1:] == ["fine", "fine"]
    stages = {each.stage: each for each in found.stages}
    assert stages["adapt"].did_it and stages["adapt"].how == "stage effect"
    assert stages["adapt"].drop == 0.15 and stages["polish"].drop == 0
    assert stages["learn"].drop is None and "No score" in stages["learn"].reason
    # A group without any score of either model says nothing, unless somebody asks about it.
    with_scores(paths[0], 0, ("adapt",), "c")
    with_scores(paths[1], 30, ("adapt", "polish"), "c")
    every = judge(old, new, slices=(), **asked)
    assert "c" not in by_group(every) and {"a", "b"} <= set(by_group(every))
    assert any("no value of either model on group=c" in note for note in every.notes)
    named = judge(old, new, slices=["group=c"], **asked)
    assert [each.verdict for each in named.slices] == ["could not tell"]
    shutil.rmtree(paths[1] / "results" / "tables")
    with_scores(paths[0], 0, ("adapt",))
    # Scores are not redrawn.
    with_scores(paths[1], 30, ("adapt", "polish"))
    hint = "--max-drop margin=0.1; or judge the answers by a score: --behaviour score:polite"
    with refused(hint, by=StageLensError):
        judge(old, new, behaviours=["margin"], estimand="models")
    assert (
        "--estimand models"
        in judge(old, new, behaviours=["score:polite"], estimand="recipes").slices[0].reason
    )
    # Of scores alone, the usual question is another.
    assert judge(old, new, behaviours=["score:polite"]).estimand == "models"
    shutil.rmtree(paths[1] / "results" / "tables")
    other = with_scores(paths[1], 30, ("adapt",), version=2)
    with refused("no scores 'score:polite' by one scorer", "score both runs alike", by=RunError):
        judge(old, other, **asked)


def stage(name: str, drops: np.ndarray, expected_error: float | None = 0.0) -> StageDrop:
    trust = StageTrust(
        stage=name,
        estimator="replay",
        trust="exact" if expected_error == 0 else "estimated",
        reason="",
        expected_error=expected_error,
    )
    return StageDrop(name, "exchange", {"accuracy": drops}, trust, "")


def test_a_stage_is_named_only_where_it_stands_out() -> None:
    every = GateSlice(None, None, np.ones(200, bool))
    lost = (np.arange(200) < 30).astype(float)
    other = (np.arange(200) >= 170).astype(float)

    def named(*drops: StageDrop) -> list[str]:
        return [b.found.stage for b in blamed(drops, ACCURACY, every, None) if b.did_it]

    assert named(stage("one", lost), stage("two", 0 * lost)) == ["one"]
    assert named(stage("one", lost), stage("two", other)) == ["one", "two"]
    assert named(stage("one", -lost), stage("two", 0 * lost)) == []
    assert named(stage("one", lost, None), stage("two", 0 * lost)) == []
    few = (np.arange(200) < 3).astype(float)
    assert named(stage("one", few), stage("two", 0 * lost)) == []


def test_the_documented_fields_are_those_of_the_report() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "gate.md").read_text()
    documented = text[text.index("## The JSON") :]
    schema = GateReport.model_json_schema()
    every = [schema, *(schema["$defs"][name] for name in ("Side", "SliceFinding", "StageFinding"))]
    names = {name for one in every for name in one["properties"]}
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
