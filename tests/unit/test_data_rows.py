"""Batches kept as rows of a data set: made again bit for bit, or not used."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import stagelens
from stagelens.contracts import Example, RecordingWarning, Refused, RunError
from stagelens.estimators.replay import Replay
from stagelens.recording.stage_recorder import StageRecorder
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.data_rows import DataRows, StageRows, hash_of, kept_of
from stagelens.runs.run import open_run
from stagelens.runs.step_records import StepRecord
from stagelens.runs.steps import FlatMicroBatch, FlatStep, RecordedSteps, write_part
from stagelens.runs.steps_digest import StepsDigest
from tests.support.loops import make_batches, make_task
from tests.unit.conftest import Command

SIZE, STEPS = 8, 4
IMAGES, LABELS = (torch.cat(each) for each in zip(*make_batches(6, size=SIZE), strict=True))
DATA = TensorDataset(IMAGES, LABELS)


def drawn(steps: int = STEPS, rows: int = len(DATA)) -> Iterator[list[int]]:
    """Row numbers of each batch, in another order every time."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        yield torch.randperm(rows, generator=generator)[:SIZE].tolist()


def record(path: Path, data: Any, collate: Any = torch.utils.data.default_collate, **more: Any):
    """A run of two stages, ``first`` and ``second``, the second with a data set if there is one."""
    torch.manual_seed(0)
    task = make_task()
    model = task.build_model()
    recorder = stagelens.Recorder(path, task)
    for name, own in (("first", None), ("second", data)):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        given = {} if own is None else {"dataset": own}
        with recorder.stage(name, model=model, optimizer=optimizer, **given, **more) as stage:
            loop(stage, task, model, optimizer, own, collate)
    recorder.add_set("test", images=IMAGES[:6, 0].numpy(), labels=["a", "b", "c"] * 2)
    recorder.close()
    return recorder.run()


def loop(stage: StageRecorder, task: Any, model: Any, optimizer: Any, data: Any, collate: Any):
    """A plain loop that knows the rows of its batches."""
    for rows in drawn():
        batch = collate([(DATA if data is None else data)[row] for row in rows])
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.step(batch, loss, **({} if data is None else {"rows": rows}))


@pytest.fixture(scope="module")
def by_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "rows"
    record(path, DATA)
    return path


