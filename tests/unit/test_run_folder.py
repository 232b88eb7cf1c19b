"""A run folder that was damaged or tampered with gives an error, never a wrong value."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stagelens
from stagelens.contracts import RecordingError, RunError, TaskError
from stagelens.effects.computing import attribute
from tests.support.damage import (
    edit_and_seal,
    empty,
    flip_a_bit_in_the_middle,
    lead_out_of_the_folder,
    remove,
    replace_by_pickle,
    replace_by_pickle_of_equal_size,
    truncate,
)
from tests.support.grids import part
from tests.support.loops import (
    TWO_STAGES,
    differing,
    make_batches,
    make_task,
    record_two,
    run_plans,
    train,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two finished stages and an unfinished one."""
    path = tmp_path_factory.mktemp("whole") / "run"
    kept = {"checkpoint_every": 3, "keep_optimizer": True}
    record_two(path, [TWO_STAGES[0], replace(TWO_STAGES[1], recorder=kept)])
    recorder = stagelens.Recorder(path, make_task(), resume=True)
    model = recorder.task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recorder.restore(model, optimizer)
    with (
        pytest.raises(KeyboardInterrupt),
        recorder.stage(
            "third", model=model, optimizer=optimizer, flush_every=2, checkpoint_every=2
        ) as stage,
    ):
        train(recorder.task, model, optimizer, make_batches(6), stage=stage)
        raise KeyboardInterrupt
    recorder.close()
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def everything(path: Path) -> Iterator[Any]:
    """All that a run folder holds of the recorded training, as it is read."""
    run = stagelens.open_run(path)
    yield from (run.name, run.task.config, run.digest, run.problems)
    for stage in (*run.stages, *run.unfinished):
        yield stage.name
        yield stage.table().to_dict("list")
        yield [repr(step) for step in stage.read_steps()]
        states = [stage.facts.start, stage.facts.end, *(c.state for c in stage.facts.checkpoints)]
        for state in states:
            if state is not None:
                loaded = stage._state(state)
                yield {name: tensor.tolist() for name, tensor in loaded.model.items()}
                yield repr(loaded.optimizer)
    for name in run.set_names:
        yield run.evaluation_set(name).table().to_dict("list")


def files_of(path: Path) -> list[str]:
    found = (file.relative_to(path) for file in path.rglob("[!.]*") if file.is_file())
    return sorted(str(file) for file in found if file.parts[0] != "sets")


FILES = [
    "run.json",
    *(
        f"stages/{stage}/{name}"
        for stage, names in {
            "00-first": [
                "batches-00000.safetensors",
                "batches-00001.safetensors",
                "end.model.safetensors",
                "stage.json",
                "start.model.safetensors",
                "steps-00000.parquet",
                "steps-00001.parquet",
            ],
            "01-second": [
                "batches-00000.safetensors",
                "batches-00001.safetensors",
                "checkpoint-000003.model.safetensors",
                "checkpoint-000003.optimizer.safetensors",
                "checkpoint-000006.model.safetensors",
                "checkpoint-000006.optimizer.safetensors",
                "end.model.safetensors",
                "end.optimizer.safetensors",
                "stage.json",
                "start.optimizer.safetensors",
                "steps-00000.parquet",
                "steps-00001.parquet",
            ],
            "02-third": [
                "batches-00000.safetensors",
                "batches-00001.safetensors",
                "batches-00002.safetensors",
                "checkpoint-000002.model.safetensors",
                "checkpoint-000002.optimizer.safetensors",
                "checkpoint-000004.model.safetensors",
                "checkpoint-000004.optimizer.safetensors",
                "checkpoint-000006.model.safetensors",
                "checkpoint-000006.optimizer.safetensors",
                "stage.json",
                "steps-00000.parquet",
                "steps-00001.parquet",
                "steps-00002.parquet",
            ],
        }.items()
        for name in names
    ),
]


def test_the_files_of_a_run_are_these(whole: Path) -> None:
    assert files_of(whole) == sorted(FILES)


# run.json is the root of trust: a bit flipped in the run's name there is another name.
# No sha256 of these is kept: one of their bits can turn a name into another.
UNSEALED = ("run.json", "stages/02-third/stage.json")
DAMAGES = [
    (damage, file)
    for damage in (
        remove,
        truncate,
        empty,
        replace_by_pickle,
        replace_by_pickle_of_equal_size,
        flip_a_bit_in_the_middle,
        lead_out_of_the_folder,
    )
    for file in FILES
    if damage is not flip_a_bit_in_the_middle or file not in UNSEALED
]


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)


