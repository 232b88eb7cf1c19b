"""Files that people have become evaluation sets; what does not fit is named, with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import SetError
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.readers import read_set_file
from tests.support.set_files import add, image, save


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images described by a metadata.csv."""
    folder = tmp_path / "photos"
    for i, name in enumerate(["a.png", "sub/b.png", "c.PNG"]):
        save(folder / name, image(i))
    rows = "file_name,label,group,age\nc.PNG,007,x,1\na.png,NA,y,\nsub/b.png,,x,3\n"
    save(folder / "metadata.csv", rows)
    return folder


# Image folders


def test_an_image_folder_reads_as_its_metadata_says(tmp_path: Path, photos: Path) -> None:
    opened, report = add(tmp_path / "run", photos)
    table = opened.table()
    assert table["example_id"].tolist() == ["c.PNG", "a.png", "sub/b.png"]
    assert table["label"].tolist()[:2] == ["007", "NA"] and report.missing_labels == ["sub/b.png"]
    assert opened.columns == ("group", "age") and table["age"].tolist()[::2] == [1, 3]
    assert [int(e.input["image"][0, 0]) for e in opened.examples()] == [2, 0, 1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_reads_the_same_as_hugging_face_datasets_reads_it(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = pd.DataFrame({"file_name": ["c.PNG", "a.png"], "label": ["u", "v"], "group": [1, 2]})
    (photos / "metadata.csv").unlink()
    if suffix == "csv":
        rows.to_csv(photos / "metadata.csv", index=False)
    elif suffix == "jsonl":
        rows.to_json(photos / "metadata.jsonl", orient="records", lines=True)
    else:
        rows.to_parquet(photos / "metadata.parquet")
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache")
    )
    ours, _ = add(tmp_path / "run", photos)
    assert len(theirs) == len(ours) == 2
    for row, example in zip(theirs, ours.examples(), strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), example.input["image"])
        assert (row["label"], row["group"]) == (example.label, example.columns["group"])


def test_unlisted_files_are_reported(tmp_path: Path, photos: Path) -> None:
    save(photos / "z.png", image(9))
    save(photos / "README.md", "hello")
    save(photos / ".DS_Store", "x")
    _, report = add(tmp_path / "run", photos)
    assert report.count == 3
    assert report.left_out == [
        "README.md (not listed in metadata.csv)",
        "z.png (not listed in metadata.csv)",
    ]
    assert "2 left out: README.md (not listed" in report.sentence()


