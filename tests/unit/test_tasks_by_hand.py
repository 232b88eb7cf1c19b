"""What the built-in tasks measure, against the same computed plainly, example by example."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stagelens.contracts import Example, Refused, TaskError
from stagelens.runs.sets.values import checked_labels
from stagelens.tasks import MaskedLM, MultiLabelClassification, TokenClassification
from tests.support.small_texts import CLASSES, TEXTS, bert, bert_tokenizer
from tests.support.task_runs import (
    embeddings,
    images,
    masked_lm,
    multi_label,
    seq2seq,
    tagging,
)


def measured(small: Any, examples: list[Example]) -> tuple[dict[str, Tensor], Any, Any]:
    task, model = small.task, small.model.eval()
    batch = task.collate(examples)
    with torch.no_grad():
        outputs = task.outputs(model, batch)
        return task.behaviours(outputs, batch), task.predictions(outputs), (outputs, batch)


def text(name: str, label: str | None = None) -> Example:
    return Example(name, {"text": name}, label)


# -------------------------------------------------------------------------------- several classes


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["odd", "calm"], "calm, odd"),
        ([2, 0], "calm, odd"),
        ("odd,calm", "calm, odd"),
        ([1.0, 0.0, 1.0], "calm, odd"),
        ([1, 0, 1], "calm, odd"),
        ([0, 0, 0], "no class"),
        ([], "no class"),
        ("no class", "no class"),
        ("loud", "loud"),
        (1, "loud"),
        (None, None),
    ],
)
def test_labels_of_several_classes(given: Any, kept: str | None) -> None:
    assert checked_labels("s", multi_label().task, ["a"], [given]) == [kept]


def test_labels_of_several_classes_that_say_two_things() -> None:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer, id2label={0: "b", 1: "a, b"}, problem_type="multi_label_classification")
    task = MultiLabelClassification.from_model(model, tokenizer)
    # Indices, or zeros and ones?
    with pytest.raises(ValueError, match="may be indices, or zeros and ones"):
        task.check_label([0, 1])
    assert task.check_label([0.0, 1.0]) == "a, b" and task.check_label("a, b, b") == "b, a, b"
    assert task.label_tensor([task.check_label(["a, b"])], []).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="not one of the classes"):
        task.check_label("a")


def test_behaviours_of_several_classes() -> None:
    small = multi_label()
    values, said, _ = measured(small, [text(TEXTS[0], "calm, odd"), text(TEXTS[1])])
    tokens = small.processor(TEXTS[0], return_tensors="pt")
    logits = small.model(**tokens).logits[0].double().detach()
    label = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label)
    assert values["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    signed = torch.where(label > 0, logits, -logits)
    assert values["margin"][0] == pytest.approx(float(signed.mean()), rel=1e-5)
    assert values["worst margin"][0] == pytest.approx(float(signed.min()), rel=1e-5)
    assert all(each[1].isnan() for each in values.values())
    given = [name for name, own in zip(CLASSES, logits, strict=True) if own > 0]
    assert said.answers[0] == (", ".join(given) or "no class")
    chances = torch.sigmoid(logits)
    assert said.confidences[0] == pytest.approx(
        float(torch.where(logits > 0, chances, 1 - chances).prod()), rel=1e-5
    )


# ------------------------------------------------------------------------------------------- tags


def test_behaviours_of_tags_are_means_over_words() -> None:
    tokenizer = bert_tokenizer()
    # A word of two tokens: only the first gives it its tag.
    words = ["the", "cat-dog", "sat"]
    model = bert(tokenizer, auto=_tagger())
    task = TokenClassification.from_model(model, tokenizer)
    example = Example("a", {"text": " ".join(words)}, task.check_label(["calm", 1, "odd"]))
    batch = task.collate([example, text(TEXTS[0])])
    given = task.batch([words, TEXTS[0]], [["calm", 1, "odd"], None])  # a list of words, and a text
    assert all(torch.equal(given[key], batch[key]) for key in given)
    places = [1, 2, 5]
    assert batch["labels"][0].tolist()[:8] == [-100, 0, 1, -100, -100, 2, -100, -100]
    with torch.no_grad():
        outputs = task.outputs(model.eval(), batch)
        values = task.behaviours(outputs, batch)
        ids = batch["input_ids"][:1, :7]
        chances = model(input_ids=ids).logits[0, places].double().log_softmax(1)
    own = chances[[0, 1, 2], [0, 1, 2]]
    assert values["loss"][0] == pytest.approx(float(-own.mean()), rel=1e-5)
    margin = own - torch.log1p(-own.exp())
    assert values["margin"][0] == pytest.approx(float(margin.mean()), rel=1e-5)
    best = chances.argmax(1)
    assert values["share of right tags"][0] == pytest.approx(
        float((best == torch.arange(3)).double().mean())
    )
    assert task.predictions(outputs).answers[0] == " ".join(CLASSES[tag] for tag in best)
    assert all(each[1].isnan() for each in values.values())
    (first, _) = task.token_values(outputs, batch)
    assert np.isfinite(first.values).nonzero()[0].tolist() == places
    np.testing.assert_allclose(first.values[places], margin, rtol=1e-5)


def _tagger() -> Any:
    import transformers

    return transformers.AutoModelForTokenClassification


def test_a_text_needs_one_tag_per_word() -> None:
    task = tagging().task
    with pytest.raises(TaskError, match="example 'a dog' has 2 words but 3 tags"):
        task.collate([text("a dog", "calm calm odd")])
    with pytest.raises(ValueError, match="2 words but 1 tags"):
        task.batch(["a dog"], ["calm"])
    with pytest.raises(ValueError, match="not one tag for every word"):
        task.check_label([])


# ------------------------------------------------------------------------------------ masked words


def test_masks_are_filled_in_one_pass_and_other_texts_token_by_token() -> None:
    small = masked_lm()
    task, model, tokenizer = small.task, small.model.eval(), small.processor
    masked, plain = "the [MASK] sat", "a dog barked"
    examples = [text(masked, task.check_label("CAT")), text(plain), text(masked)]
    values, said, (outputs, batch) = measured(small, examples)
    assert batch["example"].tolist() == [0, 1, 1, 1, 2]
    with torch.no_grad():
        ids = tokenizer(masked, return_tensors="pt")["input_ids"]
        chances = model(input_ids=ids).logits[0, 2].double().log_softmax(0)
        whole = tokenizer(plain)["input_ids"]
        each = []
        for place in (1, 2, 3):
            given = list(whole)
            given[place] = tokenizer.mask_token_id
            logits = model(input_ids=torch.tensor([given])).logits[0, place].double()
            each.append(float(logits.log_softmax(0)[whole[place]]))
    cat = tokenizer.convert_tokens_to_ids("cat")
    expected = [float(chances[cat]), sum(each)]
    torch.testing.assert_close(
        values["log-likelihood"][:2], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert values["perplexity"][1] == pytest.approx(math.exp(-sum(each) / 3), rel=1e-5)
    # Without a label it is not known what belongs there, but there is an answer.
    assert values["log-likelihood"][2].isnan()
    assert said.answers[0] == said.answers[2] == tokenizer.decode([int(chances.argmax())])
    shown = task.token_values(outputs, batch)
    assert "".join(shown[1].tokens).replace(" ", "") == "[CLS]adogbarked[SEP]"
    np.testing.assert_allclose(shown[1].values[1:4], each, rtol=1e-5)
    with pytest.raises(TaskError, match="has 1 masks but a label of 2 tokens"):
        task.collate([text(masked, "cat dog")])


def test_a_model_without_a_mask_says_so() -> None:
    tokenizer = bert_tokenizer()
    task = MaskedLM.from_model(bert(tokenizer), tokenizer)
    with pytest.raises(TaskError, match="mask"):
        task.collate([text(TEXTS[0])])


# --------------------------------------------------------------------------- sequence to sequence


def test_completions_are_scored_as_the_model_s_own_loss_scores_them() -> None:
    small = seq2seq()
    task, model = small.task, small.model.eval()
    given = {"prompt": TEXTS[0], "completion": "a dog", "rejected": "birds sing"}
    values, said, (outputs, batch) = measured(
        small, [Example("a", given), Example("b", {"prompt": TEXTS[3], "completion": TEXTS[3]})]
    )
    with torch.no_grad():
        pairs = {name: given[name] for name in ("completion", "rejected")}
        likelihood = {
            name: -4 * float(model(**task.batch(prompts=[TEXTS[0]], completions=[own])).loss)
            for name, own in pairs.items()
        }
    assert values["log-likelihood"][0] == pytest.approx(likelihood["completion"], rel=1e-5)
    difference = likelihood["completion"] - likelihood["rejected"]
    assert values["preference"][0] == pytest.approx(difference, rel=1e-4)
    assert values["preference"][1].isnan()
    assert said.confidences[0] > 1 / len(small.processor)
    (first, _) = task.token_values(outputs, batch)
    assert first.values.sum() == pytest.approx(likelihood["completion"], rel=1e-5)
    with pytest.raises(ValueError, match="needs a completion"):
        task.check_input({"prompt": "a"})


# -------------------------------------------------------------------------------------- embeddings


def test_similarities_are_cosines_of_pooled_states() -> None:
    small = embeddings()
    model = small.model.eval()

    def vector(words: str) -> Tensor:
        with torch.no_grad():
            ids = small.processor(words, return_tensors="pt")["input_ids"]
            states: Tensor = model(input_ids=ids).last_hidden_state[0].mean(0)
        return states / states.norm()

    inputs = {"text": TEXTS[0], "other": TEXTS[3], "rejected": TEXTS[4]}
    values, _, _ = measured(
        small, [Example("a", inputs, "0.25"), Example("b", {**inputs, "rejected": None})]
    )
    own, other, third = (vector(each) for each in inputs.values())
    similarity = float(own @ other)
    assert values["similarity"][0] == pytest.approx(similarity, rel=1e-5)
    assert values["squared error"][0] == pytest.approx((similarity - 0.25) ** 2, rel=1e-4)
    assert values["preference"][0] == pytest.approx(similarity - float(own @ third), abs=1e-5)
    assert values["squared error"][1].isnan() and values["preference"][1].isnan()


def test_batches_without_labels_are_trained_to_find_their_own_other_text() -> None:
    small = embeddings()
    task, model = small.task, small.model.eval()
    batch = task.batch(TEXTS[:2], TEXTS[2:4], rejected=TEXTS[3:5])
    texts, others = task.embed(model, batch), task.embed(model, batch, "other_")
    among = torch.cat([others, task.embed(model, batch, "rejected_")])
    chances = (20 * texts @ among.T).log_softmax(1)
    expected = -(chances[0, 0] + chances[1, 1]) / 2
    torch.testing.assert_close(task.loss(model, batch), expected)


# ------------------------------------------------------------------------------------------ images


def test_images_are_scaled_as_their_processor_scales_them() -> None:
    small = images()
    pixels = small.examples["images"][0]
    (own,) = small.task.collate([Example("a", {"image": pixels})])["pixel_values"]
    np.testing.assert_allclose(own[0], (pixels / 255 - 0.5) / 0.5, atol=1e-6)
    shown = small.task.examples(small.batches[0])
    np.testing.assert_array_equal(shown[0].input["image"], pixels)
    with pytest.raises(ValueError, match="resize the images first"):
        small.task.check_input({"image": pixels[:4]})


# -------------------------------------------------------------------------------- maps of the input


@pytest.mark.parametrize("make", [seq2seq, embeddings])
def test_what_reads_several_texts_has_no_maps(make: Any) -> None:
    from stagelens.analyses.saliency.switched import Baseline

    with pytest.raises(Refused, match="several texts of an example"):
        Baseline(make().task, None, "padding")  # type: ignore[arg-type]


def test_a_masked_text_has_maps_and_one_that_is_read_many_times_has_none() -> None:
    from stagelens.analyses.saliency.switched import Tokens

    task = masked_lm().task
    assert Tokens(task, text("the [MASK] sat", "cat"), [[0]]).shape == (5,)
    with pytest.raises(Refused, match="reads it 3 times"):
        Tokens(task, text("a dog barked"), [[0]])
