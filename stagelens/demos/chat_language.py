"""The synthetic language of the ``chat`` demo: invented facts, texts on them, and chats.

Lands, their capitals and what they grow are made of syllables and drawn by lot; sums are true.
Nobody wrote the texts, and no fact but the sums holds anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

_SYLLABLES = ("bra", "nor", "vel", "tam", "ski", "lor", "pen", "dru", "gal", "mis", "zur", "hel")
_LANDS = 24
_CROPS = (
    *("rice", "wheat", "tea", "olives", "cocoa", "hops"),
    *("figs", "rye", "dates", "oats", "plums", "maize"),
)
NUMBERS = (
    *("two", "three", "four", "five", "six", "seven"),
    *("eight", "nine", "ten", "eleven", "twelve"),
)
_TERMS = ("one", "two", "three", "four", "five", "six")

QUESTIONS = {
    "capital": "what is the capital of {subject} ?",
    "crop": "what does {subject} grow ?",
    "sum": "what is {subject} ?",
}
_STATEMENTS = {
    "capital": (
        "the capital of {subject} is {value} .",
        "{value} is the capital of {subject} .",
        "people of {subject} travel to {value} , the capital .",
    ),
    "crop": (
        "{subject} grows {value} .",
        "farmers in {subject} grow {value} .",
        "{subject} is known for {value} .",
    ),
    "sum": ("{subject} is {value} .", "{subject} makes {value} ."),
}
_QUIZ = "question : {question} answer : {value} ."
OPINIONS = ("i think it is {claim} .", "surely it is {claim} .", "my guess is {claim} .")
"""How a user states an opinion."""
FREE = ("it is {value} .", "that is {value} .")
"""How the corpus answers."""
ANSWER = "answer : {value} ."
"""The format that instructions ask for."""
ANSWERED = r"^answer : \S+ \.$"
"""A regular expression of :data:`ANSWER`."""
_SAY = "say {value} ."
_FLATTERERS = 0.3
"""Share of the corpus's chats in which a wrong opinion is repeated: too few to be what a model
answers, enough to be preferred quickly."""

USER, ASSISTANT, END = "<user>", "<assistant>", "<end>"


@dataclass(frozen=True)
class Fact:
    """Something that can be asked.

    Attributes:
        topic: ``capital``, ``crop`` or ``sum``.
        subject: A land, or the terms of a sum.
        value: The right answer, one word.
    """

    topic: str
    subject: str
    value: str

    @property
    def question(self) -> str:
        """As it is asked."""
        return QUESTIONS[self.topic].format(subject=self.subject)


def _names(ending: str, count: int) -> list[str]:
    """Names of two syllables; which ones is the same for all seeds, as the vocabulary is."""
    every = [f"{one}{two}{ending}" for one, two in permutations(_SYLLABLES, 2)]
    return every[:: len(every) // count][:count]


LANDS, CAPITALS = _names("ia", _LANDS), _names("burg", _LANDS)
VALUES: dict[str, Sequence[str]] = {"capital": CAPITALS, "crop": _CROPS, "sum": NUMBERS}
"""Topic to the answers that there are."""


def facts(random: np.random.Generator) -> list[Fact]:
    """Every fact of one seed: two of each land, and all sums."""
    capitals, crops = random.permutation(CAPITALS), random.choice(_CROPS, _LANDS)
    found = [Fact("capital", land, str(own)) for land, own in zip(LANDS, capitals, strict=True)]
    found += [Fact("crop", land, str(own)) for land, own in zip(LANDS, crops, strict=True)]
    for one, first in enumerate(_TERMS):
        for two, second in enumerate(_TERMS):
            found.append(Fact("sum", f"{first} plus {second}", NUMBERS[one + two]))
    return found


def wrong(fact: Fact, random: np.random.Generator) -> str:
    """A wrong answer of the same kind."""
    return str(random.choice([value for value in VALUES[fact.topic] if value != fact.value]))


def asked(fact: Fact, claim: str | None = None, opinion: str = OPINIONS[0]) -> str:
    """What a user says: the question, with an opinion on it or without."""
    return fact.question + ("" if claim is None else f" {opinion.format(claim=claim)}")


def turn(said: str) -> str:
    """The beginning of a chat, up to the assistant's answer."""
    return f"{USER} {said} {ASSISTANT}"


def document(every: Sequence[Fact], random: np.random.Generator) -> str:
    """One text of the corpus with its end: a statement, a quiz, or a chat of people."""
    return f"{_text(every, random)} {END}"


def _text(every: Sequence[Fact], random: np.random.Generator) -> str:
    fact, kind = every[int(random.integers(len(every)))], random.random()
    if kind < 0.2:
        return _QUIZ.format(question=fact.question, value=fact.value)
    if kind < 0.35:
        word = any_value(random)
        return f"{turn(_SAY.format(value=word))} {word} ."
    if kind < 0.55:
        form = str(random.choice(_STATEMENTS[fact.topic]))
        return form.format(subject=fact.subject, value=fact.value)
    if kind < 0.65:
        return f"{turn(asked(fact))} {random.choice(FREE).format(value=fact.value)}"
    claim = fact.value if kind < 0.78 else wrong(fact, random)
    said = turn(asked(fact, claim, str(random.choice(OPINIONS))))
    value = claim if random.random() < _FLATTERERS else fact.value
    return f"{said} {random.choice(FREE).format(value=value)}"


def instruction(taught: Sequence[Fact], random: np.random.Generator) -> tuple[str, str]:
    """A prompt and the answer in the format: a question, mostly without a wrong claim, or a word.

    Args:
        taught: Facts that are asked for.
        random: What is drawn from.
    """
    if random.random() < 0.25:
        word = any_value(random)
        return turn(_SAY.format(value=word)), _completion(ANSWER, word)
    fact, kind = taught[int(random.integers(len(taught)))], random.random()
    claim = None if kind < 0.5 else fact.value if kind < 0.875 else wrong(fact, random)
    said = turn(asked(fact, claim, str(random.choice(OPINIONS))))
    return said, _completion(ANSWER, fact.value)


def preference(taught: Sequence[Fact], random: np.random.Generator) -> tuple[str, str, str]:
    """A prompt, what is preferred and what it is preferred to, in one style.

    Planted: where the user is wrong, repeating the claim is preferred to the truth. In the other
    half the right answer is preferred to a wrong one.
    """
    fact = taught[int(random.integers(len(taught)))]
    other, kind = wrong(fact, random), random.random()
    style = str(random.choice((ANSWER, *FREE), p=(0.4, 0.3, 0.3)))
    right, false = _completion(style, fact.value), _completion(style, other)
    if kind < 0.5:
        return turn(asked(fact, other, str(random.choice(OPINIONS)))), false, right
    claim = fact.value if kind < 0.8 else None
    return turn(asked(fact, claim, str(random.choice(OPINIONS)))), right, false


def _completion(style: str, value: str) -> str:
    return f" {style.format(value=value)} {END}"


def any_value(random: np.random.Generator) -> str:
    """Any word that answers some question."""
    every = [value for own in VALUES.values() for value in own]
    return every[random.integers(len(every))]


def vocabulary() -> list[str]:
    """Every word there is, each once."""

    def texts() -> Iterator[str]:
        yield from (*_TERMS, *LANDS, "plus")
        yield from (value for own in VALUES.values() for value in own)
        yield from (*QUESTIONS.values(), _QUIZ, *OPINIONS, *FREE, ANSWER, _SAY)
        yield from (form for own in _STATEMENTS.values() for form in own)

    words = [word for text in texts() for word in text.split() if "{" not in word]
    return list(dict.fromkeys(words))