def test_class_folders_are_labels(tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    for name in ["cat/1.png", "cat/2.png", "dog/1.png", "dog/notes.txt"]:
        save(folder / name, image(len(name)))
    opened, report = add(tmp_path / "run", folder)
    table = opened.table()
    assert table["example_id"].tolist() == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert table["label"].tolist() == ["cat", "cat", "dog"]
    assert report.left_out == ["dog/notes.txt (not an image that can be read)"]


def test_a_plain_folder_of_images_needs_the_word_that_it_has_no_labels(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    save(folder / "1.png", image())
    with pytest.raises(
        SetError, match=r"'1.png' lies outside a class folder.*SetColumns\(label=None\)"
    ):
        read_set_file(folder)
    _, report = add(tmp_path / "run", folder, label="")
    assert report.missing_labels == ["1.png"]


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "no image that can be read, but no file"),
        ({"cat/1.png": image(), "2.png": image()}, "'2.png' lies outside"),
        ({"train/cat/1.png": image()}, "'train/cat/1.png' lies outside"),
        ({"test/1.png": image(), "test/metadata.csv": b"file_name\n"}, "'test/metadata.csv'; give"),
        ({"metadata.csv": b"file_name\n", "metadata.jsonl": b"{}"}, "give a folder with one of"),
        ({"metadata.csv": b""}, r"metadata\.csv is empty"),
        ({"metadata.csv": b"file_name,label\n"}, r"metadata\.csv has no rows"),
        ({"metadata.csv": b"file,label\na.png,x\n"}, "no 'file_name'; it has 'file', 'label'"),
        (
            {"metadata.csv": b"file_name,class\na.png,x\n"},
            r"no 'label'; .*SetColumns\(label=None\)",
        ),
        ({"metadata.csv": b"file_name,label\na.png,x\n"}, "row 1: 'a.png' is not in"),
        ({"metadata.csv": b"file_name,label\n,x\n"}, "row 1 has no image"),
        ({"metadata.csv": b"file_name,label\n../run.json,x\n"}, "row 1: '../run.json' leads out"),
        ({"metadata.csv": b"file_name,label\n/etc/passwd,x\n"}, "row 1: '/etc/passwd' leads out"),
        ({"metadata.csv": b"file_name,label\na\x00.png,x\n"}, "row 1"),
        ({"metadata.csv": b"file_name,label\nsub,x\n", "sub/a.png": image()}, "'sub' is not in"),
        ({"metadata.csv": b"file_name,label\n\xff.png,x\n"}, "line 2 is not UTF-8.*0xff"),
        ({"metadata.csv": b"file_name,label\na,x,y\n"}, "line 2: 3 fields, but the header has 2"),
    ],
)
def test_a_folder_that_is_no_set_is_refused_with_what_to_do(
    tmp_path: Path, files: dict[str, bytes], what: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        save(folder / name, content)
    with pytest.raises(SetError, match=what):
        read_set_file(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, photos: Path) -> None:
    secret = save(tmp_path / "secret.png", image(9))
    (photos / "a.png").unlink()
    (photos / "a.png").symlink_to(secret)
    with pytest.raises(SetError, match=r"row 2: 'a.png' leads out of"):
        read_set_file(photos)
    (photos / "metadata.csv").rename(tmp_path / "metadata.csv")
    with pytest.raises(SetError, match=r"'a.png' leads out of"):
        read_set_file(photos, SetColumns(label=None))
    (photos / "metadata.csv").symlink_to(tmp_path / "metadata.csv")
    with pytest.raises(SetError, match=r"'metadata.csv' leads out of"):
        read_set_file(photos)


def test_a_linked_folder_is_not_followed_but_reported(tmp_path: Path, photos: Path) -> None:
    save(tmp_path / "elsewhere/x.png", image())
    (photos / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    left_out = read_set_file(photos)["left_out"]
    assert left_out == ["link (a link to a folder)", "loop (a link to a folder)"]


def test_a_file_listed_twice_is_refused(tmp_path: Path, photos: Path) -> None:
    save(photos / "metadata.csv", "file_name,label\na.png,x\na.png,y\n")
    with pytest.raises(SetError, match=r"more than once \('a.png'\)"):
        add(tmp_path / "run", photos)


@pytest.mark.parametrize("content", [b"", b"no image", image()[:45], b"GIF89a"])
def test_a_damaged_image_is_named(tmp_path: Path, photos: Path, content: bytes) -> None:
    save(photos / "sub/b.png", content)
    with pytest.raises(SetError, match=r"image of example 'sub/b\.png' \(.*sub/b\.png\)"):
        add(tmp_path / "run", photos)


# Tables


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_text_file_becomes_texts_labels_and_metadata(tmp_path: Path, suffix: str) -> None:
    rows = {
        "text": ["a, b", 'say "x"\nline', "naïve"],
        "label": ["007", "NA", "none"],
        "number": [1, 2, 3],
        "zip": ["01234", "null", "56789"],
        "ok": [True, False, True],
    }
    frame, source = pd.DataFrame(rows), tmp_path / f"set.{suffix}"
    if suffix == "jsonl":
        source.write_text("\n".join(json.dumps(r) for r in frame.to_dict("records")) + "\n\n")
    elif suffix == "parquet":
        frame.to_parquet(source)
    else:
        frame.to_csv(source, index=False, sep="\t" if suffix == "tsv" else ",")
    opened, report = add(tmp_path / "run", source)
    assert [example.input["text"] for example in opened.examples()] == rows["text"]
    table = opened.table()
    assert table["example_id"].tolist() == ["0", "1", "2"]
    assert {name: table[name].tolist() for name in list(rows)[1:]} == {
        name: values for name, values in rows.items() if name != "text"
    }
    assert not report.missing_labels and not report.left_out


def test_columns_can_be_named(tmp_path: Path) -> None:
    source = save(tmp_path / "set.csv", "key,words,gold,extra\n01,hello,x,5\n1,bye,,6\n")
    options = {"text": "words", "label": "gold", "id": "key"}
    opened, report = add(tmp_path / "run", source, **options)
    assert opened.table()["example_id"].tolist() == ["01", "1"]
    assert report.missing_labels == ["1"] and opened.columns == ("extra",)


def test_a_set_that_stagelens_wrote_reads_again_with_its_ids(tmp_path: Path) -> None:
    source = save(tmp_path / "set.csv", "example_id,text,label,g\nx,hello,a,1\ny,bye,b,2\n")
    first, _ = add(tmp_path / "one", source)
    second, _ = add(tmp_path / "two", tmp_path / "one/sets/test/examples.parquet")
    assert second.digest == first.digest and second.table()["example_id"].tolist() == ["x", "y"]


def test_numbers_with_leading_zeros_and_words_such_as_na_stay_text(tmp_path: Path) -> None:
    rows = ["text,label,code,n,f,b,e,w", "t,1,007,1,0.5,true,,NA", "u,01,8,,1e3,false,,None"]
    columns = read_set_file(save(tmp_path / "s.csv", "\n".join(rows)))["columns"]
    assert columns == {
        "code": ["007", "8"],
        "n": [1, None],
        "f": [0.5, 1000.0],
        "b": [True, False],
        "e": [None, None],
        "w": ["NA", "None"],
    }


def test_a_column_without_a_name_keeps_the_name_that_pandas_gives_it(tmp_path: Path) -> None:
    source = tmp_path / "set.csv"
    pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).to_csv(source)
    assert read_set_file(source)["columns"] == {"Unnamed: 0": [0, 1]}


@pytest.mark.parametrize("how", ["paths", "bytes", "structs"])
def test_images_in_a_table_may_be_paths_bytes_or_both(tmp_path: Path, how: str) -> None:
    save(tmp_path / "in/a.png", image(1))
    cells: dict[str, list[Any]] = {
        "paths": ["in/a.png", "in/a.png"],
        "bytes": [image(1), image(1)],
        "structs": [{"bytes": image(1), "path": None}, {"bytes": None, "path": "in/a.png"}],
    }
    source = tmp_path / "set.parquet"
    pd.DataFrame({"image": cells[how], "label": ["x", "y"]}).to_parquet(source)
    opened, report = add(tmp_path / "run", source)
    assert [int(e.input["image"][0, 0]) for e in opened.examples()] == [1, 1]
    assert report.duplicate_inputs == [("1", "0")]


def test_paths_in_a_csv_are_relative_to_it_and_stay_inside(tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", image(1))
    source = save(tmp_path / "in/set.csv", "picture,label\na.png,x\n")
    opened, _ = add(tmp_path / "run", source, image="picture")
    assert opened.kind == "image"
    save(source, "picture,label\na.png,x\n../run/sets/test/set.json,y\n")
    with pytest.raises(SetError, match=r"row 2.*leads out of"):
        read_set_file(source, SetColumns(image="picture"))


def test_class_names_that_datasets_keeps_in_a_parquet_file_are_used(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [{"bytes": image(i), "path": None} for i in range(3)], "label": [1, 0, -1]}
    source = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(source))
    opened, report = add(tmp_path / "run", source)
    assert opened.table()["label"].tolist()[:2] == ["dog", "cat"]
    assert report.missing_labels == ["2"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("s.csv", b"", "is empty"),
        ("s.csv", b"\n\n", "has no rows"),
        ("s.csv", b"text,label\n", "has no rows"),
        ("s.csv", b"text,label,label\na,b,c\n", "'label' appears twice"),
        ("s.csv", b"words,label\na,b\n", "name the column that holds the input.*'words', 'label'"),
        ("s.csv", b"text,image,label\na,b,c\n", "name the column that holds the input"),
        (
            "s.csv",
            b"text,class\na,b\n",
            r"no 'label'; it has 'text', 'class'.*SetColumns\(label=None\)",
        ),
        ("s.csv", b"text,label\na,b\n\xe9,c\n", "line 3 is not UTF-8 text.*0xe9"),
        ("s.csv", b"text,label\na,b\nc,d,e\n", "line 3: 3 fields, but the header has 2"),
        ("s.csv", b"text,label\na,b\nc\n", "line 3: 1 fields, but the header has 2"),
        ("s.csv", b'text,label\n"a,b\n', "line 2: a quote begins a field"),
        ("s.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2 is not JSON"),
        ("s.jsonl", b'{"text": "a", "label": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("s.jsonl", b"[" * 100_000, "is not a JSON array"),
        ("s.jsonl", b"\n", "has no rows"),
        ("s.parquet", b"PAR1 and nothing more", "damaged or not"),
        ("s.npz", b"no zip", "damaged or not"),
        ("s.npz", b"PK\x03\x04 truncated", "damaged or not"),
        ("s.txt", b"hello", r"one of the kinds \.csv, \.tsv, \.jsonl, \.json, \.parquet"),
    ],
)
def test_a_file_that_is_no_set_is_refused_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, what: str
) -> None:
    source = save(tmp_path / name, content)
    with pytest.raises(SetError, match=what) as caught:
        read_set_file(source)
    assert name in str(caught.value)