@pytest.mark.usefixtures("no_unpickling")
@pytest.mark.parametrize(("damage", "file"), part(DAMAGES, every=3))
def test_a_damaged_file_is_named_and_nothing_wrong_is_read(
    damage: Callable[[Path], None], file: str, folder: Path, whole: Path
) -> None:
    damage(folder / file)
    read: list[Any] = []
    message = ""
    try:
        for value in everything(folder):
            read.append(value)
    except RunError as error:
        message = str(error)
    assert read == [value for value, _ in zip(everything(whole), read, strict=False)]
    if damage is flip_a_bit_in_the_middle and file in NOT_SEALED and not message:
        assert len(read) == len(list(everything(whole)))
    else:
        assert file in message or "it has no run.json" in message
        assert any(words in message for words in REASONS[damage]), message


# No sha256 of the tables of an unfinished stage is kept. Checksums cover the values in them.
NOT_SEALED = [file for file in FILES if file.startswith("stages/02-third/steps-")]
CHANGED = (
    "was changed after it was",
    "bytes, but",
    "Invalid JSON",
    "is damaged or not a parquet file",
    "does not hold steps",
)
REASONS: dict[Callable[[Path], None], tuple[str, ...]] = {
    remove: ("is missing", "it has no run.json"),
    lead_out_of_the_folder: ("leads out of the run folder",),
    truncate: CHANGED,
    empty: CHANGED,
    replace_by_pickle: CHANGED,
    replace_by_pickle_of_equal_size: CHANGED,
    flip_a_bit_in_the_middle: (*CHANGED, "this is not a file that StageLens wrote"),
}


def test_an_untouched_copy_reads_the_same(folder: Path, whole: Path) -> None:
    assert list(everything(folder)) == list(everything(whole))


