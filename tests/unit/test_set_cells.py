"""Cells of files that people have keep what they say, and a column that cannot blocks nothing."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stagelens.contracts import SetError, TaskError
from stagelens.contracts.task_defaults import check_class
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.uploads import fit_image
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import ImageClassification, TextClassification
from tests.support.set_files import add, save


@pytest.mark.parametrize(
    ("cells", "kept"),
    [
        (["1234567890123456789", "1234567890123456788"], str),  # posts, authors, snowflakes
        (["9007199254740993", "0.5"], str),  # more than a float64 tells apart
        (["123456789012345678", "5"], int),
        (["12E4", "3e07"], str),  # codes
        (["1e-05", "2.5E+3", "1.5e3", "7"], float),
    ],
)
def test_numbers_keep_all_their_digits_and_codes_are_no_numbers(
    cells: list[str], kept: type, tmp_path: Path
) -> None:
    rows = ["text,label,cell", *(f"t,1,{cell}" for cell in cells)]
    columns = read_set_file(save(tmp_path / "s.csv", "\n".join(rows)))["columns"]
    assert columns["cell"] == [kept(cell) for cell in cells]
    assert {type(cell) for cell in columns["cell"]} == {kept}


@pytest.mark.parametrize("separator", [";", "\t"])
def test_spreadsheets_that_separate_by_semicolons_are_read(separator: str, tmp_path: Path) -> None:
    rows = [["text", '"label, of 2"', "n"], ["the cat, sat", "calm", "1,5"], ["a dog", "loud", ""]]
    source = save(tmp_path / "s.csv", "\n".join(map(separator.join, rows)))
    content = read_set_file(source, SetColumns(label="label, of 2"))
    assert content["texts"] == ["the cat, sat", "a dog"] and content["labels"] == ["calm", "loud"]
    assert content["columns"] == {"n": ["1,5", None]}


@pytest.mark.parametrize(
    ("label", "name"), [("0.0", "a"), ("1.00", "b"), (1.0, "b"), ("7.0", "7"), ("2", "7"), (7, "7")]
)
def test_whole_numbers_with_a_point_are_labels(label: Any, name: str) -> None:
    assert check_class(["a", "b", "7"], label) == name


@pytest.mark.parametrize("label", ["0.5", "1.", "3.0", "-1.0", "a.0", "v7.0"])
def test_other_numbers_are_no_labels(label: str) -> None:
    with pytest.raises(ValueError, match="is not one of the classes"):
        check_class(["a", "b", "7"], label)


ODD: dict[str, tuple[list[Any], list[Any] | None]] = {
    "dates": ([[datetime.date(2020, 1, 2)], None], ['["2020-01-02"]', None]),
    "amounts": ([{"paid": Decimal("1.50")}, None], ['{"paid": "1.50"}', None]),
    "mask": ([{"bytes": b"x", "path": "a.png"}, None], None),
    "raw": ([b"x", None], None),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_column_becomes_text_or_is_left_out(name: str, tmp_path: Path) -> None:
    cells, kept = ODD[name]
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"], name: cells, "n": [1, 2]})
    pq.write_table(table, tmp_path / "s.parquet")
    opened, report = add(tmp_path / "run", tmp_path / "s.parquet")
    assert opened.table()["n"].tolist() == [1, 2]
    if kept is None:
        assert name not in opened.columns
        assert any(f"column {name!r}" in said for said in report.left_out)
        assert f"column {name!r}" in report.sentence()
    else:
        assert opened.table()[name].astype(object).where(lambda c: c.notna(), None).tolist() == kept


def test_an_odd_column_that_a_program_gives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetError, match=r"column 'raw'.*make it numbers or text"):
        write_set(tmp_path, None, "s", texts=["a"], labels=["x"], columns={"raw": [b"x"]})


def png16(path: Path, highest: int) -> Path:
    Image.fromarray(np.linspace(0, highest, 64).reshape(8, 8).astype(np.uint16)).save(path)
    return path


def test_images_of_more_bits_than_the_task_scales_are_refused(tmp_path: Path) -> None:
    image = png16(tmp_path / "a.png", 65535)
    task = ImageClassification(["x", "y"], (1, 8, 8))
    with pytest.raises(SetError, match=r"16-bit values up to 65,535.*scale"):
        write_set(tmp_path, task, "s", images=[image], labels=["x"])
    fine = ImageClassification(["x", "y"], (1, 8, 8), scale=65535)
    write_set(tmp_path, fine, "s", images=[image], labels=["x"])


def test_an_upload_of_more_bits_is_brought_to_the_tasks(tmp_path: Path) -> None:
    data = png16(tmp_path / "a.png", 65535).read_bytes()
    fitted = fit_image(data, (1, 8, 8), 255.0)
    assert fitted.pixels.max() == 255 and fitted.changes == ("converted to 8 bits",)
    assert fit_image(data, (1, 8, 8), 65535.0).pixels.max() == 65535


def test_a_model_with_one_output_is_named_as_what_it_is() -> None:
    with pytest.raises(TaskError, match=r"one output \(num_labels=1\).*regression or reward"):
        TextClassification(["score"], {"model_type": "bert"})


def test_a_white_image_of_8_bits_fits_any_scale(tmp_path: Path) -> None:
    """The digits demo divides by 240: paper of 255 is a little brighter than its white."""
    image = np.full((8, 8), 255, np.uint8)
    for scale in (240.0, 127.5, 1.0):
        task = ImageClassification(["x", "y"], (1, 8, 8), scale=scale)
        assert task.check_input({"image": image}) is None


def test_a_dark_upload_of_more_bits_stays_dark(tmp_path: Path) -> None:
    data = png16(tmp_path / "a.png", 250).read_bytes()
    assert fit_image(data, (1, 8, 8), 255.0).pixels.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_of_a_transparent_file_the_colours_are_read(channels: int, tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = np.arange(4, dtype=np.uint8)[:, None, None], 255
    clear = pixels.copy()
    clear[0, 0] = (0, 0, 0, 7)
    (tmp_path / "photos" / "x").mkdir(parents=True)
    for name, array in (("a", pixels), ("b", clear)):
        Image.fromarray(array).save(tmp_path / "photos" / "x" / f"{name}.png")
    task = ImageClassification(["x", "y"], (channels, 4, 4))
    content = read_set_file(tmp_path / "photos")
    report = write_set(tmp_path, task, "s", **content)
    assert report.notes == {"partly transparent, of which only the colours are read": ["x/b.png"]}


def test_floats_that_nobody_scaled_are_noted() -> None:
    task = ImageClassification(["x", "y"], (1, 2, 2))
    note = task.check_input({"image": np.full((2, 2), 247.0, np.float32)})
    assert note == "with floats beyond 16, which are not divided by the scale"
    assert task.check_input({"image": np.full((2, 2), -3.5, np.float32)}) is None


def test_a_wrong_number_of_channels_is_no_wrong_size(tmp_path: Path) -> None:
    task = ImageClassification(["x", "y"], (1, 4, 4))
    colours = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with pytest.raises(ValueError, match=r"takes 1 x 4 x 4; give images of 1 channel$"):
        task.check_input({"image": colours})