@pytest.fixture(scope="module")
def by_tensors(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    return record(tmp_path_factory.mktemp("runs") / "tensors", None)


def without_first(run: stagelens.Run) -> dict[str, Tensor]:
    """The final model of a replay without the first stage."""
    (found,) = Replay().counterfactuals(run, run.stages[:1], lambda *_: None)
    assert found.weights is not None
    return dict(found.weights.items())


def batches_of(run: stagelens.Run, stage: str = "second") -> list[Any]:
    return [micro.batch for step in run.stage(stage).read_steps() for micro in step.batches or ()]


def test_a_replay_from_the_data_set_is_that_from_stored_batches_bit_for_bit(
    by_rows: Path, by_tensors: stagelens.Run
) -> None:
    run = open_run(by_rows, datasets={"second": DATA})
    for made, kept in zip(batches_of(run), batches_of(by_tensors), strict=True):
        assert all(map(torch.equal, made, kept))
    ours, theirs = without_first(run), without_first(by_tensors)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # How large its batches are is known without them, and so what a replay takes.
    sizes = open_run(by_rows).stage("second").read_steps().sizes()
    assert sizes == by_tensors.stage("second").read_steps().sizes()


def test_a_missing_data_set_is_told_by_whatever_needs_it_and_by_nothing_else(
    by_rows: Path,
) -> None:
    run = open_run(by_rows)
    assert run.last.end().model and len(run.last.table()) == STEPS
    told = re.escape("open_run(path, datasets={'second': dataset}) or --dataset second=")
    with pytest.raises(Refused, match=told):
        without_first(run)
    with pytest.raises(RunError, match=told):
        run.last.read_steps()[0]
    assert run.last.no_replay and not run.last.replayable and not run.stages[0].no_replay
    assert run.digest == open_run(by_rows, datasets={"second": DATA}).digest
    with pytest.raises(RunError, match="no stage 'third' to give a data set for"):
        open_run(by_rows, datasets={"third": DATA})


def test_a_changed_data_set_is_refused_at_the_step_where_it_shows(by_rows: Path) -> None:
    number, row = next(
        (number, rows[0])
        for number, rows in enumerate(drawn())
        if number == 2 and rows[0] not in {r for one in [*drawn()][:2] for r in one}
    )
    images = IMAGES.clone()
    images[row, 0, 0, 0] += 1e-6
    steps = open_run(by_rows, datasets={"second": TensorDataset(images, LABELS)}).last.read_steps()
    assert steps[0].batches and steps[1].batches
    said = f"step {number + 1} of stage 'second', micro-batch 1, is not what was recorded"
    with pytest.raises(RunError, match=said):
        steps[number]
    shorter = TensorDataset(IMAGES[:-1], LABELS[:-1])
    with pytest.raises(RunError, match=r"\(the data set's (fingerprint|rows): now .*, then .*\)"):
        open_run(by_rows, datasets={"second": shorter}).last.read_steps()[:]


class Noisy(TensorDataset):
    """Images that are augmented at random, by generators of one kind or another."""

    def __init__(self, kind: str) -> None:
        super().__init__(IMAGES, LABELS)
        self.kind, self.own = kind, np.random.default_rng(0)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        drawn = {
            "torch": lambda: torch.rand(()).item(),
            "numpy": lambda: np.random.rand(),
            "python": random.random,
            "own": self.own.random,
        }[self.kind]()
        image, label = super().__getitem__(row)
        # As a flip that hits few images: the batch is the same by luck, most of the time.
        return (image if self.kind != "own" and drawn < 0.999999 else image + drawn), label


@pytest.mark.parametrize("kind", ["torch", "numpy", "python", "own"])
def test_where_data_are_random_the_batches_are_kept_which_is_told_once(
    kind: str, tmp_path: Path
) -> None:
    with pytest.warns(RecordingWarning, match="stage 'second' keeps its batches") as told:
        run = record(tmp_path / "run", Noisy(kind))
    assert len(told) == 1 and run.problems == [str(told[0].message)]
    assert run.last.facts.rows is None and run.last.replayable
    assert len(batches_of(run)) == STEPS
    # The training draws what it would have drawn without a data set.
    seen = []
    for ask in (lambda: None, lambda: DataRows(Noisy(kind), list).facts):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        ask()
        seen.append((torch.rand(()).item(), np.random.rand(), random.random()))
    assert seen[0] == seen[1]


def test_batches_whose_rows_are_other_ones_are_kept_from_there_on(tmp_path: Path) -> None:
    task = make_task()
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    told_rows: Sequence[Any] = ([0, 1], torch.tensor([2, 3]), [4, 6], [6, 7])
    with (
        pytest.warns(RecordingWarning, match="from there on, .* another batch than the one that"),
        recorder.stage("only", model=model, optimizer=optimizer, dataset=DataLoader(DATA)) as stage,
    ):
        for first, rows in zip((0, 2, 4, 6), told_rows, strict=True):
            batch = (IMAGES[first : first + 2], LABELS[first : first + 2])
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss, rows=rows)
    run = open_run(tmp_path / "run", datasets={"only": DataLoader(DATA)})
    found = batches_of(run, "only")
    assert torch.equal(torch.cat([images for images, _ in found]), IMAGES[:8])
    # Without the data set, steps that need none are read.
    assert open_run(tmp_path / "run").last.read_steps()[2].batches


def test_rows_without_a_data_set_and_a_data_set_without_rows_are_told(tmp_path: Path) -> None:
    task = make_task()
    model = task.build_model()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    for name, given, rows, said in (
        ("first", {}, [0], "no data set"),
        ("second", {"dataset": DATA}, None, "without rows"),
        ("third", {"dataset": DATA}, [99], "rows 99 make no batch"),
    ):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with (
            pytest.warns(RecordingWarning, match=said),
            recorder.stage(name, model=model, optimizer=optimizer, **given) as stage,
        ):
            batch = (IMAGES[:1], LABELS[:1])
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss, rows=rows)
    assert all(stage.replayable for stage in recorder.run().stages)
    with pytest.raises(RunError, match="no rows that can be asked for by number"):
        recorder.stage("fourth", model=model, optimizer=optimizer, dataset=iter(DATA))
    with pytest.raises(RunError, match="one of its splits"):
        recorder.stage("fourth", model=model, optimizer=optimizer, dataset={"train": DATA})