def test_a_row_without_a_text_is_named_when_written(tmp_path: Path) -> None:
    source = save(tmp_path / "s.jsonl", '{"text": "a", "label": 1}\n{"label": 2}\n')
    with pytest.raises(SetError, match="text of example '1' is missing"):
        add(tmp_path / "run", source)


def test_a_text_may_be_empty_or_very_long(tmp_path: Path) -> None:
    source = save(tmp_path / "s.csv", "text\n" + "x" * 200_000 + '\n""\n\n')
    assert read_set_file(source, SetColumns(label=None))["texts"] == ["x" * 200_000, ""]


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetError, match=r"absent\.csv is empty or not a file"):
        read_set_file(tmp_path / "absent.csv")
    source = save(tmp_path / "s.csv", "text,label\na,b\n")
    with pytest.raises(SetError, match="images and texts at the same time"):
        read_set_file(source, SetColumns(text="text", image="label"))
    with pytest.raises(SetError, match="no 'key'; it has 'text', 'label'"):
        read_set_file(source, SetColumns(id="key"))


# Arrays


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("x", "y"), ("x_test", "y_test"), ("test_images", "test_labels")],
)
def test_arrays_go_by_their_usual_names(tmp_path: Path, images: str, labels: str) -> None:
    arrays = {images: np.zeros((3, 4, 4)), labels: np.array([2, 0, 1]), "group": list("aba")}
    np.savez(tmp_path / "s.npz", **arrays, odd=np.zeros(2), y_train=np.zeros(3))
    opened, report = add(tmp_path / "run", tmp_path / "s.npz")
    assert opened.table()["label"].tolist() == ["2", "0", "1"] and opened.columns == ("group",)
    assert [line.split()[0] for line in report.left_out] == ["odd", "y_train"]


