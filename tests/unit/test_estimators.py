"""Task vector and replay, and the computable that caches them and gives the last stage for free."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import Refused, Task
from stagelens.effects.computing import attribute
from stagelens.estimators import replay_check as replay_module
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.protocol import Counterfactual
from stagelens.estimators.registry import default_estimator, estimators, make_estimator
from stagelens.estimators.subtraction import WithoutStage
from stagelens.replaying.replay import replay_without
from stagelens.runs.boundary_facts import Boundary
from stagelens.runs.run import Stage
from stagelens.tasks import ImageClassification
from tests.support.loops import (
    BATCH_NORM,
    CLASSES,
    Plan,
    differing,
    make_batches,
    make_task,
    record_plans,
    train,
)


def adamw(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


PLANS = [Plan("first", adamw), Plan("second", adamw), Plan("third", adamw)]


def record(
    path: Path, plans: list[Plan] = PLANS, task: ImageClassification | None = None
) -> stagelens.Run:
    run = record_plans(path, task or make_task(BATCH_NORM), plans)
    images, labels = make_batches(1, seed=5, size=30)[0]
    recorder = stagelens.Recorder(path, run.task, resume=True)
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return run


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "run").path


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> stagelens.Run:
    """A copy of ``recorded`` to change."""
    return stagelens.open_run(shutil.copytree(recorded, tmp_path / "run"))


def without(run: stagelens.Run, name: str, *stages: str) -> list[Counterfactual]:
    chosen = [run.stage(stage) for stage in stages] if stages else run.stages
    return list(counterfactuals(run, make_estimator(name), chosen))


# The task vector


def test_the_task_vector_subtracts_what_the_stage_changed(run: stagelens.Run) -> None:
    final = run.last.end().model
    for counterfactual in without(run, "task-vector", "first", "second"):
        stage = run.stage(counterfactual.stage)
        start, end = stage.start().model, stage.end().model
        weights = counterfactual.weights
        assert weights is not None
        assert weights.keys() == final.keys()
        for name, tensor in weights.items():
            if name.endswith(("running_var", "num_batches_tracked")):
                continue
            expected = final[name].double() - (end[name].double() - start[name].double())
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-7)
            assert tensor.dtype == final[name].dtype
        assert not torch.equal(weights["0.weight"], final["0.weight"])


def test_the_task_vector_divides_variances_and_copies_integers(run: stagelens.Run) -> None:
    (counterfactual,) = without(run, "task-vector", "first")
    weights, final = counterfactual.weights, run.last.end().model
    start, end = run.stage("first").start().model, run.stage("first").end().model
    assert weights is not None
    variances = [name for name in final if name.endswith("running_var")]
    counts = [name for name in final if name.endswith("num_batches_tracked")]
    assert (len(variances), len(counts)) == (2, 2)
    for name in variances:
        torch.testing.assert_close(weights[name], final[name] * start[name] / end[name])
    assert differing({n: weights[n] for n in counts}, {n: final[n] for n in counts}) == []
    assert all(int(final[name]) == 18 for name in counts)


class Statistics(nn.Module):
    """A batch norm whose statistics a test can make awkward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(20, momentum=1.0)
        self.head = nn.Linear(20, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.head(self.norm(images.flatten(1)))
        return answers


def test_variances_stay_positive_where_subtraction_would_make_them_negative(
    tmp_path: Path,
) -> None:
    """Variances rise in the first stage and fall in the second, by more than what is left."""
    task = make_task(make_model=lambda _: Statistics())
    torch.manual_seed(0)
    model = task.build_model()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    for name, scale in (("large", 10.0), ("small", 0.1), ("last", 0.1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, make_batches(2, scale=scale), stage=stage)
    run = recorder.run()
    start, end, final = (
        state.model["norm.running_var"]
        for state in (run.stage("large").start(), run.stage("large").end(), run.last.end())
    )
    assert (final - (end - start) < 0).all()

    (counterfactual,) = without(run, "task-vector", "large")
    assert counterfactual.weights is not None
    assert (counterfactual.weights["norm.running_var"] > 0).all()


def test_a_parameter_that_was_initialised_anew_later_keeps_its_final_value(tmp_path: Path) -> None:
    def anew(model: nn.Module) -> nn.Module:
        torch.manual_seed(3)
        model[-1].reset_parameters()  # type: ignore[index, operator, union-attr]
        return model

    plans = [
        Plan("first", adamw),
        Plan("second", adamw, prepare=anew, recorder={"reinitialised": ["10"]}),
    ]
    run = record(tmp_path / "run", plans)
    (counterfactual,) = without(run, "task-vector", "first")
    final, weights = run.last.end().model, counterfactual.weights
    assert weights is not None
    head = {name for name in final if name.startswith("10.")}
    assert run.last.facts.boundary.new == sorted(head, reverse=True)
    kept = {name for name in final if torch.equal(weights[name], final[name])}
    assert kept == head | {name for name in final if name.endswith("num_batches_tracked")}


# Replay


def test_replay_gives_the_replayed_weights_and_calls_them_exact(run: stagelens.Run) -> None:
    for counterfactual in without(run, "replay", "first", "second"):
        assert counterfactual.weights is not None
        replayed = replay_without(run, run.stage(counterfactual.stage)).state.model
        assert differing(counterfactual.weights, replayed) == []
        trust = counterfactual.trust
        assert (trust.trust, trust.reason) == (
            "exact",
            "Replay repeats the recording bit for bit.",
        )
        assert (trust.deviation, trust.expected_error, trust.cost) == (0.0, 0.0, 1.0)


def test_the_check_of_a_replay_is_made_once_for_a_machine(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    real = replay_module.measure_deviation

    def counted(task: Task, stage: Stage, progress: Any, split: bool) -> Any:
        measured.append(stage.name)
        return real(task, stage, progress, split)

    monkeypatch.setattr(replay_module, "measure_deviation", counted)
    without(run, "replay", "second")
    without(run, "replay", "first")
    assert measured == ["third", "second"]
    monkeypatch.setattr(replay_module, "_machine", lambda _stage, _split: "another")
    without(stagelens.open_run(run.path), "replay", "first")
    assert measured == ["third", "second"]  # the counterfactual itself comes from the cache
    for file in (run.path / "results" / "counterfactuals").iterdir():
        file.unlink()
    without(run, "replay", "first")
    assert measured == ["third", "second", "second", "third"]


# The computable


@pytest.mark.parametrize("name", estimators())
def test_the_last_stage_is_exact_and_reads_no_step(
    name: str, run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> None:
        raise AssertionError("a step was read")

    monkeypatch.setattr(Stage, "read_steps", refuse)
    (counterfactual,) = without(run, name, "third")
    assert counterfactual.weights is not None
    assert counterfactual.twins is None
    assert differing(counterfactual.weights, run.last.start().model) == []
    trust = counterfactual.trust
    assert (trust.trust, trust.estimator, trust.cost) == ("exact", name, 0.0)
    assert trust.reason == "The last stage's start is the model without it."
    assert not (run.path / "results").exists()


@pytest.mark.parametrize("name", ["coarse-replay", "replay"])
def test_a_counterfactual_is_computed_once(
    name: str, run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = without(run, name)

    def refuse(*_args: Any) -> None:
        raise AssertionError("computed a second time")

    monkeypatch.setattr(estimators()[name], "counterfactuals", refuse)
    again = without(stagelens.open_run(run.path), name)
    for one, other in zip(first, again, strict=True):
        assert one.weights is not None
        assert other.weights is not None
        assert differing(one.weights, other.weights) == []
        assert one.trust.model_copy(update={"seconds": 0.0}) == other.trust.model_copy(
            update={"seconds": 0.0}
        )


def test_another_recording_does_not_find_the_cached_counterfactual(tmp_path: Path) -> None:
    runs = [
        record(tmp_path / "one"),
        record(tmp_path / "two", [Plan("first", adamw, batches=5), *PLANS[1:]]),
    ]
    (mine,) = without(runs[0], "replay", "first")
    (runs[0].path / "results").rename(runs[1].path / "results")
    (other,) = without(runs[1], "replay", "first")
    assert mine.weights is not None
    assert other.weights is not None
    expected = replay_without(runs[1], runs[1].stage("first")).state.model
    assert differing(other.weights, expected) == []


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, flip_a_bit])
@pytest.mark.parametrize("kind", ["*.json", "*.safetensors"])
def test_a_damaged_cache_is_computed_anew(
    damage: Callable[[Path], None], kind: str, run: stagelens.Run
) -> None:
    (before,) = without(run, "replay", "first")
    assert before.weights is not None
    copied = {name: tensor.clone() for name, tensor in before.weights.items()}
    files = list((run.path / "results" / "counterfactuals").glob(kind))
    assert len(files) == 1
    damage(files[0])
    (after,) = without(run, "replay", "first")
    assert after.weights is not None
    assert differing(copied, after.weights) == []


def test_without_kept_batches_replay_is_refused_and_its_rows_stay_with_nan(tmp_path: Path) -> None:
    plans = [*PLANS[:2], Plan("third", adamw, recorder={"keep_batches": "none"})]
    run = record(tmp_path / "run", plans)
    first, second, third = without(run, "replay")
    for refused in (first, second):
        assert refused.weights is None
        assert refused.trust.trust == "refused"
        assert "stage 'third' cannot be replayed" in refused.trust.reason
        assert "task-vector" in refused.trust.reason
    assert third.trust.trust == "exact"

    with pytest.raises(Refused, match="stage 'third' cannot be replayed"):
        attribute(run, "test", "replay", stages=["first"])
    table = attribute(run, "test", "replay").table
    assert len(table) == 30 * 3 * 3
    for stage, refused_here in (("first", True), ("second", True), ("third", False)):
        rows = table[table["stage"] == stage]
        assert rows["final"].notna().all()
        for column in ("without", "effect", "prediction_without", "confidence_without"):
            assert (rows[column].isna() == refused_here).all(), (stage, column)


def test_the_default_is_the_best_that_the_recording_allows(tmp_path: Path) -> None:
    def default(name: str, **settings: Any) -> str:
        plans = [PLANS[0], Plan("second", adamw, recorder=settings)]
        return default_estimator(record_plans(tmp_path / name, make_task(), plans))

    assert default("all") in ("replay", "coarse-replay")
    assert default("none", keep_batches="none") == "task-vector"


def test_an_unknown_estimator_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(Refused, match=r"no estimator 'magic'; use one of task-vector, .*replay"):
        make_estimator("magic")


def test_progress_rises_to_one(run: stagelens.Run) -> None:
    told: list[float] = []

    def listen(share: float, _text: str) -> None:
        told.append(share)

    list(counterfactuals(run, make_estimator("replay"), run.stages, listen))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_reading_a_task_vector_changes_no_state_in_any_precision(dtype: torch.dtype) -> None:
    final, start, end = ({"w": torch.tensor(v, dtype=dtype)} for v in ([5, 5], [1, 1], [3, 4]))
    without = WithoutStage(final, start, end, [Boundary(optimizer="new")] * 2)
    for _ in range(2):
        assert without["w"].tolist() == [3, 2]
    assert [state["w"].tolist() for state in (final, start, end)] == [[5, 5], [1, 1], [3, 4]]
