"""Checkpoints of every kind of model become a run, with an evaluation file of its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stagelens
from stagelens.contracts import SetError, TaskError
from stagelens.effects.computing import attribute
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import write_set
from stagelens.tasks.built_in import BUILT_IN
from tests.support.task_runs import SMALL, Small, images, regression

BY_NAME = ("reward-model",)
"""What config.json does not tell from other kinds."""
TEXTS = [
    name
    for name in SMALL
    if BUILT_IN[name].traits.assembled_by_name and BUILT_IN[name].traits.input_kind == "text"
]


def save(small: Small, folder: Path) -> dict[str, Path]:
    found = {}
    for number, name in enumerate(("base", "sft")):
        with torch.no_grad():
            for parameter in small.model.parameters():
                parameter += 0.01 * number
        small.model.save_pretrained(folder / name)
        small.processor.save_pretrained(folder / name)
        found[name] = folder / name
    return found


def rows_of(small: Small) -> list[dict[str, Any]]:
    """A set's rows as a file of JSON lines has them."""
    given = dict(small.examples)
    columns = {"text": given.get("texts"), "label": given.get("labels"), **given.get("inputs", {})}
    known = {name: list(values) for name, values in columns.items() if values is not None}
    return [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]


@pytest.mark.parametrize("name", TEXTS)
def test_checkpoints_and_a_file_become_a_run(name: str, tmp_path: Path) -> None:
    small = SMALL[name]()
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows_of(small)))
    run = stagelens.assemble(
        save(small, tmp_path),
        tmp_path / "run",
        evaluation=file,
        task=name if name in BY_NAME else None,
    )
    assert run.file.task.name == name
    added = run.evaluation_set("test").examples()
    # The same examples as from Python.
    write_set(run.path, run.task, "again", **small.examples)
    assert added == stagelens.open_run(run.path).evaluation_set("again").examples()
    table = attribute(run, "test", "task-vector").table
    assert (table["effect"].abs() > 0).any()


def test_an_image_processor_says_how_images_are_read(tmp_path: Path) -> None:
    small = images()
    folders = save(small, tmp_path)
    run = stagelens.assemble(folders, tmp_path / "run")
    assert run.task.config["image_shape"] == [1, 8, 8]
    assert (run.task.config["mean"], run.task.config["std"]) == ([0.5], [0.5])
    write_set(run.path, run.task, "test", **small.examples)
    table = attribute(stagelens.open_run(run.path), "test", "task-vector").table
    assert np.isfinite(table["effect"]).sum() == 3 * 5
    for folder in folders.values():
        (folder / "preprocessor_config.json").unlink()
    with pytest.raises(TaskError, match=r"image processor \(preprocessor_config\.json\)"):
        stagelens.assemble(folders, tmp_path / "other")


@pytest.mark.parametrize("task", ["image-classification", "sentence-embeddings"])
def test_a_task_that_no_folder_describes_is_refused(task: str, tmp_path: Path) -> None:
    folders = save(regression(), tmp_path)
    with pytest.raises(TaskError, match=f"{task} cannot be made from a checkpoint folder"):
        stagelens.assemble(folders, tmp_path / "run", task=task)


def test_pairs_of_texts_are_read_by_their_columns(tmp_path: Path) -> None:
    small, file = SMALL["sentence-embeddings"](), tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows_of(small)))
    for columns in (SetColumns(text="text", other="other"), SetColumns(text="other", other="text")):
        found = read_set_file(file, columns)
        assert list(found["inputs"]) == ["text", "other", "rejected"]
        assert found["inputs"]["other"] == list(small.examples["inputs"][columns.other])
        assert found["labels"] == small.examples["labels"]
    with pytest.raises(SetError, match=r"name the column of the texts too: SetColumns\(text"):
        read_set_file(file, SetColumns(other="other"))
    with pytest.raises(SetError, match="name one or the other"):
        read_set_file(file, SetColumns(text="text", other="other", completion="rejected"))
