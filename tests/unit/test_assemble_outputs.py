"""Outputs and tokens mean the same in every checkpoint of a run, or it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import stagelens
from stagelens.contracts import RunError, TaskError
from stagelens.tasks import TextClassification
from tests.support.checkpoints import changed, edit_json, save
from tests.support.small_texts import bert, bert_tokenizer, gpt, gpt_tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two checkpoints of one classifier."""
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    return {
        name: save(changed(model, seed), tmp_path / name, tokenizer)
        for seed, name in enumerate(("base", "sft"))
    }


def configure(folder: Path, **values: Any) -> None:
    """Set keys of a configuration; a key set to None is left out."""

    def change(content: dict[str, Any]) -> None:
        content.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del content[key]

    edit_json(folder / "config.json", change)


def labels(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


@pytest.mark.parametrize(
    "values",
    [
        {"id2label": labels("loud", "calm", "odd")},
        {"id2label": labels("Odd", "Calm", "Loud")},
        {"id2label": labels("odd", "harsh", "soft")},
        {"id2label": None, "num_labels": 3, "label2id": {"odd": 0, "loud": 1, "calm": 2}},
    ],
    ids=["permuted", "in other letters", "one moved", "in label2id alone"],
)
def test_the_same_names_in_another_order_are_refused(
    values: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    configure(folders["base"], **values)
    with pytest.raises(RunError, match=r"base \(.*but sft calm, loud, odd: .* is output") as error:
        stagelens.assemble(folders, tmp_path / "run")
    assert "correct id2label" in str(error.value) and "reorder the rows" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("which", "own"),
    [
        ("base", {"id2label": None, "num_labels": 3}),
        ("base", {"id2label": labels("calm", "noisy", "odd")}),
        ("sft", {"id2label": None, "num_labels": 3}),
    ],
)
def test_other_names_of_the_same_outputs_are_said(
    which: str, own: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    configure(folders[which], **own)
    run = stagelens.assemble(folders, tmp_path / "run")
    (note,) = run.problems
    assert note.startswith("base names its outputs ")
    assert "they are read as" in note and "as in sft" in note


@pytest.mark.parametrize("which", ["base", "sft"])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"id2label": {"0": "calm", "2": "loud", "5": "odd"}}, "numbers its labels 0, 2, 5"),
        ({"id2label": {"1": "calm", "2": "loud", "3": "odd"}}, "the outputs 0 to 2"),
        ({"id2label": labels("calm", "loud")}, "correct"),
        ({"id2label": None}, "correct"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(
    values: dict[str, Any], says: str, which: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    configure(folders[which], **values)
    with pytest.raises(RunError, match=f"{which}.*{says}") as error:
        stagelens.assemble(folders, tmp_path / "run")
    assert "config.json" in str(error.value)


def test_a_task_does_not_take_labels_with_gaps_or_in_another_order() -> None:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, id2label={0: "calm", 2: "loud", 5: "odd"})
    with pytest.raises(TaskError, match="id2label has the numbers 0, 2, 5"):
        TextClassification.from_model(model, tokenizer)
    config = bert(tokenizer).config.to_dict()
    with pytest.raises(TaskError, match="names its output 0 'calm'"):
        TextClassification(["odd", "loud", "calm"], config, tokenizer)
    assert TextClassification(["a", "b", "c"], config, tokenizer).classes == ["a", "b", "c"]


def test_scores_are_no_classes_and_several_labels_are_said(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    configure(folders["base"], problem_type="multi_label_classification")
    run = stagelens.assemble(folders, tmp_path / "several")
    assert "base gives a text several labels" in run.problems[0]
    configure(folders["base"], problem_type="regression")
    with pytest.raises(RunError, match=r"base .* is a model for regression"):
        stagelens.assemble(folders, tmp_path / "run")


def test_the_head_of_a_token_classifier_is_not_that_of_a_classifier_of_texts(
    tmp_path: Path,
) -> None:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    tagger = transformers.BertForTokenClassification(model.config)
    folders = {
        "tags": save(tagger, tmp_path / "tags"),
        "sft": save(changed(model, 1), tmp_path / "sft", tokenizer),
    }
    run = stagelens.assemble(folders, tmp_path / "run")
    assert set(run.stages[0].facts.boundary.new) >= {"classifier.weight", "classifier.bias"}
    said = "tags: its head (classifier.bias, classifier.weight) is that of a BertForTokenClassifica"
    assert any(note.startswith(said) for note in run.problems)


def test_label2id_that_contradicts_id2label_is_noted(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    configure(folders["sft"], label2id={"calm": 2, "loud": 1, "odd": 0})
    (note,) = stagelens.assemble(folders, tmp_path / "run").problems
    assert note.startswith("sft: id2label and label2id contradict each other")


def test_tokens_with_other_ids_are_refused_and_added_ones_are_not(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    base = save(model, tmp_path / "base", tokenizer)
    more = gpt_tokenizer()
    more.add_tokens(["<|user|>"])
    model.resize_token_embeddings(len(more))
    sft = save(changed(model, 1), tmp_path / "sft", more)
    stagelens.assemble({"base": base, "sft": sft}, tmp_path / "added")

    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    edit_json(base / "tokenizer.json", swap)
    with pytest.raises(RunError, match=r"base: the token '[ab]' has the id"):
        stagelens.assemble({"base": base, "sft": sft}, tmp_path / "run")
