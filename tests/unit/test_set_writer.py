"""Adding an evaluation set: labels, ids and metadata are checked, and nothing is lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stagelens.contracts import SetError, Task
from stagelens.runs.sets import writer
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.writer import RESERVED_COLUMNS, write_set

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (10, 6, 5), dtype=np.uint8)


class Digits(Task):
    """A task that names its classes; nothing else of it is used here."""

    input_kind = "image"
    config: dict[str, Any] = {}  # noqa: RUF012
    build_model = collate = loss = behaviours = predictions = None  # type: ignore[assignment]

    def check_label(self, label: Any) -> str | None:
        names = ["zero", "one", "two"]
        if label in names:
            return str(label)
        if isinstance(label, int) and 0 <= label < 3:
            return names[label]
        raise ValueError(f"label {label!r} is not one of the classes {', '.join(names)}")


def written(run: Path, name: str = "test", **keywords: Any) -> EvaluationSet:
    write_set(run, None, name, **keywords)
    return EvaluationSet.open(run, name)


def png(image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", **options)
    return file.getvalue()


# Labels, ids, metadata


def test_labels_become_the_tasks_class_names_and_missing_ones_stay_missing(tmp_path: Path) -> None:
    labels = [0, "one", np.int64(2), None, float("nan"), "", pd.NA, 1.0, torch.tensor(2), "zero"]
    report = write_set(tmp_path, Digits(), "test", images=GREY, labels=labels)
    opened = EvaluationSet.open(tmp_path, "test")
    names = ["zero", "one", "two", None, None, None, None, "one", "two", "zero"]
    assert [example.label for example in opened.examples()] == names
    assert report.missing_labels == ["3", "4", "5", "6"]
    assert "4 without a label ('3', '4', '5', ...)" in report.sentence()
    assert opened.table()["label"].isna().sum() == opened.facts.missing_labels == 4


@pytest.mark.parametrize(
    "labels", [np.arange(3), torch.arange(3), pd.Series([0, 1, 2]), np.array([[0], [1], [2]])]
)
def test_labels_may_come_as_array_tensor_series_or_column(tmp_path: Path, labels: Any) -> None:
    write_set(tmp_path, Digits(), "test", images=GREY[:3], labels=labels)
    assert list(EvaluationSet.open(tmp_path, "test").table()["label"]) == ["zero", "one", "two"]


def test_a_label_that_is_none_of_the_tasks_names_the_example(tmp_path: Path) -> None:
    labels = ["zero", 7, "one", "Two"]
    with pytest.raises(SetError, match=r"example 'b'.*7.*zero, one, two; so have 1 more"):
        write_set(tmp_path, Digits(), "t", images=GREY[:4], labels=labels, ids=list("abcd"))


def test_one_hot_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="row 0 of labels"):
        write_set(tmp_path, None, "test", images=GREY[:2], labels=np.eye(2))


def test_a_set_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="takes images"):
        write_set(tmp_path, Digits(), "test", texts=["a"])


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"images": GREY, "labels": ["a"]}, "10 examples but 1 values of labels"),
        ({"images": GREY, "ids": ["a"]}, "10 examples but 1 values of ids"),
        ({"images": GREY, "columns": {"g": [1, 2]}}, "column 'g'"),
        ({"images": []}, "empty"),
        ({"images": np.zeros((0, 5, 5))}, "empty"),
        ({"texts": []}, "empty"),
        ({"texts": "abc"}, "a list"),
        ({}, "images or texts"),
        ({"images": GREY, "texts": ["a"] * 10}, "images or texts"),
        ({"texts": ["a", 3]}, "'1' is int"),
        ({"texts": ["a", "\ud800"]}, "'1' has text that is not Unicode"),
        ({"texts": ["a", "b", "c"], "ids": ["x", "y", "x"]}, "more than once.*'x'"),
        ({"texts": ["a", "b"], "ids": [1, "1"]}, "more than once.*'1'"),
        ({"texts": ["a", "b"], "ids": ["x", None]}, "row 1 has no id"),
        ({"texts": ["a", "b"], "columns": {"g": ["x", 3]}}, "column 'g'"),
        ({"texts": ["a"], "columns": {"g": [b"x"]}}, "column 'g' holds binary"),
        ({"texts": ["a"], "columns": {"g": [2**70]}}, "column 'g'"),
        ({"texts": ["a"], "columns": {"": [1]}}, "name of its own"),
        ({"texts": ["a"], "columns": {"\ud800": [1]}}, "name of its own"),
        ({"texts": ["a"], "columns": {3: [1]}}, "name of its own"),
        ({"texts": ["a"], "columns": pd.DataFrame([[1, 2]], columns=["g", "g"])}, "'g'"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, keywords: dict[str, Any], what: str
) -> None:
    with pytest.raises(SetError, match=what):
        write_set(tmp_path, None, "test", **keywords)
    assert not (tmp_path / "sets/test/set.json").exists()


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_a_column_with_a_name_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetError, match=f"column '{name}'.*rename it"):
        write_set(tmp_path, None, "test", texts=["a"], columns={name: [1]})


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x" * 65])
def test_a_set_cannot_have_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetError, match="not a usable name"):
        write_set(tmp_path, None, name, texts=["a"])
    with pytest.raises(SetError, match="not a usable name"):
        EvaluationSet.open(tmp_path, name)


def test_metadata_keeps_sensible_types(tmp_path: Path) -> None:
    columns = {
        "whole": [1, None],
        "number": [0.5, float("nan")],
        "truth": [True, None],
        "text": ["007", None],
        "kind": pd.Categorical(["a", "b"]),
        "when": pd.to_datetime(["2024-01-01", "2024-01-02"]),
        "none": [None, None],
        "boxes": [[1, 2], None],
        "tensor": torch.tensor([3, 4]),
    }
    columns["words"] = columns.pop("text")
    opened = written(tmp_path, texts=["a", "b"], columns=columns)
    table = opened.table()
    assert str(table["whole"].dtype) == "Int64" and str(table["truth"].dtype) == "boolean"
    assert table["number"].dtype == np.float64 and table["tensor"].dtype == np.int64
    assert table["when"].dt.year.tolist() == [2024, 2024]
    first, second = (example.columns for example in opened.examples())
    assert first["boxes"] == "[1, 2]" and first["words"] == "007" and first["kind"] == "a"
    assert [second[name] for name in ("whole", "number", "truth", "words", "none", "boxes")] == [
        None
    ] * 6


def test_duplicates_are_kept_and_reported(tmp_path: Path) -> None:
    images = [GREY[0], GREY[1], png(GREY[0], compress_level=0), GREY[0].astype(np.int16)]
    report = write_set(
        tmp_path, None, "test", images=images, ids=list("abcd"), left_out=["x.txt (not an image)"]
    )
    assert report.count == 4 and report.duplicate_inputs == [("c", "a")]
    assert report.sentence() == (
        "Set 'test' has 4 examples; 4 without a label ('a', 'b', 'c', ...); 1 with the input of "
        "an earlier one (c = a); 1 left out: x.txt (not an image)."
    )


# Digest and adding again


def test_the_digest_depends_on_values_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dict(texts=["a", "b", "c"], labels=["x", "y", None], columns={"g": [1, 2, 3]})
    digest = written(tmp_path, "one", **base).digest
    monkeypatch.setattr(writer, "_GROUP_ROWS", 1)
    other = written(tmp_path, "two", **base, description="in small row groups")
    assert other.digest == digest and len(other._starts) == 4
    as_arrow = {**base, "columns": {"g": np.array([1, 2, 3], np.int8)}}
    assert written(tmp_path, "three", **as_arrow).digest == digest


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ["a", "b", "d"]},
        {"texts": ["ab", "", "c"]},
        {"labels": ["x", "y", "z"]},
        {"labels": ["x", "y", "None"]},
        {"ids": ["0", "1", "3"]},
        {"columns": {"g": [1, 2, 4]}},
        {"columns": {"g": [1.0, 2.0, 3.0]}},
        {"columns": {"h": [1, 2, 3]}},
        {"columns": {}},
    ],
)
def test_every_change_of_content_changes_the_digest_and_is_refused_under_the_same_name(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    base = dict(texts=["a", "b", "c"], labels=["x", "y", None], columns={"g": [1, 2, 3]})
    first = written(tmp_path, **base)
    with pytest.raises(SetError, match=r"other content.*choose another name"):
        write_set(tmp_path, None, "test", **{**base, **change})
    assert EvaluationSet.open(tmp_path, "test").digest == first.digest
    assert written(tmp_path, "other", **{**base, **change}).digest != first.digest


def test_adding_the_same_content_again_changes_nothing_but_mends_a_damaged_table(
    tmp_path: Path,
) -> None:
    report = write_set(tmp_path, None, "test", images=GREY)
    table = tmp_path / "sets/test/examples.parquet"
    before = table.stat().st_mtime_ns, (tmp_path / "sets/test/set.json").stat().st_mtime_ns
    assert write_set(tmp_path, None, "test", images=GREY) == report
    after = table.stat().st_mtime_ns, (tmp_path / "sets/test/set.json").stat().st_mtime_ns
    assert before == after
    table.unlink()
    assert write_set(tmp_path, None, "test", images=GREY, description="mended") == report
    opened = EvaluationSet.open(tmp_path, "test")
    opened.verify()
    assert opened.description == "mended"


def test_a_killed_writer_leaves_no_set_behind(tmp_path: Path) -> None:
    def images() -> Any:
        yield GREY[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path, None, "test", images=images())
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("*.tmp"))