def rewrite(folder: Path, file: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file as someone would who also mends the sha256 of it."""
    path = folder / file
    edit_and_seal(path, change)

    def mend(index: Any) -> None:
        for stage in index["stages"]:
            if file.startswith(stage["folder"]) and stage["sha256"]:
                stage["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    if file != "run.json":
        edit_and_seal(folder / "run.json", mend)


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


STAGE = "stages/01-second/stage.json"
EDITS = [
    ("run.json", put("version", value=4), "written by a newer StageLens (layout 4"),
    ("run.json", put("version", value="one"), "run.json: version:"),
    ("run.json", put("name", value="../run"), "run.json: name:"),
    ("run.json", put("name", value=3), "run.json: name:"),
    ("run.json", put("stages", value={}), "run.json: stages:"),
    ("run.json", put("stages", 0, "sha256", value="0" * 64), "00-first/stage.json was changed"),
    ("run.json", put("stages", 0, "folder", value="stages/../.."), "run.json: stages.0.folder:"),
    ("run.json", put("stages", 0, "folder", value="/etc"), "run.json: stages.0.folder:"),
    ("run.json", put("stages", 0, "folder", value="stages/none"), "none/stage.json is missing"),
    ("run.json", put("stages", 0, "name", value="other"), "run.json calls this stage 'other'"),
    ("run.json", put("stages", 0, "name", value="second"), "run.json: stages: two are called"),
    ("run.json", put("task", value=None), "run.json: task:"),
    ("run.json", put("code", value="import os"), "run.json: code:"),
    (STAGE, put("version", value=7), "01-second/stage.json: written by a newer StageLens"),
    (STAGE, put("steps", value="three"), "01-second/stage.json: steps:"),
    (STAGE, put("steps", value=4), "says that it has 4 steps, but its parts hold 6"),
    (STAGE, put("status", value="done"), "01-second/stage.json: status:"),
    (STAGE, put("end", value=None), "01-second/stage.json: end: missing in a finished stage"),
    (STAGE, put("optimizer", "name", value=5), "stage.json: optimizer.name:"),
    (STAGE, put("parts", 0, "first_step", value=1), "starts at step 1, but step 0 should follow"),
    (STAGE, put("parts", value=[]), "says that it has 6 steps, but its parts hold 0"),
    (STAGE, put("end", "model", "path", value="../end"), "stage.json: end.model.path:"),
    (STAGE, put("end", "model", "path", value="/etc/passwd"), "stage.json: end.model.path:"),
    (STAGE, put("end", "model", "path", value="C:\\end"), "stage.json: end.model.path:"),
    (STAGE, put("end", "model", "path", value="sets/./x"), "stage.json: end.model.path:"),
    (STAGE, put("end", "model", "path", value="nothing"), "nothing is missing"),
    (STAGE, put("end", "model", "path", value="a\0b"), "embedded null byte"),
    (STAGE, put("end", "model", "sha256", value="0"), "stage.json: end.model.sha256:"),
    (STAGE, put("end", "model", "bytes", value=5), "but 5 were recorded"),
]


@pytest.mark.parametrize(("file", "change", "says"), EDITS, ids=[says for *_, says in EDITS])
def test_an_edited_description_is_refused_by_file_and_field(
    file: str, change: Callable[[Any], None], says: str, folder: Path
) -> None:
    rewrite(folder, file, change)
    with pytest.raises(RunError) as error:
        list(everything(folder))
    assert says in str(error.value)


def test_a_table_of_steps_that_is_another_parquet_file_is_refused(folder: Path) -> None:
    part = folder / "stages/02-third/steps-00001.parquet"
    for table, says in [
        (pa.table({"step": [2, 3]}), "does not hold steps"),
        (pq.read_table(part).replace_schema_metadata({}), "does not hold steps"),
        (pq.read_table(part).slice(0, 0), "does not hold steps"),
        (pq.read_table(part.with_name("steps-00002.parquet")), "starts at step 4, but step 2"),
    ]:
        pq.write_table(table, part)
        with pytest.raises(RunError, match=says) as error:
            stagelens.open_run(folder)
        assert "steps-00001.parquet" in str(error.value)


def test_steps_that_were_recorded_before_divisors_were_are_read(folder: Path) -> None:
    part = folder / "stages/02-third/steps-00001.parquet"
    pq.write_table(pq.read_table(part).drop_columns("divisors"), part)
    step = stagelens.open_run(folder).unfinished[0].read_steps()[2]
    assert step.divisors == (None,)
    assert [micro.divisor for micro in step.batches or ()] == [None]


def test_what_a_killed_process_left_half_written_is_ignored(folder: Path, whole: Path) -> None:
    for name in (".run.json.1f2e3d4c.tmp", "stages/02-third/.steps-00003.parquet.00000000.tmp"):
        (folder / name).write_bytes(b"half")
    assert list(everything(folder)) == list(everything(whole))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is not a folder; give the path"):
        stagelens.open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run folder \(it has no run.json\); record one"):
        stagelens.open_run(tmp_path)


def test_a_task_that_is_not_installed_leaves_the_recording_readable(folder: Path) -> None:
    rewrite(folder, "run.json", put("task", "name", value="os.system"))
    run = stagelens.open_run(folder)
    assert run.last.table()["step"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(TaskError, match=r"task 'os.system' is not installed.*--task"):
        _ = run.task


def test_names_that_are_not_there_are_listed(whole: Path) -> None:
    run = stagelens.open_run(whole)
    with pytest.raises(RunError, match="no finished stage 'third'; it has 'first', 'second'"):
        run.stage("third")
    with pytest.raises(RunError, match="stage 'third' was not finished, so it has no end state"):
        run.unfinished[0].end()
    with pytest.raises(RunError, match=r"no evaluation set 'other'.*it has: test"):
        run.evaluation_set("other")


def test_two_recorders_on_one_folder_are_refused(tmp_path: Path) -> None:
    task = make_task()
    first = stagelens.Recorder(tmp_path / "run", task)
    with pytest.raises(RecordingError, match=r"another recorder has .* open"):
        stagelens.Recorder(tmp_path / "run", task, resume=True)
    first.close()
    stagelens.Recorder(tmp_path / "run", task, resume=True).close()


@pytest.mark.parametrize("damage", [replace_by_pickle, truncate, empty])
@pytest.mark.usefixtures("no_unpickling")
def test_a_stored_result_that_cannot_be_used_is_made_anew(
    damage: Callable[[Path], None], folder: Path
) -> None:
    run = stagelens.open_run(folder)
    expected = attribute(run, "test", "replay").table
    stored = list((folder / "results").rglob("*.parquet"))
    assert len(stored) == 1
    damage(stored[0])
    stored[0].chmod(0o444)
    assert attribute(run, "test", "replay").table.equals(expected)
    assert pq.read_table(stored[0]).num_rows == len(expected)


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    task = make_task()
    run = record_two(tmp_path / "run")
    by_hand = run_plans(task, TWO_STAGES)
    assert differing(run.last.end().model, by_hand.model) == []
