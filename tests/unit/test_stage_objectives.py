"""Stages with a loss of their own: recorded, replayed, and left out as really training would."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import (
    RecordingError,
    Refused,
    RunError,
    StageLensError,
    no_progress,
)
from stagelens.effects.computing import attribute
from stagelens.effects.results import stored_results
from stagelens.estimators import coarse_twins
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.replaying.ensemble import stackable
from stagelens.replaying.replay import replay_stage, replay_without
from stagelens.replaying.reproduction import measure_deviation, sample_steps
from stagelens.replaying.training_loss import Passed, loss_of_stage
from stagelens.runs.identity import stage_identity
from stagelens.runs.objective_facts import ObjectiveFacts
from stagelens.runs.states import capture
from stagelens.wording.objectives import objective_lines
from tests.support.loops import differing, differing_state, make_batches
from tests.support.objective_runs import (
    GIVEN,
    LOSSES,
    OBJECTIVES,
    STAGES,
    TASK,
    own_loss,
    preferring,
    recorded,
    trained,
)
from tests.support.own_objectives import Preferred, focal


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    return recorded(tmp_path_factory.mktemp("objectives") / "run")


@pytest.mark.parametrize("without", STAGES)
def test_without_a_stage_it_is_what_training_without_it_gives(
    run: stagelens.Run, without: str
) -> None:
    by_hand = trained({**LOSSES, "dpo": preferring}, without=[without])
    replayed = replay_without(run, run.stage(without)).state
    assert differing(replayed.model, by_hand.model) == []


def test_replay_is_bit_for_bit_and_exact(run: stagelens.Run) -> None:
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    made = counterfactuals(run, make_estimator("replay"), run.stages)
    assert {one.trust.trust for one in made} == {"exact"}


def test_stages_with_a_reference_model_join_no_ensemble(run: stagelens.Run) -> None:
    fitting = [stage.name for stage in run.stages if stackable(run.task, stage)]
    assert fitting == ["pretrain", "sft"]


def test_what_was_minimised_is_in_the_recording(run: stagelens.Run) -> None:
    facts = {stage.name: stage.facts.objective for stage in run.stages}
    assert facts["pretrain"] is None
    assert facts["sft"] is not None and facts["sft"].title == "focal"
    assert facts["dpo"] is not None and facts["dpo"].settings == {"beta": 2.0}
    assert facts["dpo"].references["reference"].said == "the model at the start of the stage"
    other = stagelens.open_run(run.path, TASK)
    assert other.digest == run.digest


def test_pages_say_what_was_minimised(run: stagelens.Run) -> None:
    assert {stage.name: objective_lines(stage.facts) for stage in run.stages} == {
        "pretrain": [],
        "sft": ["objective: focal, a loss of your own"],
        "dpo": ["objective: preferred", "reference model: the model at the start of the stage"],
    }
    sampled = ObjectiveFacts(name="grpo", on_samples=True)
    assert objective_lines(run.last.facts.model_copy(update={"objective": sampled})) == [
        "objective: grpo",
        "trained on sampled answers, which replays keep as recorded",
    ]


@pytest.mark.parametrize("given", [False, True])
def test_a_reference_that_moves_is_moved_again(tmp_path: Path, given: bool) -> None:
    run = recorded(tmp_path / "run", sync=3, given=given)
    assert run.last.facts.objective is not None and run.last.facts.objective.moves_references
    assert measure_deviation(TASK, run.last).bitwise
    by_hand = trained({**LOSSES, "dpo": preferring}, without=["sft"], sync=3)
    assert differing(replay_without(run, run.stage("sft")).state.model, by_hand.model) == []
    assert sample_steps(TASK, run.last, 5, everywhere=True).misfit is None


def with_reference(path: Path, pick: str) -> stagelens.Run:
    """Two stages, the second with a reference model of the first's start or of another run."""
    torch.manual_seed(0)
    model, other = TASK.build_model(), TASK.build_model()
    before = {"start": copy.deepcopy(model), "other": other, "end": None}
    recorder = stagelens.Recorder(path, TASK)
    for name in ("one", "two", "three"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        objective: Any = Preferred() if name == "three" else None
        reference = before[pick]
        held: Any = {"reference": reference.eval()} if objective and reference else {}
        settings: Any = {"objective": objective, "references": held, "on_problem": "raise"}
        with recorder.stage(name, model=model, optimizer=optimizer, **settings) as stage:
            for batch in make_batches(4):
                if objective is None:
                    loss = TASK.loss(model, batch)
                else:
                    assert reference is not None
                    loss = preferring(model, reference, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
        if name == "one":
            before["end"] = copy.deepcopy(model)
    return stagelens.open_run(path, TASK, {"three": Preferred()})


@pytest.mark.parametrize(
    ("pick", "kind", "says"),
    [
        ("start", "start", "the model at the start of stage 'one'"),
        ("end", "start", "the model at the start of stage 'two'"),
        ("other", "kept", "a model that the run keeps"),
    ],
)
def test_a_reference_model_is_found_among_the_states_of_the_run(
    tmp_path: Path, pick: str, kind: str, says: str
) -> None:
    run = with_reference(tmp_path / "run", pick)
    assert run.last.facts.objective is not None
    reference = run.last.facts.objective.references["reference"]
    assert (reference.kind, reference.said) == (kind, says)
    assert measure_deviation(TASK, run.last).bitwise
    assert len(run.last.facts.reference_states) == (kind == "kept")
    if kind == "start":  # without the first stage, both are where it started
        one = run.stage("one")
        passed = Passed(run.stages[1:]).leave(one, one.start().model)
        passed.enter(run.stage("two"), one.start().model)
        passed.leave(run.stage("two"), run.stage("two").end().model)
        loss = loss_of_stage(TASK, run.last, TASK.build_model(), passed)
        held = capture(loss.references["reference"], None, {}).model
        assert differing(one.start().model, held) == []


def test_a_kept_reference_is_part_of_the_runs_identity(tmp_path: Path) -> None:
    run = with_reference(tmp_path / "run", "other")
    (file,) = run.last.facts.reference_states["reference"].files
    assert file in list(run.last.facts.files())
    kept = run.last.facts.reference_states["reference"]
    changed = kept.model_copy(update={"model": kept.model.model_copy(update={"sha256": "0" * 64})})
    other = run.last.facts.model_copy(update={"reference_states": {"reference": changed}})
    assert stage_identity(other) != stage_identity(run.last.facts)


def test_coarse_steps_minimise_it_too(run: stagelens.Run) -> None:
    for stage in run.stages[1:]:
        model = CoarseModel(TASK, stage, stage.start())
        for step in coarse_steps(stage.read_steps(), 1, 1):
            model.step(step)
        reached, end = model.snapshot().model, replay_stage(TASK, stage).state.model
        for name, tensor in end.items():
            torch.testing.assert_close(reached[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exact_stages", [0, 1])
def test_a_coarse_replay_takes_its_own_start_as_reference(
    run: stagelens.Run, exact_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is merged or thinned: all that the coarse replay misses is rounding.
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: coarse_twins.Plan(1.0, 1.0))
    first = run.stage("pretrain")
    (found,) = coarse_twins.paired_replays(
        run, [first], 1.0, "coarse-replay", no_progress, exact_stages
    )
    assert found.weights is not None
    truth, end = replay_without(run, first).state.model, run.last.end().model
    gap = sum(float((found.weights[n] - t).square().sum()) for n, t in truth.items())
    effect = sum(float((end[n] - t).square().sum()) for n, t in truth.items())
    assert gap <= 1e-6 * effect


def test_an_own_loss_has_to_be_given_again(run: stagelens.Run) -> None:
    opened = stagelens.open_run(run.path, TASK)
    with pytest.raises(Refused) as refusal:
        replay_without(opened, opened.stage("pretrain"))
    for words in ("a loss of your own, focal", "objectives={'sft'", "--objective sft="):
        assert words in str(refusal.value)
    # What was trained before it can still be replayed, and the rest read.
    assert measure_deviation(TASK, opened.stage("pretrain")).bitwise
    assert len(opened.stage("sft").table()) == 9
    (found,) = counterfactuals(opened, make_estimator("task-vector"), [opened.stage("sft")])
    assert found.weights is not None


def test_nothing_is_stored_of_another_loss_and_a_stored_refusal_ends(tmp_path: Path) -> None:
    given = recorded(tmp_path / "run")
    images, labels = make_batches(1)[0]
    stagelens.Recorder(given.path, TASK, resume=True).add_set("test", images=images, labels=labels)
    other = stagelens.open_run(given.path, TASK, {**GIVEN, "sft": lambda m, b: 0.5 * focal(m, b)})
    with pytest.raises(Refused, match=r"gives 0.* was recorded; give focal as it was"):
        attribute(other, "test", "replay")
    with pytest.raises(Refused, match=r"gives 0.* was recorded; give focal as it was"):
        stagelens.attribute(other, "test")
    assert not stored_results(other, "test")
    without = stagelens.open_run(given.path, TASK, {"dpo": Preferred})
    assert attribute(without, "test", "coarse-replay").trust["pretrain"].trust == "refused"
    assert attribute(given, "test", "coarse-replay").trust["pretrain"].trust != "refused"
    assert attribute(given, "test", "replay").trust["pretrain"].trust == "exact"


def test_a_registered_name_that_is_missing_is_refused(run: stagelens.Run) -> None:
    opened = stagelens.open_run(run.path, TASK, {"sft": focal})
    with pytest.raises(Refused, match="'preferred', which is not installed"):
        measure_deviation(TASK, opened.last)


@pytest.mark.parametrize(
    ("objectives", "says"),
    [
        ({"no-stage": focal}, "no stage 'no-stage'"),
        ({"pretrain": focal}, "trained on the model's own loss"),
    ],
)
def test_objectives_for_nothing_are_refused(
    run: stagelens.Run, objectives: dict[str, Any], says: str
) -> None:
    with pytest.raises(RunError, match=says):
        stagelens.open_run(run.path, TASK, objectives)


@pytest.mark.parametrize("wrong", [focal, stagelens.tasks.ImageClassification, "focal"])
def test_another_objective_is_refused(run: stagelens.Run, wrong: Any) -> None:
    opened = stagelens.open_run(run.path, TASK, {"dpo": wrong})
    with pytest.raises(Refused, match="stage 'dpo' cannot be replayed with its objective"):
        measure_deviation(TASK, opened.last)


def test_another_function_is_noticed(run: stagelens.Run) -> None:
    opened = stagelens.open_run(run.path, TASK, {"sft": TASK.loss})
    assert sample_steps(TASK, opened.stage("sft"), 1).misfit == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objective": "no-such"}, "is not installed"),
        ({"objective": 3}, "is no objective"),
        ({"objective": Preferred}, "is no objective"),
        ({"references": {"reference": TASK.build_model()}}, "takes no reference model"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    model = TASK.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(RecordingError, match=says),
        stagelens.Recorder(tmp_path / "run", TASK).stage(
            "one", model=model, optimizer=optimizer, on_problem="raise", **settings
        ),
    ):
        pass


def test_a_reference_that_is_the_trained_model_is_refused(tmp_path: Path) -> None:
    model = TASK.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings: Any = {"objective": Preferred(), "references": {"reference": model}}
    with (
        pytest.raises(RecordingError, match="shares parameters"),
        stagelens.Recorder(tmp_path / "run", TASK).stage(
            "one", model=model, optimizer=optimizer, on_problem="raise", **settings
        ),
    ):
        pass


def test_another_loss_than_the_objective_is_told_at_the_first_step(tmp_path: Path) -> None:
    losses = {**LOSSES, "dpo": own_loss}
    with pytest.raises(StageLensError, match="the objective 'preferred' gives"):
        trained(losses, stagelens.Recorder(tmp_path / "run", TASK), objectives=OBJECTIVES)


def test_a_moved_reference_that_was_not_declared_is_told(tmp_path: Path) -> None:
    def moving(model: nn.Module, reference: nn.Module, batch: Any) -> Tensor:
        loss = preferring(model, reference, batch)
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.mul_(1.5)
        return loss

    losses = {**LOSSES, "dpo": moving}
    with pytest.raises(RecordingError, match="the objective 'preferred'"):
        trained(losses, stagelens.Recorder(tmp_path / "run", TASK), objectives=OBJECTIVES)


def test_states_agree_with_the_optimiser(run: stagelens.Run) -> None:
    by_hand = trained({**LOSSES, "dpo": preferring})
    assert differing_state(replay_stage(TASK, run.last).state, by_hand) == []
