"""Evaluation sets: what is written comes back exactly, in small pieces, and damage has a name."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from stagelens.contracts import RunError, SetError
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.images import display_png
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import write_set

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (10, 6, 5), dtype=np.uint8)


def written(run: Path, name: str = "test", **keywords: Any) -> EvaluationSet:
    write_set(run, None, name, **keywords)
    return EvaluationSet.open(run, name)


def pixels(evaluation_set: EvaluationSet) -> list[np.ndarray]:
    return [example.input["image"] for example in evaluation_set.examples()]


def png(image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", **options)
    return file.getvalue()


# What is written comes back


def test_an_image_set_comes_back_with_ids_labels_and_metadata(tmp_path: Path) -> None:
    group = ["plain", "stamped"] * 5
    opened = written(
        tmp_path,
        images=GREY,
        labels=["a", "b"] * 5,
        ids=[f"id{i}" for i in range(10)],
        columns={"group": group, "size": np.arange(10)},
        description="ten digits",
    )
    assert (opened.name, opened.kind, opened.count, len(opened)) == ("test", "image", 10, 10)
    assert (opened.description, opened.columns) == ("ten digits", ("group", "size"))
    third = opened.examples(3, 4)[0]
    assert (third.example_id, third.label) == ("id3", "b")
    assert third.columns == {"group": "stamped", "size": 3}
    np.testing.assert_array_equal(third.input["image"], GREY[3])


def test_a_text_set_comes_back_with_every_character(tmp_path: Path) -> None:
    texts = ["", "  spaces ", "line\nbreak\r\n", "naïve 😀 \u2028", "nul \x00", "NA"]
    opened = written(tmp_path, texts=texts)
    assert [example.input["text"] for example in opened.examples()] == texts
    assert [example.example_id for example in opened.examples()] == list("012345")


@given(
    image=hnp.arrays(
        dtype=st.sampled_from(["u1", "?", "i2", "<u2", ">u2", "i8", "<f2", "<f4", ">f4", "f8"]),
        shape=st.sampled_from([(1, 1), (2, 5), (5, 2, 3), (2, 5, 4), (2, 5, 1)]),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
@settings(max_examples=60)
def test_any_array_of_numbers_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, image: np.ndarray
) -> None:
    run = tmp_path_factory.mktemp("run")
    back = pixels(written(run, images=[image]))[0]
    expected = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    assert back.dtype == image.dtype.newbyteorder("<")
    assert back.tobytes() == np.ascontiguousarray(expected, back.dtype).tobytes()
    assert back.shape == expected.shape and back.flags.writeable


def test_the_original_bytes_of_image_files_are_kept(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(GREY[0]).convert("RGB").save(file, "JPEG", quality=60)
    opened = written(tmp_path, images=[file.getvalue(), png(GREY[1])])
    stored = pq.read_table(tmp_path / "sets/test/examples.parquet")["image"].to_pylist()
    assert stored == [file.getvalue(), png(GREY[1])]
    first, second = pixels(opened)
    assert first.shape == (6, 5, 3)
    np.testing.assert_array_equal(second, GREY[1])


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    opened = written(tmp_path, images=[png(GREY[0], exif=exif)])
    np.testing.assert_array_equal(pixels(opened)[0], np.rot90(GREY[0], -1))


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (6, 5)), ("P", (6, 5, 3)), ("LA", (6, 5, 4)), ("CMYK", (6, 5, 3)), ("RGB", (6, 5, 3))],
)
def test_pillow_images_of_every_mode_become_grey_rgb_or_rgba(
    tmp_path: Path, mode: str, shape: tuple[int, ...]
) -> None:
    image = Image.fromarray(np.dstack([GREY[0]] * 3)).convert(mode)
    assert pixels(written(tmp_path, images=[image]))[0].shape == shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channel_first_tensors_become_channel_last(
    tmp_path: Path, dtype: torch.dtype, channels: int
) -> None:
    tensor = (torch.rand(3, channels, 7, 9, requires_grad=True) * 255).to(dtype)
    back = np.stack(pixels(written(tmp_path, images=tensor)))
    expected = np.moveaxis(tensor.detach().numpy(), 1, -1)
    np.testing.assert_array_equal(back, expected[..., 0] if channels == 1 else expected)


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ((2, 3, 8, 3), "channels='first'"),
        ((2, 1, 4, 4), "channels='first'"),
        ((2, 5, 6, 7), "1, 3 or 4 channels"),
        ((28, 30, 3), r"images\[None\]"),
        ((28,), r"\(28,\)"),
        ((1, 2, 3, 4, 5), r"\(1, 2, 3, 4, 5\)"),
        ((2, 0, 5), r"\(0, 5\)"),
    ],
)
def test_shapes_that_could_mean_two_things_are_refused_by_name(
    tmp_path: Path, shape: tuple[int, ...], what: str
) -> None:
    with pytest.raises(SetError, match=what):
        write_set(tmp_path, None, "test", images=np.zeros(shape, np.uint8))
    assert not (tmp_path / "sets/test/set.json").exists()


def test_the_caller_can_say_where_the_channels_stand(tmp_path: Path) -> None:
    image = RANDOM.random((2, 3, 8, 3))
    first = written(tmp_path, "first", images=image, channels="first")
    last = written(tmp_path, "last", images=image, channels="last")
    np.testing.assert_array_equal(pixels(first)[0], np.moveaxis(image[0], 0, -1))
    np.testing.assert_array_equal(pixels(last)[0], image[0])


def test_images_of_different_sizes_can_stand_in_one_set(tmp_path: Path) -> None:
    images = [np.zeros((2, 3), np.uint8), np.ones((5, 4, 3), np.float32), GREY[0]]
    for back, image in zip(pixels(written(tmp_path, images=images)), images, strict=True):
        np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize(
    ("images", "what"),
    [
        ([GREY[0], b"no image"], "'1'.*not an image of a kind"),
        ([GREY[0], b""], "'1'.*is empty"),
        ([GREY[0], png(GREY[1])[:60]], "'1'.*cannot be decoded"),
        ([GREY[0], None], "'1'"),
        ([GREY[0], Path("absent.png")], r"'1' \(absent.png\) cannot be read"),
        ([np.full((2, 2), np.nan)], "'0'.*NaN"),
        ([np.array([["a", "b"]])], "'0'.*numbers"),
        ([torch.zeros(2, 2, dtype=torch.bfloat16)], r"tensor.float\(\)"),
        (torch.zeros(2, 2, 2, dtype=torch.bfloat16), r"tensor.float\(\)"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, images: Any, what: str) -> None:
    with pytest.raises(SetError, match=what):
        write_set(tmp_path, None, "test", images=images)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [29, 14])  # Pillow warns at its limit, and refuses at twice that
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(SetError, match=f"'0' has more than {limit} pixels; scale it down"):
        write_set(tmp_path, None, "test", images=[png(GREY[0])])


# Reading little


@pytest.fixture
def groups_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Row groups in the order in which they are read."""
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, *rest: Any, **options: Any) -> Any:
        read.append(group)
        return original(self, group, *rest, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    return read


@pytest.fixture
def thousand(tmp_path: Path) -> EvaluationSet:
    """1,000 texts in four row groups."""
    return written(tmp_path, texts=[f"text {i}" for i in range(1000)], columns={"g": range(1000)})


def test_batches_read_one_row_group_at_a_time(
    thousand: EvaluationSet, groups_read: list[int]
) -> None:
    seen: list[str] = []
    for number, batch in enumerate(thousand.batches(100)):
        seen += [example.example_id for example in batch]
        assert len(batch) == 100
        assert groups_read == list(range(((number + 1) * 100 - 1) // 256 + 1))
    assert seen == [str(i) for i in range(1000)]


@pytest.mark.parametrize("size", [1, 7, 256, 999, 1000, 5000])
def test_batches_of_any_size_give_every_example_once(thousand: EvaluationSet, size: int) -> None:
    batches = list(thousand.batches(size))
    assert [e.example_id for b in batches for e in b] == [str(i) for i in range(1000)]
    assert all(len(b) == size for b in batches[:-1])


def test_a_page_reads_only_its_row_groups(thousand: EvaluationSet, groups_read: list[int]) -> None:
    assert [e.example_id for e in thousand.examples(250, 262)] == [str(i) for i in range(250, 262)]
    assert groups_read == [0, 1]
    groups_read.clear()
    assert [e.columns["g"] for e in thousand.by_id(["900", "3", "900", "1"])] == [900, 3, 900, 1]
    assert groups_read == [0, 3]
    assert thousand.examples(2000) == [] and len(thousand.examples(990)) == 10


def test_the_table_reads_no_inputs(
    thousand: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    original = pq.ParquetFile.read

    def spied(self: pq.ParquetFile, columns: Any = None, **options: Any) -> Any:
        asked.append(columns)
        return original(self, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", spied)
    assert list(thousand.table().columns) == ["example_id", "label", "g"]
    assert list(thousand.table([]).columns) == ["example_id", "label"]
    assert all("text" not in columns for columns in asked)
    with pytest.raises(SetError, match="no column 'group'; it has g"):
        thousand.table(["group"])


def test_large_images_make_small_row_groups(tmp_path: Path) -> None:
    noise = RANDOM.integers(0, 256, (6, 1200, 1200), dtype=np.uint8)
    opened = written(tmp_path, images=noise)
    assert len(opened._starts) == 3  # four megabytes, then the rest


def test_ids_that_do_not_exist_are_named(thousand: EvaluationSet) -> None:
    with pytest.raises(SetError, match="no example 'x', 'y'; choose one of its 1,000"):
        thousand.by_id(["1", "x", "y"])


# Damage


def test_a_damaged_table_never_gives_wrong_values(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (300, 6, 5), dtype=np.uint8)
    opened = written(tmp_path, images=images, columns={"g": range(300)})
    path, expected = tmp_path / opened.facts.table.path, opened.table()
    good = path.read_bytes()
    refused = 0
    for position in [*range(0, len(good), 301), *range(len(good) - 2000, len(good), 23)]:
        bad = bytearray(good)
        bad[position] ^= 0xFF
        path.write_bytes(bad)
        try:
            again = EvaluationSet.open(tmp_path, "test")
            np.testing.assert_array_equal(np.stack(pixels(again)), images)
            pd.testing.assert_frame_equal(again.table(), expected)
        except RunError as error:
            assert "examples.parquet is damaged or was not written by StageLens" in str(error)
            refused += 1
    assert refused > 100
    with pytest.raises(RunError, match="changed after it was recorded"):
        opened.verify()


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    written(tmp_path, texts=["a"])
    folder = tmp_path / "sets/test"
    folder.rename(tmp_path / "sets/moved")
    with pytest.raises(RunError, match=r"'test', but its folder is 'moved'"):
        EvaluationSet.open(tmp_path, "moved")
    with pytest.raises(RunError, match=r"set\.json is missing"):
        EvaluationSet.open(tmp_path, "test")
    (tmp_path / "sets/moved").rename(folder)
    parquet = folder / "examples.parquet"
    data = parquet.read_bytes()
    parquet.write_bytes(data[:-10])
    with pytest.raises(RunError, match=r"examples\.parquet has .* truncated"):
        EvaluationSet.open(tmp_path, "test")
    parquet.write_bytes(b"x" * len(data))
    with pytest.raises(
        RunError, match=r"examples\.parquet is damaged or was not written by StageLens"
    ):
        EvaluationSet.open(tmp_path, "test")


def test_a_run_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="nowhere is not a folder"):
        write_set(tmp_path / "nowhere", None, "test", texts=["a"])


# Showing


def shown(image: np.ndarray, side: int | None = None) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(display_png(image, side))))


def test_images_are_shown_in_a_range_that_people_can_see() -> None:
    np.testing.assert_array_equal(shown(GREY[0]), GREY[0])
    np.testing.assert_array_equal(shown(np.array([[True, False]])), [[255, 0]])
    np.testing.assert_array_equal(shown(np.array([[0.0, 0.2, 0.4]])), [[0, 51, 102]])
    np.testing.assert_array_equal(shown(np.array([[-1.0, 0.0, 1.0]])), [[0, 128, 255]])
    np.testing.assert_array_equal(shown(np.array([[0, 1000]], np.uint16)), [[0, 255]])
    np.testing.assert_array_equal(shown(np.full((2, 2), 7.0)), np.full((2, 2), 128))
    assert shown(np.zeros((4, 4, 4), np.float32)).shape == (4, 4, 4)


def test_thumbnails_have_the_size_asked_for_and_sharp_pixels() -> None:
    assert shown(GREY[0], side=60).shape == (60, 50)
    assert set(np.unique(shown(GREY[0], side=60))) == set(np.unique(GREY[0]))
    assert shown(np.zeros((100, 1), np.uint8), side=10).shape == (10, 1)


def test_a_set_of_images_shows_them_and_a_set_of_texts_says_so(tmp_path: Path) -> None:
    opened = written(tmp_path, images=GREY)
    assert opened.image_png("3") == display_png(GREY[3])
    assert opened.image_pngs(["3", "1"], 12) == [display_png(GREY[i], 12) for i in (3, 1)]
    with pytest.raises(SetError, match="holds texts"):
        written(tmp_path, "words", texts=["a"]).image_png("0")


# Real data


def test_fashion_mnist_comes_back_pixel_for_pixel(tmp_path: Path, data_folder: Path) -> None:
    source = data_folder / "fashion_mnist/fashion_mnist_15k5k.npz"
    keywords = read_set_file(source)
    report = write_set(tmp_path, None, "fashion", **keywords)
    assert report.count == 5000 and len(report.left_out) == 3 and not report.missing_labels
    opened = EvaluationSet.open(tmp_path, "fashion")
    with np.load(source) as arrays:
        np.testing.assert_array_equal(np.stack(pixels(opened)), arrays["x_test"])
        assert opened.table()["label"].astype(int).tolist() == arrays["y_test"].tolist()
        assert opened.table()["idx_test"].tolist() == arrays["idx_test"].tolist()
    assert os.path.getsize(tmp_path / opened.facts.table.path) < 5_000_000


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)], ids=["grey", "RGB", "RGBA"])
def test_a_frame_tells_where_an_image_ends(shape: tuple[int, ...]) -> None:
    white = np.full(shape, 255, np.uint8)
    framed = np.array(Image.open(io.BytesIO(display_png(white, 12, framed=True))))
    assert framed.shape[:2] == (8 + 2, 12 + 2)
    assert (framed[1:-1, 1:-1] == 255).all()
    for line in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        assert (line[..., :3] == 128).all()
    if framed.shape[2:] == (4,):
        assert (framed[..., 3] == 255).all()