def test_a_killed_recording_opens_with_the_rows_that_were_written(tmp_path: Path) -> None:
    task = make_task()
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = stagelens.Recorder(tmp_path / "run", task)

    class Killed(BaseException):
        """As a process that is killed leaves the block without an end."""

    given: dict[str, Any] = {"dataset": DATA, "checkpoint_every": 3}
    with (
        pytest.raises(Killed),
        recorder.stage("second", model=model, optimizer=optimizer, **given) as stage,
    ):
        loop(stage, task, model, optimizer, DATA, torch.utils.data.default_collate)
        raise Killed
    recorder.close()
    (left,) = open_run(tmp_path / "run", datasets={"second": DATA}).unfinished
    assert left.facts.rows == DataRows(DATA, list).facts
    read = [micro.batch for step in left.read_steps() for micro in step.batches or ()]
    assert [images.shape[0] for images, _ in read] == [SIZE] * STEPS
    stagelens.Recorder(tmp_path / "run", task, resume=True).close()  # ends it at its checkpoint
    ended = open_run(tmp_path / "run", datasets={"second": DATA})
    assert ended.last.steps == 3 and len(batches_of(ended)) == 3


def test_rows_of_examples_are_collated_by_the_task() -> None:
    task = make_task()
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 5), dtype=np.uint8)
    examples = [Example(str(n), {"image": each}, "a") for n, each in enumerate(images)]
    rows = DataRows(examples, task.collate)
    _, (made, labels) = rows.batch([2, 0])
    assert torch.equal(made, task.collate([examples[2], examples[0]])[0]) and len(labels) == 2
    assert rows.facts.collator.endswith("ImageClassification.collate")


def test_a_token_takes_nearly_nothing_and_saved_data_sets_are_found_again(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, (100, 512))
    data = Dataset.from_dict({"input_ids": ids, "labels": ids}).with_format("torch")
    data.save_to_disk(tmp_path / "data")
    rows, again = DataRows(data, list), DataRows(tmp_path / "data", list)
    assert rows.facts == again.facts and rows.facts.fingerprint
    steps = []
    for number, own in enumerate(drawn(64, len(data))):
        description, tensors = rows.batch(own)
        kept = kept_of(own, len(data), hash_of(description, tensors))
        record = StepRecord(number, 1.0, [{"lr": 0.1}], (), (None,), None)
        micro = FlatMicroBatch(description, tensors, {}, None, kept).only_stored()
        steps.append(FlatStep(record, [micro]))
    part = write_part(tmp_path, "stage", 0, steps, StepsDigest())
    assert part.batches is not None
    tokens = len(steps) * SIZE * 512
    each = (part.table.bytes + part.batches.bytes) / tokens
    print(f"{each:.3f} bytes a token, the table of steps included")
    assert part.batches.bytes / tokens < 0.02 and each < 0.1
    files = CheckedFiles(tmp_path)
    stage = StageRows("sft", rows.facts, tmp_path / "data")
    read = RecordedSteps(files, [[part]], rows=stage)[5]
    assert read.batches is not None
    assert torch.equal(read.batches[0].batch["labels"], torch.tensor(ids[[*drawn(6, 100)][5]]))
    with pytest.raises(RunError, match="is not the folder of a data set"):
        DataRows(tmp_path / "stage", list)


def test_commands_take_a_data_set(by_rows: Path, command: Command, tmp_path: Path) -> None:
    run = shutil.copytree(by_rows, tmp_path / "run")  # what it stores is not for other tests
    words = ("attribute", run, "--estimator", "replay", "--processes", "1")
    answer = command(*words)
    assert "first: refused. the batches of stage 'second' are kept as rows" in answer.out
    assert "--dataset second=" in answer.out
    answer = command(*words, "--dataset", f"second={__name__}:DATA")
    assert answer.status == 0, answer.err
    assert "refused" not in answer.out
    assert "STAGELENS_DATASETS" not in os.environ
    answer = command(*words, "--dataset", "second=nowhere")
    assert "is no folder, and cannot be imported" in answer.err
