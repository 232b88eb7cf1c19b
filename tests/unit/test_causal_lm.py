"""The task causal-lm: likelihoods are those of a plain loop, and a batch changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from stagelens.contracts import Example, TaskError
from stagelens.runs import task_files
from stagelens.tasks import CausalLM, find_task, likelihoods
from tests.support.small_texts import (
    TEXTS,
    bert_tokenizer,
    classification,
    gpt,
    gpt_tokenizer,
    language,
)

PAIRS = (
    {"prompt": "the cat sat", "completion": " on the mat", "rejected": " barked"},
    {"prompt": "two and two", "completion": " make four"},
    {"prompt": "", "completion": "birds sing", "rejected": "the rain in the night was long"},
    {"completion": "a dog"},
    {"prompt": "x", "completion": "y" * 30, "rejected": "z"},
)


def examples(*inputs: Any) -> list[Example]:
    return [Example(str(number), value) for number, value in enumerate(inputs)]


def measured(task: CausalLM, model: Any, *inputs: Any) -> dict[str, np.ndarray]:
    batch = task.collate(examples(*inputs))
    with torch.inference_mode():
        outputs = task.outputs(model, batch)
    return {name: v.numpy() for name, v in task.behaviours(outputs, batch).items()}


def plainly(model: Any, before: list[int], after: list[int]) -> list[float]:
    """log p of every token of ``after``, one model call per token, in float64."""
    values = []
    for number, token in enumerate(after):
        given = torch.tensor([[*before, *after[:number]]])
        with torch.inference_mode():
            logits = model(input_ids=given).logits[0, -1].double().tolist()
        largest = max(logits)
        total = math.fsum(math.exp(value - largest) for value in logits)
        values.append(logits[token] - largest - math.log(total))
    return values


@pytest.mark.parametrize("begin", [None, "<s>"])
def test_a_completions_likelihood_is_that_of_its_tokens_one_by_one(begin: str | None) -> None:
    tokenizer = gpt_tokenizer(begin)
    model = gpt(tokenizer)
    values = measured(CausalLM.from_model(model, tokenizer), model, *PAIRS)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for number, pair in enumerate(PAIRS):
        first = [tokenizer.bos_token_id] if begin or not pair.get("prompt") else []
        before = first + ids(pair.get("prompt", ""))
        own = plainly(model, before, ids(pair["completion"]))
        assert values["log-likelihood"][number] == pytest.approx(sum(own), rel=1e-6)
        mean = sum(own) / len(own)
        assert values["log-likelihood per token"][number] == pytest.approx(mean, rel=1e-6)
        assert values["perplexity"][number] == pytest.approx(math.exp(-mean), rel=1e-6)
        if "rejected" in pair:
            gap = sum(own) - sum(plainly(model, before, ids(pair["rejected"])))
            assert values["preference"][number] == pytest.approx(gap, rel=1e-5)
        else:
            assert math.isnan(values["preference"][number])


@pytest.mark.parametrize("begin", [None, "<s>"])
def test_a_texts_perplexity_is_over_every_token_that_something_stands_before(
    begin: str | None,
) -> None:
    tokenizer = gpt_tokenizer(begin)
    model = gpt(tokenizer)
    values = measured(CausalLM.from_model(model, tokenizer), model, *({"text": t} for t in TEXTS))
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        own = plainly(model, ids[:1], ids[1:])
        assert values["log-likelihood"][number] == pytest.approx(sum(own), rel=1e-6)
        expected = math.exp(-sum(own) / len(own))
        assert values["perplexity"][number] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(values["preference"]).all()


def test_the_loss_is_the_models_own_and_covers_completions_only() -> None:
    task, model = language()
    prompts, completions = (list(column) for column in zip(*BOTH, strict=True))
    with torch.inference_mode():
        loss = float(task.loss(model, task.batch(prompts=prompts, completions=completions)))
        whole = float(task.loss(model, task.batch(TEXTS)))
    pairs = [{"prompt": p, "completion": c} for p, c in BOTH]
    for value, inputs in ((loss, pairs), (whole, [{"text": t} for t in TEXTS])):
        own = measured(task, model, *inputs)
        tokens = own["log-likelihood"] / own["log-likelihood per token"]
        assert value == pytest.approx(-own["log-likelihood"].sum() / tokens.sum(), rel=1e-5)


BOTH = [("the cat sat", " on the mat"), ("two and two", " make four"), ("a dog", " barked")]


def test_behaviours_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = language()
    inputs = [*PAIRS, *({"text": text} for text in TEXTS)]
    together = measured(task, model, *inputs)
    monkeypatch.setattr(likelihoods, "_PIECE_BYTES", 4 * 330 * 40)
    in_pieces = measured(task, model, *inputs)
    for number, value in enumerate(inputs):
        alone = measured(task, model, value)
        for name, own in alone.items():
            for other in (together, in_pieces):
                assert other[name][number] == pytest.approx(own[0], rel=2e-6, nan_ok=True), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_changes_nothing(side: str) -> None:
    tokenizer = gpt_tokenizer(padding_side=side)
    model = gpt(tokenizer)
    task = CausalLM.from_model(model, tokenizer)
    usual = measured(CausalLM.from_model(model, gpt_tokenizer()), model, *PAIRS)
    for name, values in measured(task, model, *PAIRS).items():
        np.testing.assert_array_equal(values, usual[name])


def test_a_prediction_is_the_models_own_next_token() -> None:
    task, model = language()
    tokenizer = gpt_tokenizer()
    batch = task.collate(examples(*PAIRS[:2], {"text": "a dog barked"}))
    with torch.inference_mode():
        found = task.predictions(task.outputs(model, batch))
        for number, prompt in enumerate(("the cat sat", "two and two", "a dog barked")):
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].double()
            chance, token = logits.softmax(0).max(0)
            assert found.confidences[number] == pytest.approx(float(chance), rel=1e-5)
            answer = tokenizer.decode([int(token)])
            assert found.answers[number] == (answer.strip() or repr(answer).strip("'"))


def test_token_values_are_each_tokens_own_and_none_for_a_prompt() -> None:
    task, model = language()
    batch = task.collate(examples(PAIRS[0], {"text": "naïve – 猫 sat"}))
    with torch.inference_mode():
        outputs = task.outputs(model, batch)
    pair, text = task.token_values(outputs, batch)
    values = task.behaviours(outputs, batch)["log-likelihood"].tolist()
    assert "".join(pair.tokens) == "the cat sat on the mat"
    assert pair.tokens[-1].endswith("mat") or "mat".endswith(pair.tokens[-1])
    prompt = len(gpt_tokenizer()("the cat sat")["input_ids"])
    assert np.isnan(pair.values[:prompt]).all()
    assert not np.isnan(pair.values[prompt:]).any()
    assert np.nansum(pair.values) == pytest.approx(values[0])
    assert len(text.tokens) == len(text.values)
    assert np.nansum(text.values) == pytest.approx(values[1])


def test_long_inputs_are_cut_a_text_at_its_end_and_a_prompt_at_its_beginning() -> None:
    tokenizer = gpt_tokenizer("<s>")
    model = gpt(tokenizer)
    task = CausalLM.from_model(model, tokenizer, max_length=8)
    long = "the rain in the night was long and cold"
    ids = tokenizer(long)["input_ids"]
    batch = task.collate(examples({"text": long}, {"prompt": long, "completion": " birds"}))
    text, pair = batch["input_ids"]
    assert text.tolist() == ids[:8]
    answer = tokenizer(" birds", add_special_tokens=False)["input_ids"]
    assert pair.tolist() == [1, *ids[len(answer) - 7 :], *answer]
    assert task.check_input({"text": long}) == "cut to 8 tokens"
    assert task.check_input({"prompt": long, "completion": " birds"}) == "cut to 8 tokens"
    assert task.check_input({"text": "birds"}) is None
    both = {"prompt": "a", "completion": long}
    assert task.collate(examples(both))["labels"].ne(-100).sum() == 7


def test_what_has_no_likelihood_is_nan_and_not_zero() -> None:
    task, model = language()
    values = measured(task, model, {"text": ""}, {"text": "a"}, {"text": "a dog"})
    assert [math.isnan(v) for v in values["log-likelihood"]] == [True, True, False]
    assert [math.isnan(v) for v in values["perplexity"]] == [True, True, False]


def test_a_very_long_word_is_cut_and_not_a_problem() -> None:
    task, model = language()
    values = measured(task, model, {"text": "x" * 100_000}, {"text": "a dog"})
    assert np.isfinite(values["log-likelihood"]).all()


@pytest.mark.parametrize(
    "value",
    [{}, {"prompt": "a"}, {"text": "a", "completion": "b"}, {"prompt": "a", "completion": ""}],
)
def test_an_example_needs_a_text_or_a_completion(value: dict[str, str]) -> None:
    task, _ = language()
    with pytest.raises(ValueError, match="needs a text or a completion"):
        task.check_input(value)
    with pytest.raises(TaskError, match="example '0' needs a text or a completion"):
        task.collate(examples(value))


def test_special_tokens_that_a_text_spells_out_are_not_taken_for_the_tokenizers() -> None:
    tokenizer = gpt_tokenizer("<s>")
    model = gpt(tokenizer)
    task = CausalLM.from_model(model, tokenizer)
    row = task.collate(examples({"prompt": "<s>a", "completion": "<|endoftext|>b"}))
    ids = row["input_ids"][0].tolist()
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "ab"]
    assert ids == [1, 1, letters[0], 0, letters[1]]
    assert row["labels"][0].tolist() == [-100, -100, -100, 0, letters[1]]


def test_the_tokenizer_comes_back_from_its_files_alone() -> None:
    for tokenizer in (gpt_tokenizer(), gpt_tokenizer("<s>"), bert_tokenizer()):
        model = gpt(gpt_tokenizer("<s>", pad_token="<pad>"))
        task = CausalLM.from_model(model, tokenizer)
        again = find_task("causal-lm", task.config, task.assets)
        assert isinstance(again, CausalLM)
        for text in (*TEXTS, "", "unheard-of ünïcödé 猫\n\t x"):
            assert again.tokenizer.encode(text).ids == tokenizer(text)["input_ids"]


def test_what_other_programs_ask_of_a_model_is_kept_and_decides_no_number(tmp_path: Path) -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    plain = CausalLM.from_model(model, tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model.generation_config.max_new_tokens = 7
    task = CausalLM.from_model(model, tokenizer)
    assert {*task.assets} - {*plain.assets} == {"chat_template.jinja"}
    for name, content in task.assets.items():
        (tmp_path / name).write_bytes(content)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read.chat_template == tokenizer.chat_template
    assert transformers.GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 7
    before, now = (task_files.write_task(tmp_path / "run", each) for each in (plain, task))
    assert task_files.identity(before) == task_files.identity(now)
    assert task_files.differing(before, task) == []


def test_models_of_other_families_are_made_again_too() -> None:
    tokenizer = gpt_tokenizer("<s>")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    task = CausalLM.from_model(model, tokenizer)
    built = task.build_model().eval()
    built.load_state_dict(model.state_dict())
    for name, values in measured(task, built, *PAIRS).items():
        np.testing.assert_array_equal(values, measured(task, model, *PAIRS)[name])


@pytest.mark.parametrize("begin", [None, "<s>"])
@pytest.mark.parametrize("longest", [2, 3, 4])
def test_no_row_is_longer_than_the_longest(begin: str | None, longest: int) -> None:
    tokenizer = gpt_tokenizer(begin)
    task = CausalLM.from_model(gpt(tokenizer), tokenizer, max_length=longest)
    batch = task.batch(prompts=["the cat sat", "", "a"], completions=[" on the mat"] * 3)
    assert batch["input_ids"].shape[1] == longest
    # Something stands before the first token that counts.
    assert (batch["labels"][:, 0] == -100).all() and (batch["labels"] != -100).any(1).all()
    assert task.check_input({"prompt": "the cat sat", "completion": " on the mat"})


def test_a_batch_that_does_not_fit_together_is_refused_in_words() -> None:
    task, _ = language()
    for given, says in (
        ({"prompts": ["a"], "completions": ["b", "c"]}, "1 prompts but 2 completions"),
        ({"prompts": ["a", "b"], "completions": ["b", ""]}, "row 1 of the batch has a completion"),
        ({"completions": []}, "completions is empty"),
        ({"texts": []}, "texts is empty"),
        ({"texts": "a text"}, "texts is a single text; give a list"),
    ):
        with pytest.raises(TaskError, match=says):
            task.batch(**given)
    classifier, _ = classification()
    with pytest.raises(TaskError, match="2 texts but 1 labels"):
        classifier.batch(["a", "b"], ["calm"])
    with pytest.raises(TaskError, match="texts is a single text"):
        classifier.batch("how kind")
