"""Runs whose stages branch off: recorded, opened by leaf, and replayed along one leaf's path."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import stagelens
from stagelens.contracts import BASE, RecordingWarning, Refused, RunError
from stagelens.effects.coalition_measuring import measure_coalitions
from stagelens.effects.computing import attribute
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.report.dossier.building import dossier
from stagelens.runs.lineage import NEWEST
from stagelens.runs.sizes import sizes
from stagelens.runs.states import load_into
from tests.support.branching import SOUP, base, record_branching, record_stage, step_through
from tests.support.loops import differing, make_batches, make_task, refused, train


@pytest.fixture(scope="module")
def branching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_branching(tmp_path_factory.mktemp("lineages") / "run").path


def names(run: stagelens.Run) -> list[str]:
    return [stage.name for stage in run.stages]


def test_each_leaf_has_a_history_of_its_own(branching: Path) -> None:
    assert names(stagelens.open_run(branching, leaf="dpo")) == ["sft", "dpo"]
    rl = stagelens.open_run(branching, leaf="rl")
    assert names(rl) == ["sft", "rl"]
    assert rl.stages[1].index == 1 and rl.stages[1].previous is rl.stages[0]
    assert names(stagelens.open_run(branching, leaf="sft")) == ["sft"]
    assert rl.lineage.leaves == ["soup"]
    assert rl.lineage.ancestors("soup") == ["sft", "dpo", "rl"]


def test_of_several_leaves_one_has_to_be_named(tmp_path: Path) -> None:
    path = record_branching(tmp_path / "run", soup=False).path
    with refused("has several leaves: 'dpo', 'rl'", "--leaf NAME", by=RunError):
        stagelens.open_run(path)
    with refused("no finished stage 'ppo'", "'sft', 'dpo', 'rl'", by=RunError):
        stagelens.open_run(path, leaf="ppo")
    assert names(stagelens.open_run(path, leaf=NEWEST)) == ["sft", "rl"]


def test_a_history_has_the_digest_of_a_run_in_a_line(branching: Path, tmp_path: Path) -> None:
    recorder = stagelens.Recorder(tmp_path / "line", make_task())
    record_stage(recorder, "rl", record_stage(recorder, "sft", base(), 1), 3)
    line = recorder.run()
    assert stagelens.open_run(branching, leaf="rl").digest == line.digest
    assert "parents" not in json.dumps(json.loads((line.path / "run.json").read_text())["stages"])


def test_branches_share_what_their_parent_stored(branching: Path) -> None:
    sft, rl = stagelens.open_run(branching, leaf="rl").stages
    assert sft.facts.end is not None and rl.facts.start.model == sft.facts.end.model
    found = {each.where for each in sizes(stagelens.open_run(branching, leaf=NEWEST))}
    assert {"sft", "dpo", "rl", "soup"} <= found


def test_a_replay_along_a_branch_is_training_by_hand(branching: Path) -> None:
    run = stagelens.open_run(branching, leaf="rl")
    (without,) = counterfactuals(run, make_estimator("replay"), [run.stage("sft")])
    by_hand = base()
    step_through(by_hand, 3)
    assert without.trust.trust == "exact"
    assert without.weights is not None
    assert differing(without.weights, dict(by_hand.state_dict())) == []


def test_results_of_two_leaves_stand_side_by_side(branching: Path) -> None:
    tables = {
        leaf: attribute(stagelens.open_run(branching, leaf=leaf), "test", "task-vector").table
        for leaf in ("dpo", "rl")
    }
    again = attribute(stagelens.open_run(branching, leaf="dpo"), "test", "task-vector").table
    assert tables["dpo"].equals(again)
    assert not tables["dpo"]["final"].equals(tables["rl"]["final"])


def test_a_branch_of_the_base_and_one_after_a_merge(branching: Path, tmp_path: Path) -> None:
    recorder = record_branching(tmp_path / "run")
    recorder = stagelens.Recorder(recorder.path, make_task(), resume=True)
    model = base()
    said = recorder.restore(model, stage=BASE)
    assert said == "restored what the run begins with"
    record_stage(recorder, "other", model, 5, parent=BASE)
    recorder.restore(model, stage="soup")
    record_stage(recorder, "after", model, 6, parent="soup")
    assert names(recorder.run()) == ["sft", "soup", "after"]
    assert names(stagelens.open_run(recorder.path, leaf="other")) == ["other"]
    assert recorder.run().lineage.leaves == ["other", "after"]
    first = stagelens.open_run(recorder.path, leaf="other").stages[0]
    assert first.facts.start == stagelens.open_run(recorder.path, leaf="sft").stages[0].facts.start


def test_a_stage_that_does_not_start_from_its_parent_is_told(tmp_path: Path) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", make_task())
    sft = record_stage(recorder, "sft", base(), 1)
    dpo = record_stage(recorder, "dpo", sft, 2)
    with refused("is no finished stage", "'sft', 'dpo'"):
        record_stage(recorder, "rl", sft, 3, parent="ppo")
    with refused("stage 'sft'"):
        record_stage(recorder, "rl", dpo, 3, parent="sft")
    with refused("does not start from the base"):
        record_stage(recorder, "zero", sft, 3, parent=BASE)
    with pytest.warns(RecordingWarning, match="sft"):
        model = copy.deepcopy(dpo)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recorder.stage("rl", model=model, optimizer=optimizer, parent="sft"):
            pass


def test_a_recording_that_is_resumed_keeps_all_branches(tmp_path: Path) -> None:
    recorder = record_branching(tmp_path / "run", soup=False)
    again = stagelens.Recorder(recorder.path, make_task(), resume=True)
    assert again.last is not None and again.last.name == "rl"
    model = base()
    load_into(model, stagelens.open_run(recorder.path, leaf="dpo").last.end().model)
    record_stage(again, "more", model, 7, parent="dpo")
    assert names(again.run()) == ["sft", "dpo", "more"]
    assert again.run().lineage.leaves == ["rl", "more"]


def test_a_merge_has_the_weights_of_its_parents(branching: Path) -> None:
    run = stagelens.open_run(branching)
    assert names(run) == ["sft", "soup"]
    merge = run.last.facts.merge
    assert merge is not None and merge.exact
    assert merge.weights == pytest.approx(SOUP, abs=1e-5)
    assert differing(run.last.start().model, run.stages[0].end().model) == []


def test_a_dossier_says_that_a_merge_is_no_training(branching: Path) -> None:
    run = stagelens.open_run(branching)
    part = next(part for part in dossier(run, None).stages if part.name == "soup")
    said = {fact.name: fact.value for fact in part.facts}
    assert said["Minimised"] == "nothing: merged, not trained"
    assert "weighted average of its parents: 0.600 dpo + 0.400 rl" in str(said["How it began"])
    assert said["Steps"] == "no steps: merged, not trained"


def test_what_goes_along_a_line_is_refused_through_a_merge_by_name(branching: Path) -> None:
    run = stagelens.open_run(branching)
    (without,) = counterfactuals(run, make_estimator("replay"), [run.stage("sft")])
    assert without.trust.trust == "refused"
    for words in ("'soup' is a merge of 'dpo' and 'rl'", "--leaf dpo or --leaf rl"):
        assert words in without.trust.reason
    (vector,) = counterfactuals(run, make_estimator("task-vector"), [run.stage("sft")])
    assert vector.trust.trust == "estimated"


def test_a_run_json_that_names_a_parent_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from stagelens.runs.files import read_json, write_json
    from stagelens.runs.schema import RunFile

    path = record_branching(tmp_path / "run", soup=False).path
    file = read_json(path / "run.json", RunFile)
    last = file.stages[-1].model_copy(update={"parents": ["ppo"]})
    write_json(path / "run.json", file.model_copy(update={"stages": [*file.stages[:-1], last]}))
    with refused("stage 'rl' starts from 'ppo'", by=RunError):
        stagelens.open_run(path, leaf=NEWEST)
    for again in (file.stages[-1], last.model_copy(update={"parents": ["rl"]})):
        write_json(path / "run.json", file.model_copy(update={"stages": [*file.stages, again]}))
        with refused("two are called 'rl'", by=RunError):
            stagelens.open_run(path, leaf=NEWEST)


def test_shares_through_a_merge_are_refused_by_name(branching: Path) -> None:
    run = stagelens.open_run(branching)
    for estimator in ("replay", "coarse-replay", "task-vector"):
        with refused("'soup' is a merge of 'dpo' and 'rl'", "along a line of stages", by=Refused):
            measure_coalitions(run, "test", estimator)


def test_a_branch_may_carry_its_parents_optimizer_on(tmp_path: Path) -> None:
    recorder = stagelens.Recorder(tmp_path / "run", make_task())
    model = base()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.05)
    given = {"on_problem": "raise", "keep_optimizer": True}
    with recorder.stage("sft", model=model, optimizer=adamw, **given) as stage:
        train(make_task(), model, adamw, make_batches(4, 1), stage=stage)
    record_stage(recorder, "dpo", model, 2)
    other = base()
    again = torch.optim.AdamW(other.parameters(), lr=0.05)
    recorder.restore(other, again, stage="sft")
    given = {"on_problem": "raise", "parent": "sft"}
    with recorder.stage("rl", model=other, optimizer=again, **given) as stage:
        train(make_task(), other, again, make_batches(4, 3), stage=stage)
    run = recorder.run()
    assert names(run) == ["sft", "rl"]
    assert run.last.facts.boundary.optimizer == "carried"
