"""Folders that are no checkpoints of one model are refused by name, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import stagelens
from stagelens.contracts import StageLensError
from tests.support.checkpoints import changed, classifiers, edit_json, labelled_texts, save
from tests.support.damage import edit_and_seal
from tests.support.small_texts import bert, bert_tokenizer, gpt, gpt_tokenizer

INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sharded checkpoints; tests damage copies."""
    root = tmp_path_factory.mktemp("whole")
    classifiers(root, max_shard_size="8KB")
    return root


@pytest.fixture
def folders(whole: Path, tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(whole, tmp_path / "c")
    return {name: tmp_path / "c" / name for name in ("base", "sft", "dpo")}


def refusal(folders: Any, out: Path, **options: Any) -> str:
    with pytest.raises(StageLensError) as error:
        stagelens.assemble(folders, out, **options)
    assert not out.exists()
    assert [path.name for path in out.parent.glob(f".{out.name}*")] == []
    message = str(error.value)
    assert "\n" not in message
    return message


def index(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_json(folder / INDEX, lambda content: change(content["weight_map"]))


def config(**values: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(values))


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def place(file: Any) -> Damage:
    return index(lambda places: places.update({min(places): file}))


def cut_short(folder: Path) -> None:
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-3])


def only_a_pickle(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")


def link_elsewhere(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")


DAMAGES: list[tuple[Damage, str]] = [
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "config.json does not hold a JSON object",
    ),
    (
        lambda folder: (folder / "config.json").write_text('{"a":' * 10**5 + "1" + "}" * 10**5),
        "config.json cannot be read",
    ),
    (link_elsewhere, "config.json"),
    (config(model_type="no-such-model"), "transformers cannot make a configuration of it"),
    (config(model_type=None), "transformers cannot make a configuration of it"),
    (config(hidden_size="many"), "config.json"),
    (config(quantization_config={"bits": 4}), "cannot be loaded"),
    (config(num_attention_heads=4), "num_attention_heads"),
    (config(hidden_act="relu"), "hidden_act 'relu' and 'gelu'"),
    (config(model_type="roberta"), "'roberta' model and dpo a 'bert' model"),
    (lambda folder: (folder / INDEX).write_text("{}"), "weight_map: missing or no object"),
    (lambda folder: (folder / INDEX).write_text('{"weight_map": []}'), "weight_map: missing"),
    (place("../dpo/config.json"), "'../dpo/config.json' is not the name of a safetensors file"),
    (place("../dpo/model-00001-of-00003.safetensors"), "is not a usable name"),
    (place("/etc/shadow.safetensors"), "is not a usable name"),
    (place("..\\x.safetensors"), "is not a usable name"),
    (place(".hidden.safetensors"), "is not a usable name"),
    (place(3), "3 is not the name of a safetensors file"),
    (place("other.safetensors"), "other.safetensors is missing"),
    (index(lambda places: places.pop(min(places))), "differ in tensor"),
    (
        index(lambda places: places.update(another=places[min(places)])),
        "differ in tensor 'another'",
    ),
    (lambda folder: shard(folder).unlink(), "is missing"),
    (cut_short, "is damaged or not a safetensors file"),
    (lambda folder: shard(folder).write_bytes(b""), "is damaged or not a safetensors file"),
    (only_a_pickle, "holds pytorch_model.bin, a pickle, which may hold code"),
    (lambda folder: (folder / INDEX).unlink(), "holds neither model.safetensors nor"),
    (shutil.rmtree, "is not a folder"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says for _, says in DAMAGES])
def test_a_damaged_folder_is_refused_by_name(
    damage: Damage, says: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    damage(folders["sft"])
    message = refusal(folders, tmp_path / "run")
    assert says in message
    assert "sft" in message


def retensored(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a one-file checkpoint's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def single(tmp_path: Path) -> dict[str, Path]:
    return classifiers(tmp_path / "single")


WEIGHT = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize("name", ["base", "sft", "dpo"])
def test_a_missing_tensor_of_the_body_is_named(
    name: str, single: dict[str, Path], tmp_path: Path
) -> None:
    retensored(single[name], lambda tensors: tensors.pop(WEIGHT))
    message = refusal(single, tmp_path / "run")
    assert WEIGHT in message and name in message


@pytest.mark.parametrize("shape", [(1,), (16, 1), (1, 24), (24, 16), (16, 24, 1)])
def test_a_shape_that_would_broadcast_is_refused_with_both_shapes(
    shape: tuple[int, ...], single: dict[str, Path], tmp_path: Path
) -> None:
    retensored(single["sft"], lambda tensors: tensors.update({WEIGHT: torch.ones(shape)}))
    message = refusal(single, tmp_path / "run")
    assert WEIGHT in message and f"{shape}" in message and "(16, 24)" in message


def test_a_tied_head_has_no_place_for_an_earlier_one_of_its_own(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    base = save(gpt(tokenizer, tie_word_embeddings=False), tmp_path / "base")
    sft = save(gpt(tokenizer), tmp_path / "sft", tokenizer)
    message = refusal({"base": base, "sft": sft}, tmp_path / "run")
    assert "tie_word_embeddings False and True" in message


def test_shared_weights_that_differ_in_a_file_are_refused(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    base = save(gpt(tokenizer), tmp_path / "base")
    sft = save(changed(gpt(tokenizer), 1), tmp_path / "sft", tokenizer)
    same = load_file(base / "model.safetensors")["transformer.wte.weight"]
    retensored(base, lambda tensors: tensors.update({"lm_head.weight": same.clone()}))
    assert stagelens.assemble({"base": base, "sft": sft}, tmp_path / "same").problems == []
    retensored(base, lambda tensors: tensors.update({"lm_head.weight": same + 1}))
    message = refusal({"base": base, "sft": sft}, tmp_path / "run")
    assert "lm_head.weight" in message and "tied weights" in message


def test_folders_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    classifier = bert(tokenizer)
    base = save(classifier.bert, tmp_path / "base", tokenizer)
    sft = save(changed(classifier, 1), tmp_path / "sft", tokenizer)
    message = refusal({"sft": sft, "plain": base}, tmp_path / "run")
    assert "plain: config.json names the architecture 'BertModel'" in message


def test_a_state_that_comes_back_later_is_refused(single: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(single["base"], tmp_path / "again")
    stages = [*single.items(), ("again", tmp_path / "again")]
    shutil.copy(single["dpo"] / "tokenizer.json", tmp_path / "again")
    message = refusal(stages, tmp_path / "run")
    assert "again has exactly the weights of base" in message


def test_a_folder_that_is_given_twice_is_refused(single: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(single["sft"])
    stages = [*single.items(), ("more", tmp_path / "link")]
    assert "sft and more are the same folder" in refusal(stages, tmp_path / "run")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["base"], "a run needs at least two checkpoints"),
        ([], "a run needs at least two checkpoints"),
        (["base", "sft", "sft"], "the name 'sft' is given twice"),
        (["sft", "sft"], "the name 'sft' is given twice"),
        (["start", "base"], "the name 'base' is given twice, or is that of the base"),
        (["base", "../sft"], "'../sft' is not a usable name"),
        (["base", ""], "'' is not a usable name"),
    ],
    ids=str,
)
def test_names_are_checked_before_anything_is_read(
    names: list[str], says: str, tmp_path: Path
) -> None:
    assert says in refusal([(name, tmp_path / "none") for name in names], tmp_path / "run")


def test_an_architecture_without_a_task_is_refused(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    asked = transformers.BertForQuestionAnswering(bert(tokenizer).config)
    folders = {
        "base": save(asked, tmp_path / "base"),
        "sft": save(changed(asked, 1), tmp_path / "sft", tokenizer),
    }
    message = refusal(folders, tmp_path / "run")
    assert "sft: config.json names the architecture 'BertForQuestionAnswering'" in message
    assert "--task" in message


def test_without_a_tokenizer_there_is_no_task(single: dict[str, Path], tmp_path: Path) -> None:
    (single["dpo"] / "tokenizer.json").unlink()
    message = refusal(single, tmp_path / "run")
    assert "none of the folders has a tokenizer" in message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Nothing"}}'])
def test_a_tokenizer_that_is_none_is_refused(
    content: str, single: dict[str, Path], tmp_path: Path
) -> None:
    (single["dpo"] / "tokenizer.json").write_text(content)
    message = refusal(single, tmp_path / "run")
    assert f"the tokenizer in {single['dpo']} cannot be made" in message


def test_code_that_a_folder_names_is_never_run(
    single: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "sprung"
    for folder in single.values():
        (folder / "own.py").write_text(f"open({str(trap)!r}, 'w')\n")
        edit_json(
            folder / "config.json",
            lambda content: content.update(
                auto_map={
                    "AutoConfig": "own.Config",
                    "AutoModelForSequenceClassification": "own.Model",
                }
            ),
        )
    edit_json(
        single["dpo"] / "tokenizer_config.json",
        lambda content: content.update(auto_map={"AutoTokenizer": ["own.Tok", "own.Tok"]}),
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    run = stagelens.assemble(single, tmp_path / "run")
    run.task.build_model()
    assert not trap.exists()


def test_a_task_that_needs_more_than_a_folder_is_refused(
    single: dict[str, Path], tmp_path: Path
) -> None:
    message = refusal(single, tmp_path / "run", task="stagelens.tasks:ImageClassification")
    assert "cannot be made from a checkpoint folder" in message
    assert "not a stagelens.Task" in refusal(single, tmp_path / "run", task="os:path")


def test_nothing_is_overwritten(single: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(StageLensError, match="is not empty"):
        stagelens.assemble(single, out)
    assert (out / "mine").read_text() == "mine"


def test_an_evaluation_file_is_read_before_anything_is_copied(
    single: dict[str, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "few.jsonl"
    bad.write_text('{"no": "text"}\n')
    assert "few.jsonl" in refusal(single, tmp_path / "run", evaluation=bad)
    labels = labelled_texts(tmp_path / "other.jsonl")
    labels.write_text(labels.read_text().replace("loud", "unheard of"))
    assert "unheard of" in refusal(single, tmp_path / "run", evaluation=labels)


def test_without_room_nothing_is_copied(
    single: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert "only 0.0 GB are free" in refusal(single, tmp_path / "run")
    assert len(stagelens.assemble(single, tmp_path / "run", link=True).stages) == 2


def test_a_link_that_cannot_be_made_is_refused(
    single: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    message = refusal(single, tmp_path / "run", link=True)
    assert "cannot be linked" in message and "omit --link" in message


def test_an_edited_original_is_found_out_where_it_was_linked(
    single: dict[str, Path], tmp_path: Path
) -> None:
    run = stagelens.assemble(single, tmp_path / "run", link=True)
    path = single["sft"] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StageLensError, match="was changed after it was recorded"):
        stagelens.open_run(run.path).stages[0].end()


def test_a_run_whose_names_were_edited_is_refused(single: dict[str, Path], tmp_path: Path) -> None:
    run = stagelens.assemble(single, tmp_path / "run")
    path = run.path / "stages/00-sft/stage.json"
    edit_and_seal(path, lambda stage: stage["end"]["names"].update({WEIGHT: "elsewhere"}))
    edit_and_seal(run.path / "run.json", lambda file: file["stages"][0].update(sha256=None))
    with pytest.raises(StageLensError, match="has no tensor 'elsewhere'"):
        stagelens.open_run(run.path).stages[0].end()