def test_arrays_can_be_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x_test=np.zeros((2, 3, 3)), pics=np.ones((1, 3, 3)), gold=["a"])
    keywords = read_set_file(tmp_path / "s.npz", SetColumns(image="pics", label="gold"))
    assert keywords["images"].shape == (1, 3, 3) and list(keywords["labels"]) == ["a"]


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"data": np.zeros((2, 3, 3))}, "no array of images; name it as SetColumns.image=.*'data'"),
        ({"images": np.zeros((2, 3, 3))}, r"no 'label'; it has 'images'.*SetColumns\(label=None\)"),
        ({"images": np.array([{}, None])}, "array 'images' cannot be read.*not as Python objects"),
    ],
)
def test_arrays_that_are_no_set_are_refused(
    tmp_path: Path, arrays: dict[str, Any], what: str
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(SetError, match=what):
        read_set_file(tmp_path / "s.npz")
    with pytest.raises(SetError, match="images and texts at the same time"):
        read_set_file(tmp_path / "s.npz", SetColumns(text="t"))


# Real data; no rows are printed, for the texts hold offensive language


def test_hatecheck_reads_with_every_case(tmp_path: Path, data_folder: Path) -> None:
    opened, report = add(
        tmp_path / "run",
        data_folder / "hatecheck/test_suite_cases.csv",
        text="test_case",
        label="label_gold",
        id="case_id",
    )
    assert (report.count, report.missing_labels, report.left_out) == (3728, [], [])
    assert opened.table()["label"].value_counts().to_dict() == {
        "hateful": 2563,
        "non-hateful": 1165,
    }
    assert opened.table(["functionality"])["functionality"].nunique() == 29


@pytest.mark.parametrize(
    ("file", "count"), [("mnist/mnist.npz", 10_000), ("pneumonia_mnist/pneumoniamnist.npz", 624)]
)
def test_image_archives_give_their_test_split(data_folder: Path, file: str, count: int) -> None:
    keywords = read_set_file(data_folder / file)
    assert len(keywords["images"]) == len(keywords["labels"]) == count
    assert keywords["columns"] == {} and keywords["left_out"]
