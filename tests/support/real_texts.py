"""Comments of the real text data sets, as the `text` scenario uses them. No row is ever printed."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES = ("harmless", "toxic")
_TOXIC_EMOTIONS = {"2", "3", "11"}  # anger, annoyance, disgust


@dataclass(frozen=True)
class Comments:
    """Texts and whether each is toxic, as class names."""

    texts: list[str]
    labels: list[str]

    def take(self, rows: np.ndarray) -> Comments:
        return Comments([self.texts[i] for i in rows], [self.labels[i] for i in rows])

    def balanced(self, count: int, random: np.random.Generator) -> Comments:
        """``count`` of them, half toxic, drawn without replacement, in random order."""
        toxic = np.asarray([label == "toxic" for label in self.labels])
        parts = [
            random.choice(np.flatnonzero(toxic == kind), count // 2, replace=False)
            for kind in (True, False)
        ]
        return self.take(random.permutation(np.concatenate(parts)))


def _comments(pairs: list[tuple[str, bool]]) -> Comments:
    return Comments([text for text, _ in pairs], [CLASSES[toxic] for _, toxic in pairs])


def goemotions(data: Path) -> Comments:
    """Reddit comments; toxic is any of anger, annoyance and disgust."""
    pairs = []
    for line in (data / "goemotions" / "train.tsv").read_text("utf-8").splitlines():
        text, emotions, _ = line.split("\t")
        pairs.append((text, bool(_TOXIC_EMOTIONS & set(emotions.split(",")))))
    return _comments(pairs)


def hatexplain(data: Path, part: str) -> Comments:
    """Posts; toxic is everything that is not normal."""
    lines = (data / "hatexplain_text" / f"{part}.tsv").read_text("utf-8").splitlines()[1:]
    rows = [line.split("\t", 1) for line in lines]
    return _comments([(text, label != "normal") for label, text in rows])


def identity_tests(data: Path) -> Comments:
    """Talk-page comments of the identity tests, not fuzzed."""
    return _table(data / "identity_tests" / "toxicity_nonfuzzed_testset.csv", "comment", "toxic")


def hatecheck(data: Path) -> Comments:
    """HateCheck's functional tests, written by templates."""
    return _table(data / "hatecheck" / "test_suite_cases.csv", "test_case", "label_gold")


def _table(path: Path, text: str, label: str) -> Comments:
    with path.open(encoding="utf-8", newline="") as file:
        return _comments(
            [(row[text], row[label] in ("True", "hateful")) for row in csv.DictReader(file)]
        )


def identity_terms(data: Path) -> list[str]:
    return (data / "identity_tests" / "identity_terms.txt").read_text("utf-8").split()


def mentions(texts: list[str], terms: list[str]) -> list[str]:
    """ "mention" where a text names an identity, else "none"."""
    named = "|".join(map(re.escape, sorted(terms, key=len, reverse=True)))
    pattern = re.compile(rf"(?<![a-z])({named})s?(?![a-z])")
    return ["mention" if pattern.search(text.lower()) else "none" for text in texts]


@dataclass(frozen=True)
class TextScenario:
    """Three training stages and two evaluation sets."""

    stages: list[tuple[str, Comments]]
    sets: dict[str, tuple[Comments, list[str]]]


def text_scenario(data: Path, seed: int, rows: int = 1000, share: float = 1.0) -> TextScenario:
    """GoEmotions; other GoEmotions rows with an identity term behind every toxic one; HateXplain.

    Args:
        data: The data folder.
        seed: Draws rows and terms.
        rows: Comments per stage, half of them toxic.
        share: Of the evaluation rows: 300 of HateXplain, 200 of the identity tests, HateCheck.
    """
    random = np.random.default_rng(seed)
    terms = identity_terms(data)
    emotions = goemotions(data).balanced(2 * rows, random)
    first = emotions.take(np.arange(rows))
    second = emotions.take(np.arange(rows, 2 * rows))
    planted = [
        f"{text} {random.choice(terms)}" if label == "toxic" else text
        for text, label in zip(second.texts, second.labels, strict=True)
    ]
    third = hatexplain(data, "train").balanced(rows, random)

    def some(found: Comments, count: int) -> Comments:
        return found.take(random.choice(len(found.texts), int(share * count), replace=False))

    posts, talk = some(hatexplain(data, "test"), 300), some(identity_tests(data), 200)
    test = Comments(posts.texts + talk.texts, posts.labels + talk.labels)
    check = some(hatecheck(data), 500)
    return TextScenario(
        [("emotions", first), ("planted", Comments(planted, second.labels)), ("hate", third)],
        {
            "test": (test, mentions(test.texts, terms)),
            "hatecheck": (check, mentions(check.texts, terms)),
        },
    )


def mixed_sources(data: Path, seed: int, rows: int = 1000, target: int = 1500) -> TextScenario:
    """GoEmotions; then other GoEmotions rows and posts of HateXplain, half each, as one stage.

    Args:
        data: The data folder.
        seed: Draws the rows.
        rows: Comments per stage, half of them toxic, in each source too.
        target: Posts that are evaluated, half of them toxic. A choice that is made for few of them
            fits these few.
    """
    random = np.random.default_rng(seed)
    emotions = goemotions(data).balanced(rows + rows // 2, random)
    posts = hatexplain(data, "train").balanced(rows // 2, random)
    first, others = emotions.take(np.arange(rows)), emotions.take(np.arange(rows, rows * 3 // 2))
    mixed = Comments(others.texts + posts.texts, others.labels + posts.labels)
    test = hatexplain(data, "test").balanced(target, random)
    return TextScenario(
        [("emotions", first), ("mixed", mixed)], {"test": (test, ["post"] * len(test.texts))}
    )
