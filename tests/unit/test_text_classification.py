"""The task text-classification, and what both tasks on transformers models share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from stagelens.contracts import Example, TaskError
from stagelens.runs.states import model_tensors
from stagelens.tasks import CausalLM, TextClassification, cutting, find_task
from tests.support.small_texts import (
    CLASSES,
    TEXTS,
    bert,
    bert_tokenizer,
    classification,
    gpt_tokenizer,
)

LABELS = ("calm", "loud", "odd", None, "loud")


def logits(task: TextClassification, model: Any, texts: tuple[str, ...] = TEXTS) -> Tensor:
    with torch.inference_mode():
        return task.outputs(model, task.batch(texts))


def test_logits_are_those_of_the_model_with_its_own_tokenizer() -> None:
    task, model = classification()
    tokenizer = bert_tokenizer()
    expected = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    torch.testing.assert_close(logits(task, model), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_behaviours_are_of_the_label_and_missing_where_it_is() -> None:
    task, model = classification()
    examples = [
        Example(str(n), {"text": text}, label)
        for n, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    batch = task.collate(examples)
    with torch.inference_mode():
        outputs = task.outputs(model, batch)
        loss = task.loss(model, batch)
    values = task.behaviours(outputs, batch)
    rows = [n for n, label in enumerate(LABELS) if label is not None]
    own = [outputs[n].log_softmax(0)[CLASSES.index(str(LABELS[n]))].item() for n in rows]
    np.testing.assert_allclose(values["loss"][rows], -np.array(own), rtol=1e-5)
    assert values["loss"].isnan().nonzero().flatten().tolist() == [3]
    assert float(loss) == pytest.approx(-np.mean(own), rel=1e-5)
    found = task.predictions(outputs)
    assert found.answers == [CLASSES[n] for n in outputs.argmax(1).tolist()]


@pytest.mark.parametrize("tokens", [1, 12, 10_000])
def test_behaviours_do_not_depend_on_the_batch(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = classification()
    alone = torch.cat([logits(task, model, (text,)) for text in TEXTS])
    monkeypatch.setattr(cutting.pieces, "__defaults__", (tokens,))
    torch.testing.assert_close(logits(task, model), alone, rtol=1e-5, atol=1e-6)


def test_a_decoder_reads_the_last_token_of_every_text() -> None:
    tokenizer = gpt_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, pad_token_id=0, num_labels=2
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    task = TextClassification.from_model(model, tokenizer)
    alone = torch.cat([logits(task, model, (text,)) for text in TEXTS])
    torch.testing.assert_close(logits(task, model), alone, rtol=1e-5, atol=1e-6)
    assert logits(task, model, ("",)).isfinite().all()


def test_a_decoder_that_knows_no_padding_is_refused_by_name() -> None:
    tokenizer = gpt_tokenizer()
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(TaskError, match="pad_token_id"):
        TextClassification.from_model(model, tokenizer)


def test_long_texts_are_cut_and_said_to_be() -> None:
    task, model = classification()
    long = "cat " * 100
    assert task.longest == 24
    ids = task.batch([long])["input_ids"][0]
    assert ids.tolist() == bert_tokenizer()(long, truncation=True, max_length=24)["input_ids"]
    assert task.check_input({"text": long}) == "cut to 24 tokens"
    assert task.check_input({"text": "cat"}) is None
    shorter = TextClassification.from_model(model, bert_tokenizer(), max_length=5)
    assert shorter.batch([long])["input_ids"].shape == (1, 5)
    limited = TextClassification.from_model(model, bert_tokenizer(model_max_length=7))
    assert limited.longest == 7


def test_roberta_holds_fewer_tokens_than_it_says() -> None:
    tokenizer = bert_tokenizer()
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=14,
        pad_token_id=1,
        id2label=dict(enumerate(CLASSES)),
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    task = TextClassification.from_model(model, tokenizer)
    assert task.longest == 12
    assert logits(task, model, ("cat " * 100,)).isfinite().all()


@pytest.mark.parametrize("text", ["", " \n", "x" * 100_000, "\x00", "猫" * 50, "‮abc‏"])
def test_odd_texts_have_finite_numbers(text: str) -> None:
    task, model = classification()
    assert logits(task, model, (text, "a dog")).isfinite().all()


def test_the_task_comes_back_from_its_config_and_assets() -> None:
    task, model = classification()
    again = find_task(task.name, task.config, task.assets)
    assert isinstance(again, TextClassification)
    assert again.config == task.config
    built = again.build_model().eval()
    assert {n: (t.shape, t.dtype) for n, t in model_tensors(built).items()} == {
        n: (t.shape, t.dtype) for n, t in model_tensors(model).items()
    }
    built.load_state_dict(model.state_dict())
    assert torch.equal(logits(again, built), logits(task, model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_model_is_made_as_it_was_with_attention_and_dtype(
    attention: str, dtype: str, tmp_path: Path
) -> None:
    tokenizer = bert_tokenizer()
    bert(tokenizer).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation=attention
    )
    task = TextClassification.from_model(loaded, tokenizer)
    built = task.build_model()
    assert built.config._attn_implementation == attention
    assert type(built) is type(loaded)
    assert [(n, t.shape, t.dtype) for n, t in model_tensors(built).items()] == [
        (n, t.shape, t.dtype) for n, t in model_tensors(loaded).items()
    ]


def test_where_a_model_was_loaded_from_and_trained_is_no_part_of_the_task(tmp_path: Path) -> None:
    task, model = classification()
    before = task.config
    task.loss(model, task.batch(TEXTS[:2], [0, 1])).backward()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    assert TextClassification.from_model(loaded, bert_tokenizer()).config == before
    assert str(tmp_path) not in str(before)


def test_without_a_dtype_the_model_is_in_float32() -> None:
    config = {**bert(bert_tokenizer()).config.to_dict(), "dtype": None}
    built = TextClassification(CLASSES, config).build_model()
    assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_a_stages_own_configuration_makes_its_model() -> None:
    task, _ = classification()
    other = {**task.model, "num_hidden_layers": 1}
    assert task.build_model({"model": other}).config.num_hidden_layers == 1
    assert task.build_model({}).config.num_hidden_layers == 2


def test_another_tokenizers_vocabulary_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"does not fit the model: its token .* has the id 329"):
        TextClassification.from_model(bert(bert_tokenizer()), gpt_tokenizer())


def test_a_slow_tokenizer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    slow = transformers.BertJapaneseTokenizer(
        str(vocabulary), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece"
    )
    with pytest.raises(TaskError, match=r"BertJapaneseTokenizer is a slow one.*convert"):
        TextClassification.from_model(bert(bert_tokenizer()), slow)


def test_the_last_call_of_a_tokenizer_leaves_no_trace_in_the_assets() -> None:
    used = bert_tokenizer()
    used(list(TEXTS), padding=True, truncation=True, max_length=3)
    model = bert(used)
    fresh = TextClassification.from_model(model, bert_tokenizer())
    assert TextClassification.from_model(model, used).assets == fresh.assets


def test_without_a_tokenizer_a_task_makes_models_but_reads_no_texts() -> None:
    task = TextClassification(CLASSES, bert(bert_tokenizer()).config.to_dict())
    assert task.assets == {}
    task.build_model()
    with pytest.raises(TaskError, match=r"no tokenizer.*tokenizer="):
        task.batch(TEXTS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"problem_type": "regression"}, "problem_type"),
        ({"id2label": {"0": "a", "1": "b"}}, "2 outputs .* 3 classes"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": None}, "no model_type"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    config = {**bert(bert_tokenizer()).config.to_dict(), **change}
    with pytest.raises(TaskError, match=says):
        TextClassification(CLASSES, config)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "unheard-of"}, "unheard-of.*version of transformers"),
        ({"model_type": "vit"}, "cannot make a 'vit' model for text-classification"),
        ({"hidden_size": "wide"}, "cannot make"),
        ({"hidden_size": 15}, "cannot make"),
    ],
)
def test_a_model_that_transformers_cannot_make_is_an_error_of_the_task(
    change: dict[str, Any], says: str
) -> None:
    config = {**bert(bert_tokenizer()).config.to_dict(), **change}
    with pytest.raises(TaskError, match=says):
        TextClassification(CLASSES, config).build_model()


HOSTILE = {
    "auto_map": {"AutoConfig": "someone/evil--code.Config", "AutoModel": "code.Model"},
    "_attn_implementation": "someone/evil",
    "attn_implementation": "someone/evil",
    "_attn_implementation_internal": "someone/evil",
    "_name_or_path": "someone/evil",
}


def test_a_configuration_fetches_nothing_and_runs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import huggingface_hub

    def refuse(*_args: Any, **_options: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    task, _ = classification()
    again = TextClassification(CLASSES, {**task.model, **HOSTILE}, assets=task.assets)
    assert again.config["model"] == task.model
    assert again.build_model({"model": {**task.model, **HOSTILE}}).config.name_or_path == ""


@pytest.mark.parametrize("attention", ["someone/evil", "paged|eager", "Eager", ""])
def test_attention_is_one_of_transformers_own(attention: str) -> None:
    task, _ = classification()
    with pytest.raises(TaskError, match="is not one of eager, sdpa"):
        TextClassification(**{**task.config, "attention": attention})


def test_flash_attention_that_is_not_installed_is_not_fetched() -> None:
    task, _ = classification()
    with pytest.raises(TaskError, match="flash_attn is not installed"):
        TextClassification(**{**task.config, "attention": "flash_attention_2"})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"no", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", b"[1]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", None, "lack tokenizer_config.json"),
    ],
)
def test_a_damaged_tokenizer_is_named(name: str, content: bytes | None, says: str) -> None:
    task, _ = classification()
    assets = dict(task.assets)
    del assets[name]
    if content is not None:
        assets[name] = content
    with pytest.raises(TaskError, match=says):
        TextClassification(**task.config, assets=assets)


def test_labels_are_class_names_or_indices() -> None:
    task, _ = classification()
    batch = task.batch(TEXTS, ["calm", 1, "2", None, "loud"])
    assert batch["labels"].tolist() == [0, 1, 2, -100, 1]
    with pytest.raises(ValueError, match="'quiet' is not one of the classes calm, loud, odd"):
        task.batch(TEXTS[:1], ["quiet"])


def test_a_batch_without_labels_has_no_loss_and_says_so() -> None:
    task, model = classification()
    with pytest.raises(TaskError, match="no 'labels'"):
        task.loss(model, task.batch(TEXTS))


def test_both_tasks_are_found_by_their_registered_names() -> None:
    from importlib.metadata import entry_points

    own = {e.name: e.value for e in entry_points(group="stagelens.tasks")}
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for task in (TextClassification, CausalLM):
        value = f"{task.__module__}:{task.__name__}"
        assert f'{task.name} = "{value}"' in pyproject
        assert own.get(task.name, value) == value
