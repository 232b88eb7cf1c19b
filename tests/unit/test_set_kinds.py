"""Files as people have them: read for what they hold, or refused for what they are."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagelens.contracts import SetError
from stagelens.contracts.task_defaults import check_class
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import write_set
from tests.support.set_files import save

ROWS = "text,label\na cat,calm\na dog,loud\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", ROWS.encode("utf-8-sig")),
        ("utf-16.csv", ROWS.replace(",", "\t").encode("utf-16")),
        ("windows.csv", ROWS.replace("\n", "\r\n").encode()),
        ("empty-rows.csv", f"\n{ROWS}\n,\n,\n".encode()),
        ("ends.csv", ROWS.replace("\n", ",\n").encode()),
        ("spaced.csv", b'text, label\n"a cat", calm\na dog, "loud"\n'),
        ("header.csv", ROWS.replace("text,", " text ,").encode()),
        ("pipes.csv", ROWS.replace(",", "|").encode()),
        ("told.csv", f"sep=;\n{ROWS.replace(',', ';')}".encode()),
        ("commas.tsv", ROWS.encode()),
        (
            "array.json",
            b'[{"text": "a cat", "label": "calm"},\n{"text": "a dog", "label": "loud"}]',
        ),
        ("lines.json", b'{"text": "a cat", "label": "calm"}\n{"text": "a dog", "label": "loud"}'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_is_read_however_it_was_saved(name: str, content: bytes, tmp_path: Path) -> None:
    found = read_set_file(save(tmp_path / name, content))
    assert found["texts"] == ["a cat", "a dog"] and found["labels"] == ["calm", "loud"]
    assert found["columns"] == {}


WEB = b"<!DOCTYPE html>\n<html><body>404</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"PK\x03\x04\x14\x00\xff", "an Excel workbook or a zip file"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel workbook"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "compressed with gzip"),
        ("a.jsonl", b"PAR1\x15\x04", "a parquet file, .*rename it to .parquet"),
        ("a.csv", WEB, "a web page"),
        ("a.parquet", WEB, "a web page"),
        ("a.csv", POINTER, "git lfs pull"),
        ("a.parquet", POINTER, "git lfs pull"),
        ("a.csv", ROWS.encode("utf-16-le"), "null bytes, as text in UTF-16"),
        ("a.csv", ROWS.encode() + b'"5 disk,calm\n' + ROWS.encode(), "line 4: a quote begins"),
        ("a.csv", b"\n\n" + ROWS.encode() + b"a,b,c\n", "line 6: 3 fields"),
        ("a.json", b'{\n "text": "a"\n}', "line 1 is not JSON.*one {...} per line"),
        ("a.json", b"[1]", "entry 1 is not a JSON object"),
        ("a.json", b'[{"text": "a"}', "is not a JSON array"),
    ],
)
def test_what_is_no_such_table_is_named(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    with pytest.raises(SetError, match=says):
        read_set_file(save(tmp_path / name, content))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"cat/1.heic": b"x", "cat/2.HEIC": b"x", "dog/3.avif": b"x", "read.me": b"x"},
            r"but 2 \.heic, 1 \.avif, 1 \.me; convert the images to one of \.bmp, ",
        ),
        ({"data/x.csv": b"text\nt\n"}, r"but 1 \.csv; give a file .*, such as 'data/x.csv'"),
    ],
)
def test_a_folder_without_a_readable_image_says_what_it_holds(
    files: dict[str, bytes], says: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        save(tmp_path / "folder" / name, content)
    with pytest.raises(SetError, match=says):
        read_set_file(tmp_path / "folder")


MIXED: list[tuple[list[Any], list[Any]]] = [
    ([1, "x", None], ["1", "x", None]),
    ([True, 1, float("nan")], ["true", "1", None]),
    ([[1, 2], {"a": 1}, "x"], ["[1, 2]", '{"a": 1}', "x"]),
    ([2**64 - 1, 1, None], ["18446744073709551615", "1", None]),
]


@pytest.mark.parametrize(("cells", "kept"), MIXED, ids=str)
def test_a_column_of_several_kinds_is_kept_as_text(
    cells: list[Any], kept: list[Any], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"texts": ["a", "b", "c"], "columns": {"n": cells}}
    report = write_set(tmp_path, None, "s", **given, from_file=True)
    assert report.left_out == []
    table = pq.read_table(tmp_path / "sets/s/examples.parquet")
    assert table["n"].to_pylist() == kept and table.schema.field("n").type == pa.string()
    with pytest.raises(SetError, match="give values of one kind"):
        write_set(tmp_path, None, "t", **given)


def test_messages_and_missing_texts_are_told_apart(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    for texts, says in (
        ({"texts": [None]}, "text of example '0' is missing; give one"),
        ({"texts": [chat]}, "is list, not text; .*apply_chat_template"),
        ({"inputs": {"prompt": ["p"], "completion": [chat]}}, "has a completion that is list"),
    ):
        with pytest.raises(SetError, match=says):
            write_set(tmp_path, None, "s", **texts)


def test_a_label_with_spaces_around_it_is_one() -> None:
    assert check_class(["calm", "loud"], " loud ") == "loud"
    assert check_class(["calm", " loud "], " loud ") == " loud "


def test_a_set_remembers_what_was_left_out(tmp_path: Path) -> None:
    left_out = [f"{number}.txt (not an image that can be read)" for number in range(25)]
    write_set(tmp_path, None, "s", texts=["a"], left_out=left_out)
    kept = EvaluationSet.open(tmp_path, "s").facts.left_out
    assert kept == [*left_out[:20], "and 5 more"]
