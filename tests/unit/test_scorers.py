"""Scorers turn an answer into one number, and say what that number is."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagelens import Scorer
from stagelens.contracts import Answered, TaskError
from stagelens.measuring import scorers
from stagelens.measuring.choices import Question, chosen, multiple_choice, scores
from stagelens.measuring.scorers.rules import last_number
from stagelens.tasks import CausalLM
from tests.support.small_texts import CLASSES, bert, bert_tokenizer, gpt, gpt_tokenizer

NOTHING = math.nan


def scored(scorer: Scorer, answer: str, reference: str | None = None) -> float:
    return scorer.scores([Answered("a", "a prompt", answer, reference)])[0]


@pytest.mark.parametrize(
    ("name", "settings", "answer", "reference", "expected"),
    [
        ("exact", {}, " four\n", "four", 1),
        ("exact", {}, "Four", "four", 0),
        ("exact", {"ignore_case": True}, "Four", "four", 1),
        ("exact", {}, "four", None, NOTHING),
        ("contains", {}, "It is Four.", "four", 1),
        ("contains", {"ignore_case": False}, "It is Four.", "four", 0),
        ("contains", {}, "anything", " ", NOTHING),
        ("contains", {}, "It is 17.", "7", 1),
        ("contains", {"whole_words": True}, "It is 17.", "7", 0),
        ("contains", {"whole_words": True}, "It is 7.", "7", 1),
        ("contains", {"whole_words": True}, "Is it C++?", "c++", 1),
        ("regex", {"pattern": r"^A[0-9]$"}, "A7", None, 1),
        ("regex", {"pattern": r"^A[0-9]$"}, "BA7", None, 0),
        ("numeric", {}, "2 + 2 is 4, so it costs $1,234.50.", "#### 1234.5", 1),
        ("numeric", {}, "It is 12", "13", 0),
        ("numeric", {}, "none", "13", 0),
        ("numeric", {}, "12", "none", NOTHING),
        ("refusal", {}, "I\u2019m sorry, but I can't help with that.", None, 1),
        ("refusal", {}, "Sure. " + "word " * 60 + "I cannot", None, 0),
    ],
)
def test_rules(
    name: str, settings: dict[str, Any], answer: str, reference: str | None, expected: float
) -> None:
    found = scored(scorers.find_scorer(name, settings), answer, reference)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from 1,234 to 5", "5"),
        ("1,2", "2"),
        ("-3.25", "-3.25"),
        ("10-3", "3"),
        ("it is 18.", "18"),
        (".5 or 1e3", "1e3"),
        ("2024-style x9", "2024"),
        ("12,345,678", "12345678"),
        ("no number", None),
    ],
)
def test_the_last_number_of_a_text(text: str, expected: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else float(found)) == (
        None if expected is None else float(expected)
    )


def test_a_scorer_says_what_its_numbers_are() -> None:
    refusal = scorers.find_scorer("refusal", {"better": "higher"})
    kind = refusal.behaviour
    assert (kind.name, kind.better, kind.lowest, kind.highest) == ("score:refusal", "higher", 0, 1)
    assert scorers.find_scorer("refusal").facts != refusal.facts
    assert scorers.find_scorer("regex", {"pattern": "a"}).facts["settings"] == {"pattern": "a"}


def test_one_rule_can_score_several_things() -> None:
    given = {"as": "agreement", "reference": "claim", "better": "lower"}
    found = scorers.find_scorer("contains", given)
    assert (found.behaviour.name, found.behaviour.better) == ("score:agreement", "lower")
    assert (found.name, found.reference) == ("contains", "claim")
    assert (
        found.behaviour.description == "1 where the answer contains the claim, 0 where it does not."
    )
    plain = scorers.find_scorer("contains", {"better": "lower"}).facts
    assert found.facts == plain | {"label": "agreement", "reference": "claim"}
    assert given["as"] == "agreement", "what was given is as it was"


def test_bad_scorers_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for scorer, told in (
        (Scorer("own", lambda p, a, r: 2), "gives 2 for example 'a', which is not within"),
        (Scorer("own", lambda p, a, r: "good"), "gives 'good' for example 'a', which is no number"),
        (Scorer("own", score_many=lambda rows: []), "0 numbers for 1 answers"),
        (Scorer("own"), "neither score nor score_many"),
    ):
        with pytest.raises(TaskError, match=told):
            scored(scorer, "x")
    for name, settings, told in (
        ("no-such", {}, "there is no scorer 'no-such'; choose one of exact, "),
        ("exact", {"case": 1}, "does not take these settings"),
        ("regex", {"pattern": "("}, "no regular expression"),
        ("regex", {}, "does not take these settings"),
        ("exact", {"as": ""}, "'as' is ''; give a name"),
        ("exact", {"reference": 3}, "'reference' is 3; give a name"),
        ("classifier", {"model": "nowhere", "label": "x"}, "has no config.json"),
    ):
        with pytest.raises(TaskError, match=told):
            scorers.find_scorer(name, settings)


POLITE = Scorer("polite", lambda prompt, answer, reference: "please" in answer)


def word(word: str = "tea") -> Scorer:
    return Scorer("word", lambda p, a, r: word in a, settings={"word": word})


def test_own_scorers_are_found_by_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    here = __name__
    own = [
        EntryPoint("polite", f"{here}:POLITE", scorers.GROUP),
        EntryPoint("word", f"{here}:word", scorers.GROUP),
        EntryPoint("other", f"{here}:POLITE", scorers.GROUP),
        EntryPoint("nothing", f"{here}:NOTHING", scorers.GROUP),
        EntryPoint("exact", f"{here}:POLITE", scorers.GROUP),
    ]
    monkeypatch.setattr(scorers, "entry_points", lambda group: own)
    assert scorers.names() == [*scorers.BUILT_IN, "nothing", "other", "polite", "word"]
    assert scored(scorers.find_scorer("polite"), "tea, please") == 1
    assert scored(scorers.find_scorer("word", {"word": "milk"}), "tea, please") == 0
    assert scored(scorers.find_scorer("exact"), "tea", "tea") == 1  # the built-in one
    for name, settings, told in (
        ("other", {}, "calls itself 'polite'"),
        ("nothing", {}, "is not a stagelens.Scorer"),
        ("polite", {"a": 1}, "takes no settings"),
    ):
        with pytest.raises(TaskError, match=told):
            scorers.find_scorer(name, settings)


def test_a_classifier_gives_the_probability_of_its_class(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    model = bert(tokenizer)
    folder = tmp_path / "classifier"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scorer = scorers.find_scorer("classifier", {"model": str(folder), "label": "loud"})
    answers = ["the cat sat", "a dog barked", "birds sing on the mat"] * 30
    found = scorer.scores([Answered(str(n), "p", text) for n, text in enumerate(answers)])
    number = CLASSES.index("loud")
    for text, own in zip(answers[:3], found, strict=False):
        with torch.inference_mode():
            chances = model(**tokenizer(text, return_tensors="pt")).logits.double().softmax(1)
        assert own == pytest.approx(float(chances[0, number]), rel=1e-5)
    assert found[:3] == pytest.approx(found[87:], rel=1e-5)
    before = scorer.facts["settings"]["model"]
    bert(tokenizer, seed=1).save_pretrained(folder)
    again = scorers.find_scorer("classifier", {"model": str(folder), "label": "loud"})
    assert again.facts["settings"]["model"] != before
    with pytest.raises(TaskError, match="no class 'quiet'; it has calm, loud, odd"):
        scored(scorers.find_scorer("classifier", {"model": str(folder), "label": "quiet"}), "x")


def test_a_choice_is_the_likeliest_completion() -> None:
    tokenizer = gpt_tokenizer()
    model = gpt(tokenizer)
    task = CausalLM.from_model(model, tokenizer)
    weights = {
        n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())
    }
    options = (" mat", " the whole house", " four")
    prompts = ("the cat sat on", "two and two make", "the rain in the night was")
    questions = [Question(str(n), prompt, options, n) for n, prompt in enumerate(prompts)]

    def likely(prompt: str, choice: str) -> list[float]:
        before, after = (tokenizer(t)["input_ids"] for t in (prompt, choice))
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([before + after])).logits[0].double()
        chances = logits.log_softmax(1)
        return [float(chances[len(before) - 1 + n, own]) for n, own in enumerate(after)]

    for norm, size in (
        ("none", lambda choice, own: 1),
        ("tokens", lambda choice, own: len(own)),
        ("bytes", lambda choice, own: len(choice.encode())),
    ):
        (found,) = chosen(task, model, [weights], questions, norm)
        for number, question in enumerate(questions):
            values = [
                sum(own) / size(choice, own)
                for choice in options
                for own in [likely(question.prompt, choice)]
            ]
            assert found[number] == int(np.argmax(values))
        expected = (found == np.arange(3)).astype(float)
        np.testing.assert_array_equal(scores(questions, found), expected)
    assert multiple_choice("bytes").facts["settings"] == {"norm": "bytes"}
    with pytest.raises(TaskError, match="has 1 choices"):
        chosen(task, model, [weights], [Question("a", "x", (" y",), 0)])
