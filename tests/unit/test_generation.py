"""Answers are those of ``generate`` one by one, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from stagelens.contracts import TaskError
from stagelens.measuring.generation import NEAR_TIE, Answer, Generation, generate
from stagelens.tasks import CausalLM, Seq2Seq
from stagelens.tasks.chat import chat_prompts
from tests.support.small_texts import classification, gpt, gpt_tokenizer, made
from tests.support.tiny_models import tiny

PROMPTS = {
    "cat": "the cat sat on",
    "dog": "a dog",
    "sum": "two and two make",
    "rain": "the rain in the night was long and cold and",
    "none": "",
}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def language(kind: str = "gpt2") -> tuple[CausalLM, Any]:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer) if kind == "gpt2" else tiny(kind, "causal")
    return CausalLM.from_model(model, tokenizer), model


def answers(
    task: CausalLM, model: Any, how: Generation, tokens: int = 8192, prompts: Any = PROMPTS
) -> dict[str, list[Answer]]:
    return generate(task, model, weights(model), prompts, how, tokens)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mpt", "mamba"])
def test_greedy_answers_are_those_of_a_loop_over_the_best_token(kind: str) -> None:
    task, model = language(kind)
    found = answers(task, model, Generation(max_tokens=8))
    for name, prompt in PROMPTS.items():
        ids = list(task.prompt_tokens(prompt, 8)[0])
        start, gap = len(ids), float("inf")
        while len(ids) - start < 8:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            top = logits.topk(2)
            gap = min(gap, float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
            if ids[-1] in (0, model.config.eos_token_id):
                break
        (own,) = found[name]
        if own.gap > NEAR_TIE:
            assert own.text == task.tokenizer.decode(ids[start:], special=False)
            assert own.tokens == len(ids) - start
            assert own.gap == pytest.approx(gap, rel=1e-2, abs=1e-4)
    assert sum(own.gap > NEAR_TIE for (own,) in found.values()) >= 4


@pytest.mark.parametrize("samples", [0, 3])
def test_answers_do_not_depend_on_the_batch_but_near_ties(samples: int) -> None:
    task, model = language()
    how = Generation(max_tokens=8, samples=samples, seed=4)
    prompts = {str(n): " ".join(["the cat sat on the mat"] * 3)[: 2 + n] for n in range(20)}
    together = answers(task, model, how, 8192, prompts)
    differing = 0
    for tokens in (100,) if samples else (1, 100):
        for name, own in answers(task, model, how, tokens, prompts).items():
            for one, other in zip(own, together[name], strict=True):
                if (one.text, one.tokens) != (other.text, other.tokens):
                    differing += 1
                    assert min(one.gap, other.gap) <= NEAR_TIE
    assert differing <= 1
    assert len({own.text for each in together.values() for own in each}) > 5


def test_samples_are_drawn_by_prompt_and_seed_from_the_models_probabilities() -> None:
    task, model = language()
    how = Generation(max_tokens=1, samples=1000, seed=1, temperature=2.0)
    found = answers(task, model, how, 8192, {"cat": PROMPTS["cat"]})["cat"]
    with torch.inference_mode():
        ids = torch.tensor([task.prompt_tokens(PROMPTS["cat"])[0]])
        chances = (model(input_ids=ids).logits[0, -1].double() / 2).softmax(0)
    texts = [each.text for each in found]
    said = [task.tokenizer.decode([token], special=False) for token in range(len(chances))]
    for text in ("the", "[", *said[20:60:10]):  # some tokens are no text by themselves, and alike
        chance = sum(float(own) for own, each in zip(chances, said, strict=True) if each == text)
        share = texts.count(text) / len(texts)
        assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / len(texts)), text
    fewer = Generation(max_tokens=1, samples=5, seed=1, temperature=2.0)
    some = answers(task, model, fewer, 50, PROMPTS)
    assert [own.text for own in some["cat"]] == texts[:5]
    other = Generation(max_tokens=1, samples=5, seed=2, temperature=2.0)
    assert [own.text for own in answers(task, model, other)["cat"]] != texts[:5]


def test_an_answer_ends_at_a_stop_and_without_it() -> None:
    task, model = language()
    whole = answers(task, model, Generation(max_tokens=12))["cat"][0]
    stop = whole.text[3:5]
    found = answers(task, model, Generation(max_tokens=12, stop=(stop, "never there")))
    (own,) = found["cat"]
    assert own.text == whole.text[: whole.text.index(stop)]
    assert own.ended and own.tokens < whole.tokens
    for name, (each,) in found.items():
        if name != "cat":
            assert stop not in each.text


def test_sequence_to_sequence_models_answer_what_their_encoder_reads() -> None:
    tokenizer = gpt_tokenizer(pad_token="<|endoftext|>")
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    model = made(transformers.AutoModelForSeq2SeqLM, config)
    task = Seq2Seq.from_model(model, tokenizer)
    found = answers(task, model, Generation(max_tokens=6))
    for name, prompt in PROMPTS.items():
        ids = torch.tensor([task.prompt_tokens(prompt)[0]])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        (own,) = found[name]
        if own.gap > NEAR_TIE:
            assert own.text == tokenizer.decode(out[0], skip_special_tokens=True)


def test_a_long_prompt_loses_its_beginning_and_a_doubled_begin_is_none() -> None:
    tokenizer = gpt_tokenizer("<s>")
    task = CausalLM.from_model(gpt(tokenizer), tokenizer)
    long = "the cat sat on the mat " * 20
    ids, cut = task.prompt_tokens(long, room=10)
    assert cut and len(ids) == 48 - 10 and ids[0] == tokenizer.bos_token_id
    assert ids[1:] == tokenizer(long, add_special_tokens=False)["input_ids"][-37:]
    assert task.prompt_tokens("<s>a dog") == task.prompt_tokens("a dog")
    assert task.prompt_tokens("") == ([tokenizer.bos_token_id], False)
    with pytest.raises(TaskError, match="answers of 47 tokens leave no room for a prompt"):
        task.prompt_tokens("a dog", room=47)


def test_conversations_become_prompts_by_the_tokenizers_template() -> None:
    tokenizer = gpt_tokenizer()
    with pytest.raises(TaskError, match="no chat template"):
        chat_prompts(tokenizer, ["hello"])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = [{"role": "user", "content": "a dog"}, {"role": "assistant", "content": "barked"}]
    assert chat_prompts(tokenizer, ["hello", turns], system="be kind") == [
        "[system] be kind [user] hello [assistant]",
        "[system] be kind [user] a dog [assistant] barked [assistant]",
    ]
    with pytest.raises(TaskError, match=r"conversation 0 .*no tools"):
        chat_prompts(tokenizer, [[{"role": "tool", "content": "x"}]])


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"samples": -1}, {"temperature": 0.0}, {"stop": ("",)}]
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=r"give|leave"):
        Generation(**options)


def test_settings_that_play_no_part_are_not_in_the_digest() -> None:
    assert Generation(seed=3).facts == Generation(temperature=0.5).facts
    assert Generation(samples=2, seed=3).facts != Generation(samples=2).facts


def test_models_that_do_not_generate_are_refused() -> None:
    task, model = classification()
    with pytest.raises(TaskError, match="text-classification do not generate"):
        generate(task, model, {}, PROMPTS, Generation())
