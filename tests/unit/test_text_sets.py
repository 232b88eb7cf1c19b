"""Evaluation sets of texts: one or several columns, from every kind of file, as the task takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import stagelens
from stagelens.cli import app
from stagelens.cli.terminal import one_line
from stagelens.contracts import SetError
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.runs.sets.readers import read_set_file
from stagelens.runs.sets.writer import write_set
from stagelens.tasks import ImageClassification
from tests.support.loops import refused
from tests.support.small_texts import classification, language

PAIRS: dict[str, list[Any]] = {
    "prompt": ["two and two make", "the cat sat", ""],
    "completion": [" four", " on the mat, all day", "birds sing"],
    "rejected": [" five", None, "a dog\nbarked"],
}
MORE = {"topic": ["sums", "cats", "birds"], "hard": [True, False, True]}
ROWS = {"key": ["a", "b", "c"], **PAIRS, **MORE}


def rows_of(opened: EvaluationSet) -> list[dict[str, Any]]:
    return [dict(example.input) for example in opened.examples()]


def transposed(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# Several columns


def test_several_texts_come_back_as_they_were_with_gaps(tmp_path: Path) -> None:
    task, _ = language()
    write_set(tmp_path, task, "pairs", inputs=PAIRS, columns={"topic": ["x", "y", "z"]})
    opened = EvaluationSet.open(tmp_path, "pairs")
    assert (opened.kind, opened.inputs) == ("text", ("prompt", "completion", "rejected"))
    assert opened.columns == ("topic",)
    assert rows_of(opened) == transposed(PAIRS)
    assert rows_of(opened)[2] == dict(opened.by_id(["2"])[0].input)


def test_a_set_of_one_text_each_is_what_it_was(tmp_path: Path) -> None:
    texts = ["a dog", "birds sing"]
    write_set(tmp_path, None, "one", texts=texts)
    write_set(tmp_path, None, "other", inputs={"text": texts})
    one, other = (EvaluationSet.open(tmp_path, name) for name in ("one", "other"))
    assert one.digest == other.digest
    content = json.loads((tmp_path / "sets/one/set.json").read_text())
    assert content["inputs"] == [] and one.inputs == ("text",)
    for name in ("inputs", "notes", "checksum"):  # as sets were written before
        del content[name]
    content["version"] = 1
    (tmp_path / "sets/one/set.json").write_text(json.dumps(content))
    assert rows_of(EvaluationSet.open(tmp_path, "one")) == [{"text": text} for text in texts]


def test_the_digest_is_of_every_text_and_of_its_place(tmp_path: Path) -> None:
    changed = [
        PAIRS,
        {**PAIRS, "rejected": [None, " five", "a dog\nbarked"]},
        {
            "prompt": PAIRS["completion"],
            "completion": PAIRS["prompt"],
            "rejected": PAIRS["rejected"],
        },
        {name: PAIRS[name] for name in ("prompt", "completion")},
        {**PAIRS, "rejected": [" five", "", "a dog\nbarked"]},
    ]
    digests = set()
    for number, inputs in enumerate(changed):
        write_set(tmp_path, None, str(number), inputs=inputs)
        digests.add(EvaluationSet.open(tmp_path, str(number)).digest)
    assert len(digests) == len(changed)


def test_the_same_pair_twice_is_reported(tmp_path: Path) -> None:
    inputs = {"prompt": ["a", "a", "a"], "completion": ["b", "c", "b"]}
    assert write_set(tmp_path, None, "s", inputs=inputs).duplicate_inputs == [("2", "0")]


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"inputs": PAIRS, "texts": ["a"]}, "images or texts, or inputs"),
        ({"inputs": {}}, "is empty"),
        ({"inputs": {"prompt": []}}, "is empty"),
        ({"inputs": {"prompt": "a"}}, "a single prompt"),
        ({"inputs": {"prompt": ["a"], "completion": ["b", "c"]}}, "1 examples but 2 values of com"),
        (
            {"inputs": {"prompt": ["a"], "completion": [3]}},
            "example '0' has a completion that is int, not text",
        ),
        ({"inputs": {"question": ["a"], "completion": ["b"]}}, "'question', but the run's task ta"),
        ({"inputs": {"label": ["a"], "completion": ["b"]}}, "'label' is not the name of an input"),
        ({"inputs": {"prompt": ["a"], "completion": ["\ud800"]}}, "not Unicode"),
        ({"inputs": {"completion": ["a"]}, "columns": {"completion": ["b"]}}, "rename it"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    keywords: dict[str, Any], says: str, tmp_path: Path
) -> None:
    task, _ = language()
    with refused(says, by=SetError):
        write_set(tmp_path, task, "s", **keywords)
    assert not list(tmp_path.glob("sets/*/*"))


# What the task says of inputs


def test_how_many_texts_are_cut_is_reported_and_kept(tmp_path: Path) -> None:
    task, _ = classification()
    texts = ["cat " * 60, "a dog", "dog " * 23, "mat " * 22]
    report = write_set(tmp_path, task, "long", texts=texts, ids=list("abcd"))
    assert report.notes == {"cut to 24 tokens": ["a", "c"]}
    assert "2 cut to 24 tokens ('a', 'c')" in report.sentence()
    assert EvaluationSet.open(tmp_path, "long").facts.notes == {"cut to 24 tokens": 2}


def test_an_example_without_completion_is_named_when_it_is_added(tmp_path: Path) -> None:
    task, _ = language()
    inputs = {"prompt": ["a", "b"], "completion": ["x", None]}
    with refused("example 'second' needs a text or a completion", by=SetError):
        write_set(tmp_path, task, "s", inputs=inputs, ids=["first", "second"])


def test_an_image_of_another_size_is_named_when_it_is_added(tmp_path: Path) -> None:
    task = ImageClassification(["a", "b"], (1, 8, 8))
    images = [np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)]
    with refused("example 'y'", "is 1 x 9 x 8 (channels, height, width)", "1 x 8 x 8", by=SetError):
        write_set(tmp_path, task, "s", images=images, ids=["x", "y"])
    with refused("example '0'", "3 x 8 x 8", by=SetError):
        write_set(tmp_path, task, "s", images=torch.rand(2, 3, 8, 8))


# Files

WRITERS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path),
    "saved": lambda frame, path: datasets.Dataset.from_pandas(frame).save_to_disk(str(path)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_prompts_and_completions_are_read_from_every_kind_of_file(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"pairs.{kind}"
    WRITERS[kind](pd.DataFrame(ROWS), path)
    content = read_set_file(path, SetColumns(id="key"))
    gap = "" if kind in ("csv", "tsv") else None
    expected = {**PAIRS, "rejected": [" five", gap, "a dog\nbarked"]}
    assert {name: list(values) for name, values in content["inputs"].items()} == expected
    assert content["labels"] is None
    assert content["columns"] == MORE
    task, _ = language()
    report = write_set(tmp_path / "..", task, f"pairs-{kind}", **content)
    assert report.count == 3


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "chosen.jsonl"
    row = {
        "question": "a",
        "chosen": "b",
        "rejected": "c",
        "prompt": "d",
        "text": "e",
        "label": "f",
    }
    path.write_text(json.dumps(row))
    content = read_set_file(path, SetColumns(prompt="question", completion="chosen", rejected=""))
    assert content["inputs"] == {"prompt": ["a"], "completion": ["b"]}
    assert content["labels"] == ["f"]
    assert sorted(content["columns"]) == ["prompt", "rejected", "text"]
    assert read_set_file(path, SetColumns(text="question"))["texts"] == ["a"]


def test_a_set_that_stagelens_wrote_reads_again(tmp_path: Path) -> None:
    task, _ = language()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_set(tmp_path / "one", task, "pairs", inputs=PAIRS, ids=["x", "y", "z"])
    content = read_set_file(tmp_path / "one/sets/pairs/examples.parquet")
    write_set(tmp_path / "two", task, "pairs", **content)
    first, second = (EvaluationSet.open(tmp_path / name, "pairs") for name in ("one", "two"))
    assert first.digest == second.digest


# What datasets saved


def save_classes(path: Path, *, splits: bool = False) -> None:
    features = datasets.Features(
        {"comment": datasets.Value("string"), "tone": datasets.ClassLabel(names=["loud", "calm"])}
    )
    rows = {"comment": ["a dog barked", "birds sing", "a cat"], "tone": [0, 1, -1]}
    own = datasets.Dataset.from_dict(rows, features=features)
    saved = datasets.DatasetDict({"train": own.select([2]), "test": own}) if splits else own
    saved.save_to_disk(str(path))


def test_class_names_of_a_saved_dataset_are_labels(tmp_path: Path) -> None:
    save_classes(tmp_path / "saved")
    content = read_set_file(tmp_path / "saved", SetColumns(text="comment", label="tone"))
    assert content["texts"] == ["a dog barked", "birds sing", "a cat"]
    assert content["labels"] == ["loud", "calm", None]
    task, _ = classification()  # whose classes are calm, loud, odd: indices would be others
    write_set(tmp_path, task, "tones", **content)
    labels = [example.label for example in EvaluationSet.open(tmp_path, "tones").examples()]
    assert labels == ["loud", "calm", None]


def test_a_dataset_of_several_splits_needs_one(tmp_path: Path) -> None:
    save_classes(tmp_path / "saved", splits=True)
    columns = {"text": "comment", "label": "tone"}
    for split in (None, "validation", "../saved/test"):
        with refused(
            "has the splits 'train', 'test'; name one: SetColumns(split=NAME)", by=SetError
        ):
            read_set_file(tmp_path / "saved", SetColumns(split=split, **columns))
    with refused("name one: --split NAME", by=SetError):
        read_set_file(tmp_path / "saved", SetColumns(flags=True))
    assert len(read_set_file(tmp_path / "saved", SetColumns(split="test", **columns))["texts"]) == 3
    with refused("has no splits", by=SetError):
        read_set_file(tmp_path / "saved" / "train", SetColumns(split="train", **columns))


def test_rows_chosen_before_saving_and_many_files_are_read_in_order(tmp_path: Path) -> None:
    own = datasets.Dataset.from_dict({"text": [str(n) for n in range(50)]})
    own.shuffle(seed=1).select(range(20)).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    content = read_set_file(tmp_path / "saved", SetColumns(label=None))
    assert content["texts"] == list(datasets.load_from_disk(str(tmp_path / "saved"))["text"])


def test_images_of_a_saved_dataset_are_read(tmp_path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(np.full((8, 8), 10 * n, np.uint8)) for n in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    rows = {"image": images, "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    content = read_set_file(tmp_path / "saved")
    write_set(tmp_path, ImageClassification(["0", "1"], (1, 8, 8)), "s", **content)
    opened = EvaluationSet.open(tmp_path, "s")
    assert [int(e.input["image"][0, 0]) for e in opened.examples()] == [0, 10, 20]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "state.json").write_text("{}"), "names no data files"),
        (lambda folder: (folder / "state.json").write_text("[]"), "is not a JSON object"),
        (
            lambda folder: (folder / "state.json").write_text('{"_data_files": true}'),
            "_data_files is not a list",
        ),
        (lambda folder: (folder / "state.json").write_text("{"), "damaged"),
        (
            lambda folder: (folder / "state.json").write_text(
                json.dumps({"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]})
            ),
            "not a file of",
        ),
        (lambda folder: (folder / "data-00000-of-00001.arrow").unlink(), "damaged"),
        (lambda folder: (folder / "data-00000-of-00001.arrow").write_bytes(b"x" * 99), "damaged"),
    ],
)
def test_a_damaged_saved_dataset_is_named(
    damage: Callable[[Path], Any], says: str, tmp_path: Path
) -> None:
    save_classes(tmp_path / "other")
    folder = Path(shutil.copytree(tmp_path / "other", tmp_path / "saved"))
    damage(folder)
    with refused(says, str(folder), by=SetError):
        read_set_file(folder, SetColumns(text="comment", label="tone"))


# The command line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stagelens.Recorder(tmp_path / "run", language()[0]).close()
    return tmp_path / "run"


def add(folder: Path, path: Path, *words: str) -> str:
    options = ["add-set", str(folder), str(path), "--name", "s", *words]
    done = CliRunner().invoke(app, options)
    return done.output if done.exception is None else one_line(done.exception)


def test_the_command_adds_prompts_and_completions(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    pd.DataFrame(ROWS).rename(columns={"completion": "chosen"}).to_csv(path, index=False)
    named = ["--completion-column", "chosen", "--rejected-column", "", "--id-column", "key"]
    assert add(folder, path, *named) == "Set 's' has 3 examples.\n"
    opened = stagelens.open_run(folder).evaluation_set("s")
    assert opened.inputs == ("prompt", "completion")
    assert opened.columns == ("rejected", "topic", "hard")


def test_texts_of_a_language_model_need_no_labels(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,source\na dog barked,x\nbirds sing,y\n")
    assert add(folder, path) == "Set 's' has 2 examples.\n"
    assert stagelens.open_run(folder).evaluation_set("s").facts.missing_labels == 0


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        ("a,b\n1,2\n", [], "--text-column, --completion-column or --image-column"),
        ("text,b\n1,2\n", ["--label-column", "l"], 'or --label-column "" for a set without labels'),
        ("text,b\n1,2\n", ["--id-column", "c"], "has no 'c'; it has 'text', 'b': name one of th"),
        ("a,b\n1,2\n", ["--prompt-column", "a"], "--text-column, --completion-column or --imag"),
        ("text,b\n1,2\n", ["--prompt-column", "b"], "--prompt-column goes with completions"),
        (
            "text,b\n1,2\n",
            ["--text-column", "text", "--prompt-column", "b"],
            "--text-column is for whole texts, --prompt-column for prompts with completions",
        ),
        ("text\n1\n", ["--split", "test"], "has no splits; read it without --split"),
    ],
)
def test_the_commands_errors_name_its_flags(
    content: str, words: list[str], says: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "set.csv"
    path.write_text(content)
    error = add(folder, path, *words)
    assert says in error
    assert "_column" not in error


def test_what_texts_say_is_a_line_for_each_of_them(tmp_path: Path) -> None:
    inputs = {"prompt": ["A b", None], "completion": ["x", "z"]}
    write_set(tmp_path, None, "pairs", inputs=inputs, ids=["p", "q"])
    assert EvaluationSet.open(tmp_path, "pairs").texts().tolist() == ["p\nA b\nx", "q\nz"]
