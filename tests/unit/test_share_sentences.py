"""Shares and pairs in sentences: what is told, how strongly, and what is not."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from stagelens.analyses.shares import orders
from stagelens.analyses.shares.bridge import bridges
from stagelens.analyses.shares.means import Mean
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.sentences import (
    BY_TASK_VECTOR,
    NO_INTENT,
    QUESTIONS,
    SPLITTING,
    TITLES,
    WHICH,
    cautions,
    example_sentence,
    pair_rule,
    pair_sentences,
    rest_sentence,
    share_sentence,
    total_sentence,
)
from stagelens.analyses.shares.share_table import SHARE, Shares, shares_of
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.sentences import slice_parts
from tests.support.coalitions import made
from tests.support.stage_trust import EXACT, trust

N = 50
NAMES = ("pretrain", "shortcut")


def two(
    none: float,
    first: float,
    second: float,
    both: float,
    spread: float = 0.1,
    n: int = N,
    better: str = "higher",
    known: dict[int, StageTrust] | None = None,
) -> Shares:
    """Means of the four models of two stages, with some spread over examples."""
    random = np.random.default_rng(0)
    v = {
        mask: mean + spread * random.normal(size=n)
        for mask, mean in enumerate((none, first, second, both))
    }
    return shares_of(made(v, NAMES, known, better), "score")


def pairs_said(found: Shares) -> list[str]:
    return [str(one) for one in pair_sentences(pairs_of(found), found.behaviour, "image")]


def test_every_reading_says_what_it_answers() -> None:
    assert set(QUESTIONS) == set(TITLES)
    assert list(TITLES.values()) == ["Without it", "Share", "Seen after"]
    assert all(text.endswith(".") and "?" in text for text in QUESTIONS.values())


def test_the_whole_is_said_with_every_share() -> None:
    said = str(total_sentence(two(1, 5, 2, 4, spread=0), "image"))
    assert said == (
        "Training as a whole made the mean score on all images 3.00 higher, from 1.00 to 4.00. "
        "Shares: pretrain +3.00, shortcut 0 (no clear change)."
    )
    assert "on stamped images" in str(total_sentence(two(1, 5, 2, 4), "image", "group", "stamped"))


def test_what_single_effects_leave_unsaid_is_told() -> None:
    said = rest_sentence(two(0, 5, 2, 4, spread=0))
    assert said.startswith("Together these effects are +1.00, while training as a whole did +4.00")


def test_an_effect_and_a_share_of_opposite_sign_are_told_to_hold_both() -> None:
    found = two(0, 5, 3, 4, spread=0)
    said, which = bridges(found)
    assert str(which) == WHICH and list(map(str, bridges(found, only="shortcut"))) == [str(said)]
    assert str(said) == (
        "shortcut gets numbers of opposite sign, and both hold: taken out of the final model, "
        "where all other stages happened, its effect is −1.00; its share, which averages over "
        "every set of stages that it could have joined, is +1.00, because it worked the other way "
        "where others were missing: alone it gives +3.00."
    )
    assert list(map(str, bridges(found, example=7))) == [str(said), WHICH]
    assert bridges(found, only="pretrain") == []
    assert bridges(two(0, 5, 1, 6)) == []
    assert bridges(two(0, 5, 3, 4, spread=60.0)) == []  # neither is clear
    unsure = trust(expected_error=0.9, typical_error=0.5, group_error=0.01, reliable=False)
    assert bridges(two(0, 5, 3, 4, known={1: unsure, 2: unsure})) == []


@pytest.mark.parametrize(
    ("models", "better", "said"),
    [
        ((0, 5, 1, 3), "higher", "shortcut does its harm only because pretrain came before"),
        ((0, 5, 0, 3), "higher", "shortcut does its harm only because pretrain came before"),
        ((0, -5, -1, -3), "lower", "shortcut does its harm only because pretrain came before"),
        ((0, 5, -1, 2), "higher", "shortcut does more harm because pretrain came before"),
        ((0, 5, -3, 4), "higher", "shortcut would do more harm without pretrain before it"),
        ((0, 2, 0, 5), "higher", "shortcut helps only because pretrain came before"),
        ((0, 2, -1, 5), "higher", "shortcut helps only because pretrain came before"),
        ((0, 2, 1, 5), "higher", "shortcut helps more because pretrain came before"),
        ((0, 5, 4, 6), "higher", "shortcut would help more without pretrain before it"),
        ((0, 5, 4, 5), "higher", "shortcut would help without pretrain before it"),
        ((0, 5, -2, 5), "higher", "shortcut would do harm without pretrain before it"),
    ],
)
def test_a_pair_is_told_by_what_the_later_stage_does_with_and_without(
    models: tuple[float, ...], better: str, said: str
) -> None:
    none, first, second, both = models
    (found,) = pairs_said(two(none, first, second, both, better=better))
    assert found.startswith(f"{said}: in the final model it ")


def test_a_pair_names_both_numbers() -> None:
    (said,) = pairs_said(two(0, 5, 1, 3, spread=0))
    assert said.endswith(
        "in the final model it makes the mean score on all images 2.00 lower; had pretrain not "
        "happened, it would make it 1.00 higher."
    )
    (said,) = pairs_said(two(0, 5, 0, 3))
    assert "had pretrain not happened, it would not clearly change it (" in said


def test_what_does_not_stand_out_is_not_told() -> None:
    assert pairs_said(two(0, 3, 1, 4)) == []  # they only add up
    assert pairs_said(two(0, 5, 1, 3, spread=30.0)) == []  # the interval includes zero
    assert pairs_said(two(0, 5, 1, 3, n=19)) == []  # too few examples
    unsure = trust(expected_error=0.9, typical_error=0.5, group_error=0.01, reliable=False)
    assert pairs_said(two(0, 5, 1, 3, known={2: unsure})) == []  # even its sign may be wrong
    wide = trust(expected_error=0.3, group_error=5.0, reliable=True)
    assert pairs_said(two(0, 5, 1, 3, known={2: wide})) == []  # the estimate is too rough
    assert "6 pairs" not in pair_rule(pairs_of(two(0, 5, 1, 3)), "image")
    assert pair_rule(pairs_of(two(0, 5, 1, 3)), "image").startswith("1 pair looked at.")


def test_estimated_numbers_are_said_with_reservation() -> None:
    reliable = trust(expected_error=0.05, typical_error=0.02, group_error=0.01, reliable=True)
    found = two(0, 5, 1, 3, known={2: reliable})
    assert "would make it about 0.99 higher" in pairs_said(found)[0]
    one = found.means(SHARE)[0]
    said = share_sentence(one, found.behaviour, slice_parts("image"), "image")
    assert str(said).startswith("pretrain was estimated to make the mean score on all images about")
    assert "higher, by its share (95 % over " in str(said)
    assert said.trust == one.trust
    assert "Shares: pretrain about +" in str(total_sentence(found, "image"))
    rough = two(0, 5, 1, 3, known={2: trust(expected_error=0.4, reliable=False)})
    assert "Shares: pretrain perhaps +" in str(total_sentence(rough, "image"))
    single = rough.of_example(SHARE, 0)[0]
    assert str(example_sentence(single, rough.behaviour)).startswith(
        "pretrain's share of the score: perhaps +"
    )
    unclear = two(0, 1, 0, 0, spread=5.0)
    text = str(
        share_sentence(unclear.means(SHARE)[1], unclear.behaviour, slice_parts("image"), "image")
    )
    assert "was measured to make no clear change in the mean score on all images" in text
    rough = trust(expected_error=0.4, group_error=0.1, reliable=False)
    perhaps = two(0, 1, 0, 0, spread=5.0, known={2: rough})
    said = share_sentence(perhaps.means(SHARE)[1], perhaps.behaviour, slice_parts("image"), "image")
    assert "may have changed the mean score on all images, but not clearly, by its share" in str(
        said
    )
    assert re.search(r"by its share \(95 % over \d+ images: −[\d.]+ to \+[\d.]+\)\.$", text)
    alone = replace(one, interval=None)
    text = str(share_sentence(alone, found.behaviour, slice_parts("image"), "image"))
    assert "how far it varies in one run is not known" in text


@pytest.mark.parametrize(
    ("behaviour", "mean", "said"),
    [
        (Behaviour("loss", "lower", "nats"), -2.31, "loss: −2.31 nats (credit)."),
        (Behaviour("loss", "lower", "nats"), 2.31, "loss: +2.31 nats (blame)."),
        (Behaviour("loss", "lower", "nats"), 0.0, "loss: 0 nats."),
        (Behaviour("probability", "higher"), 0.41, "label: +41 points (credit)."),
        (Behaviour("score", "higher"), -1.0, "score: −1.00 (blame)."),
    ],
)
def test_a_share_of_an_example_is_credit_or_blame(
    behaviour: Behaviour, mean: float, said: str
) -> None:
    one = Mean("pretrain", 1, mean, None, EXACT)
    assert str(example_sentence(one, behaviour)).endswith(said)


def test_cautions_are_said_where_they_apply() -> None:
    assert cautions(two(0, 5, 1, 3)) == [SPLITTING, NO_INTENT]
    by_vectors = made(two(0, 5, 1, 3).v, NAMES)
    facts = by_vectors.facts.model_copy(update={"estimator": "task-vector"})
    found = shares_of(replace(by_vectors, facts=facts), "score")
    assert BY_TASK_VECTOR in cautions(found)
    kept = orders.masks_of(orders.sampled_orders(7, 3), 7)
    names = tuple("abcdefg")
    sampled = shares_of(made({mask: np.full(2, float(mask)) for mask in kept}, names), "score")
    assert any("128 models" in text and "drawn at random" in text for text in cautions(sampled))
