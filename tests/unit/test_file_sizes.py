"""Small files that would take very much time or memory are refused before they are read."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagelens.assembling.checkpoints import open_checkpoint
from stagelens.assembling.configs import compare_configs
from stagelens.assembling.task import task_of
from stagelens.assembling.trainer_facts import trainer_facts
from stagelens.compute import memory
from stagelens.contracts import RunError, SetError, TaskError
from stagelens.runs.files import read_json
from stagelens.runs.schema import RunFile
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.images import as_image
from stagelens.runs.sets.readers import read_set_file
from stagelens.tasks import TextClassification
from stagelens.tasks.config_limits import MOST_LABELS
from tests.support.checkpoints import classifiers, edit_json


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < 3


def read(path: Path) -> dict[str, Any]:
    return read_set_file(path, SetColumns(label=None))


# Evaluation sets


def claiming(path: Path, shape: tuple[int, ...], dtype: str = "<f8") -> Path:
    """A ``.npz`` whose array ``images`` claims a shape, beside an honest one."""
    header = io.BytesIO()
    facts = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    np.savez(path, label=np.zeros(2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(64))
    return path


def test_an_array_that_claims_more_than_its_file_can_hold_is_named(tmp_path: Path) -> None:
    path = claiming(tmp_path / "x.npz", (10**6, 28, 28))
    with pytest.raises(SetError, match=r"array 'images' of shape .*6\.3 GB, more than 100 times"):
        read(path)


def test_an_array_that_does_not_fit_into_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.zeros((30, 8, 8)), label=np.zeros(30))
    assert len(read(path)["images"]) == 30
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    with pytest.raises(SetError, match=r"'images' of shape \(30, 8, 8\) and type float64.*10,000"):
        read(path)


def test_a_single_array_is_refused_without_reading_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(4))
    path = (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(SetError, match="holds a single array"):
        read(path)


def repeated(word: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [word])


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(repeated("x" * 10**6, 20_000), id="one text"),
        pytest.param(
            pa.StructArray.from_arrays([repeated("x" * 10**6, 20_000)], ["bytes"]), id="images"
        ),
        pytest.param(pa.nulls(10**8, pa.string()), id="no text at all"),
    ],
)
@pytest.mark.parametrize("stored", [True, False], ids=["of arrow", "of any writer"])
def test_a_parquet_file_that_repeats_a_value_is_refused(
    column: pa.Array, stored: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"text": column})
    pq.write_table(table, path, store_schema=stored, dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 500_000
    with pytest.raises(SetError, match="more than 100 times the"):
        read(path)


def saved(folder: Path, column: pa.Array) -> Path:
    """As ``Dataset.save_to_disk`` writes it."""
    folder.mkdir()
    table = pa.table({"text": column})
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def test_a_saved_dataset_that_repeats_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="more than 100 times the"):
        read(saved(tmp_path / "words", repeated("x" * 10**6, 20_000)))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([10**9], pa.int32()), pa.array(["x"]))
    with pytest.raises(SetError, match=r"column 'text' holds run_end_encoded.* save it as text"):
        read(saved(tmp_path / "runs", runs))


def test_parquet_of_every_usual_kind_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = {
        "text": repeated("a text", 3),
        "label": pa.array(["a", None, "b"]),
        "list": pa.array([[1, 2], None, []]),
        "part": pa.array([{"x": "y", "z": [1.5]}, None, {"x": None, "z": None}]),
        "day": pa.array([0, 1, None], pa.date32()),
        "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        "pair": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
    }
    pq.write_table(pa.table(rows), path)
    found = read_set_file(path)
    assert found["texts"] == ["a text"] * 3 and found["labels"] == ["a", None, "b"]
    expected = {name: column.to_pylist() for name, column in rows.items()}
    assert found["columns"] == {name: expected[name] for name in expected if name in list(rows)[2:]}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_text_that_does_not_fit_into_memory_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"x.{kind}").write_text("text\n" * 1000)
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    with pytest.raises(SetError, match="reading it would take 25,000 bytes of memory, but only"):
        read(tmp_path / f"x.{kind}")


def sparse(path: Path, size: int) -> Path:
    """A file of so many zeros that takes no room."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_an_image_larger_than_any_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is larger than 1 GB"):
        as_image(sparse(tmp_path / "x.png", 2**31))


# Checkpoints and runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifiers(tmp_path_factory.mktemp("models"), ["base"])["base"]


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint whose files may be changed."""
    own = tmp_path / "model"
    own.mkdir()
    for file in folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    return own


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_labels", 10**9, "num_labels 1,000,000,000"),
        ("num_labels", 10**4000, "num_labels of more than 15 digits"),
        ("num_hidden_layers", 10**8, "num_hidden_layers 100,000,000"),
        ("text_config", {"num_experts": 10**6}, "num_experts 1,000,000"),
    ],
)
def test_a_configuration_that_counts_beyond_all_use_is_refused(
    key: str, value: Any, said: str, model: Path
) -> None:
    edit_json(model / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(RunError, match=rf"sft: .*config\.json: .* has {said}, and at most"):
        open_checkpoint("sft", model)


def test_a_million_labels_are_refused(model: Path) -> None:
    labels = {str(number): f"L{number}" for number in range(MOST_LABELS + 1)}
    edit_json(model / "config.json", lambda config: config.update(id2label=labels))
    with pytest.raises(RunError, match="id2label 50,001, and at most 50,000 can be built"):
        open_checkpoint("sft", model)
    with pytest.raises(TaskError, match="id2label 50,001, and at most 50,000 can be built"):
        TextClassification(list(labels.values()), {"model_type": "bert", "id2label": labels})


def test_json_that_is_too_large_is_not_read(model: Path) -> None:
    sparse(model / "trainer_state.json", 10**9)
    assert "larger than 64.0 MB" in trainer_facts(open_checkpoint("sft", model)).notes[0]
    checkpoint = open_checkpoint("sft", model)
    sparse(model / "tokenizer.json", 10**9)
    with pytest.raises(TaskError, match=r"takes 1\.0 GB, and at most 256\.0 MB are read"):
        task_of([checkpoint], None)
    with pytest.raises(RunError, match=r"config\.json is larger than 8\.0 MB"):
        sparse(model / "config.json", 10**9)
        open_checkpoint("sft", model)
    with pytest.raises(RunError, match=r"run\.json is larger than 256 MB"):
        read_json(sparse(model / "run.json", 10**9), RunFile)


def test_numbers_that_no_float_holds_are_left_out_of_a_history(model: Path) -> None:
    log = [
        {"step": 1, "loss": 10**400, "learning_rate": 0.5},
        {"step": 10**400, "loss": 1.0},
        {"step": 2, "loss": 0.25},
    ]
    state = {"global_step": 10**400, "log_history": log}
    (model / "trainer_state.json").write_text(json.dumps(state))
    facts = trainer_facts(open_checkpoint("sft", model))
    assert facts.updates is None and facts.notes == []
    assert facts.history is not None and facts.history["step"].tolist() == [0, 1]
    assert facts.history["loss"].tolist()[1] == 0.25 and np.isnan(facts.history["loss"][0])


def test_a_difference_of_configurations_is_named_in_few_words(folder: Path, model: Path) -> None:
    edit_json(model / "config.json", lambda config: config.update(hidden_act="x" * 10**6))
    base, sft = open_checkpoint("base", folder), open_checkpoint("sft", model)
    with pytest.raises(RunError, match="hidden_act 'gelu' and 'xxx") as refused:
        compare_configs(base, sft)
    assert len(str(refused.value)) < 500
