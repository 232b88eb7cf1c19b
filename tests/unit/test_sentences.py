"""Sentences and headlines from effect tables, whose words carry the trust."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects import headlines, summary
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording import sentences
from tests.support.effect_tables import effect_table, other_orders
from tests.support.stage_trust import (
    AGREES,
    DISAGREES,
    EXACT,
    REFUSED,
    RELIABLE,
    ROUGH,
    SAMPLED,
    UNKNOWN,
    UNSURE,
)

LOSS = Behaviour("loss", "lower", "nats")
MARGIN = Behaviour("margin", "higher", "nats")
PROBABILITY = Behaviour("probability", "higher")
STAGES = ["pretrain", "shortcut"]


@pytest.mark.parametrize(
    ("behaviour", "effect", "said"),
    [
        (LOSS, -0.41, "Without shortcut, the loss would be 0.41 higher."),
        (LOSS, 0.41, "Without shortcut, the loss would be 0.41 lower."),
        (MARGIN, 3.0, "Without shortcut, the margin would be 3.00 lower."),
        (PROBABILITY, -0.5, "Without shortcut, the probability of the label would be 50 points "
         "higher."),
        (LOSS, 0.0, "Without shortcut, the loss would be the same."),
        (LOSS, 1e-7, "Without shortcut, the loss would be practically the same."),
    ],
)  # fmt: skip
def test_an_effect_is_said_from_the_side_of_the_counterfactual(
    behaviour: Behaviour, effect: float, said: str
) -> None:
    assert str(sentences.example_sentence("shortcut", behaviour, effect)) == said


@pytest.mark.parametrize(
    ("trust", "said"),
    [
        (EXACT, "would be 0.41 higher"),
        (SAMPLED, "would be 0.41 higher, on the answers recorded in grpo"),
        (AGREES, "would be about 0.41 higher"),
        (RELIABLE, "would be about 0.41 higher"),
        (ROUGH, "may be some 0.4 higher"),
        (UNKNOWN, "may be some 0.4 higher"),
        (DISAGREES, "may be some 0.4 higher or lower, and a replay does not agree"),
        (UNSURE, "may be some 0.4 higher or lower, its sign uncertain"),
    ],
)
def test_the_words_carry_the_trust(trust: StageTrust, said: str) -> None:
    sentence = sentences.example_sentence("shortcut", LOSS, -0.41, trust)
    assert str(sentence) == f"Without shortcut, the loss {said}."


@pytest.mark.parametrize(
    ("behaviour", "effect", "said"),
    [(LOSS, 23.4, "some 20 lower"), (LOSS, -0.0312, "some 0.03 higher"),
     (PROBABILITY, 0.084, "some 8 points lower"), (ACCURACY, -0.842, "some 80 points "
     "higher"), (LOSS, 0.96, "some 1.0 lower"), (LOSS, 0.0, "practically the same")],
)  # fmt: skip
def test_a_rough_amount_has_one_digit(behaviour: Behaviour, effect: float, said: str) -> None:
    assert str(sentences.example_sentence("a", behaviour, effect, ROUGH)).endswith(
        f"may be {said}."
    )


def test_an_effect_on_one_example_whose_interval_includes_zero_shows_no_clear_change() -> None:
    for error, said in (
        (0.6, "may show no clear change: 0.19 lower to 1.01 higher"),
        (0.4, "may be some 0.4 higher"),
        (math.nan, "may be some 0.4 higher"),
    ):
        sentence = sentences.example_sentence("a", LOSS, -0.41, ROUGH, error=error)
        assert str(sentence) == f"Without a, the loss {said}."
    near = sentences.example_sentence("a", ACCURACY, 0.2, ROUGH, error=0.5, final=0.9)
    assert str(near).endswith("may show no clear change: 70 points lower to 10 points higher.")


def test_a_changed_answer_is_said_with_its_verdict() -> None:
    sentence = sentences.example_sentence("shortcut", LOSS, 2.0, EXACT, ("3", "9"), "9")
    assert str(sentence) == (
        "Without shortcut, the loss would be 2.00 lower, and the answer 9 (right) instead of 3."
    )
    assert sentence.trust is EXACT
    same = sentences.example_sentence("shortcut", LOSS, 2.0, EXACT, ("3", "3"), "9")
    assert "answer" not in str(same)
    rough = sentences.example_sentence("shortcut", LOSS, 2.0, ROUGH, ("3", "9"), "9")
    assert "and the answer perhaps 9 (right) instead of 3" in str(rough)


def test_an_effect_within_training_noise_says_so() -> None:
    noisy = sentences.example_sentence("shortcut", LOSS, 2.0, EXACT, within_noise=True)
    assert str(noisy).endswith("2.00 lower; this is within training noise, so not a finding.")


def test_a_refused_stage_says_why_instead_of_a_number() -> None:
    sentence = sentences.example_sentence("shortcut", LOSS, math.nan, REFUSED, ("3", "nan"))
    assert str(sentence) == "Without shortcut: not known. It would diverge."


def test_an_example_without_a_label_has_no_number_but_still_an_answer() -> None:
    sentence = sentences.example_sentence("shortcut", LOSS, math.nan, EXACT, ("3", "9"))
    assert (
        str(sentence) == "Without shortcut, the loss is not known, and the answer 9 instead of 3."
    )


@pytest.mark.parametrize(
    ("column", "group", "said"),
    [
        ("group", "stamped", "accuracy on stamped images would be 41 points higher"),
        ("label", "7", "accuracy on images labelled 7 would be 41 points higher"),
        ("camera", "old", "accuracy on images with camera old would be 41 points higher"),
        ("group", None, "accuracy on all images would be 41 points higher"),
    ],
)
def test_a_group_is_named_as_people_would_and_counted(
    column: str, group: str | None, said: str
) -> None:
    row = {"stage": "shortcut", "group": group, "effect": -0.41, "n": 1200}
    sentence = sentences.mean_sentence(row, ACCURACY, "image", column, EXACT)
    assert str(sentence) == f"Without shortcut, {said} (1,200 images)."


def test_names_from_data_stay_apart_from_words() -> None:
    row = {"stage": "a_b", "group": "<b>*x*</b>", "effect": -0.41, "n": 30}
    parts = sentences.mean_sentence(row, ACCURACY, "image", "group").parts
    assert [part.text for part in parts if part.kind == "group"] == ["<b>*x*</b>"]
    assert [part.text for part in parts if part.kind == "stage"] == ["a_b"]


# --------------------------------------------------------------------------------- headlines


def accuracy_table(count: int = 100) -> pd.DataFrame:
    """``shortcut`` makes every second stamped example wrong; ``pretrain`` makes all right."""
    groups = ["stamped", "clean"] * (count // 2)
    final = ["b" if g == "stamped" and i % 4 == 0 else "a" for i, g in enumerate(groups)]
    return summary.with_accuracy(
        effect_table(
            {"pretrain": [0.0] * count, "shortcut": [0.0] * count},
            labels=["a"] * count,
            predictions=final,
            without={"pretrain": ["b"] * count, "shortcut": ["a"] * count},
            groups=groups,
        )
    )


def said_of(trust: dict[str, StageTrust], count: int = 100, **more: object) -> list[str]:
    table = accuracy_table(count)
    found = headlines.headlines(table, ACCURACY, STAGES, trust, "image", "group", **more)  # type: ignore[arg-type]
    return [str(sentence) for sentence in found]


def test_the_strongest_blame_comes_first_with_its_group_and_its_count() -> None:
    assert said_of({"shortcut": EXACT, "pretrain": EXACT}) == [
        "Without shortcut, accuracy on stamped images would be 50 points higher "
        "(95 %: 34 to 66; 50 images).",
        # All alike, but others might not have been.
        "Without pretrain, accuracy on clean images would be 100 points lower (95 %: 92 to 100; "
        "50 images).",
    ]


def test_the_interval_and_the_noise_are_in_the_headline() -> None:
    table = accuracy_table()
    ids = table["example_id"].unique()
    moved = [[0.005 * order] * len(ids) for order in (-1, 0, 1)]
    orders = other_orders({"shortcut": moved}, "accuracy")
    known = {"shortcut": EXACT, "pretrain": EXACT}
    found = headlines.headlines(table, ACCURACY, STAGES, known, "image", orders=orders)
    assert str(found[0]) == (
        "Without shortcut, accuracy on all images would be 25 points higher (95 %: 16 to 34, "
        "training noise ±1.0; 100 images)."
    )
    # With the error of an estimate in it, the interval is no longer one of 95 %.
    estimated = {"shortcut": RELIABLE.model_copy(update={"group_error": 0.1})}
    said = [str(e) for e in headlines.headlines(table, ACCURACY, STAGES, estimated, "image")]
    assert any("shortcut" in each and "(interval " in each for each in said)


def test_a_part_of_the_set_is_never_called_all_of_it() -> None:
    table = accuracy_table()
    part = table[table["group"] == "stamped"]
    found = headlines.headlines(part, ACCURACY, STAGES, {}, "image", "group", groups_only=True)
    assert found and all("all images" not in str(sentence) for sentence in found)


def test_groups_below_the_minimum_make_no_headline() -> None:
    least = 2 * headlines.FEWEST
    assert any("stamped images" in said for said in said_of({}, least))
    assert all("all images" in said for said in said_of({}, least - 4))
    assert said_of({}, headlines.FEWEST - 2) == []


def test_a_rough_estimate_is_hedged_and_comes_after_what_may_be_leaned_on() -> None:
    assert said_of({"shortcut": ROUGH, "pretrain": EXACT}) == [
        "Without pretrain, accuracy on clean images would be 100 points lower (95 %: 92 to 100; "
        "50 images).",
        "Without shortcut, accuracy on stamped images may be some 50 points higher (50 images).",
    ]


@pytest.mark.parametrize("trust", [DISAGREES, REFUSED])
def test_what_does_not_agree_with_its_replay_or_is_refused_makes_no_headline(
    trust: StageTrust,
) -> None:
    assert [s for s in said_of({"shortcut": trust, "pretrain": EXACT}) if "shortcut" in s] == []


def test_what_does_not_stand_out_is_not_said() -> None:
    noise = list(np.random.default_rng(0).normal(0, 1, 200))
    table = effect_table({"pretrain": noise})
    assert headlines.headlines(table, LOSS, STAGES, {}) == []


def test_a_mean_within_training_noise_is_no_finding() -> None:
    effects = list(np.linspace(1.0, 1.1, 50))
    table = effect_table({"pretrain": effects})
    assert len(headlines.headlines(table, LOSS, STAGES, {})) == 1
    for others, count in (([[3.0] * 50, [-3.0] * 50], 0), ([[1.0] * 50, [1.1] * 50], 1)):
        orders = other_orders({"pretrain": [effects, *others]})
        assert len(headlines.headlines(table, LOSS, STAGES, {}, orders=orders)) == count


@pytest.mark.parametrize(
    ("effect", "low", "high", "said"),
    [
        (-0.29, -0.34, -0.24, "29 points higher, 95 %: 24 to 34 over 8 redraws (30 images)."),
        (0.29, 0.24, 0.34, "29 points lower, 95 %: 24 to 34 over 8 redraws (30 images)."),
        (
            -0.29,
            -0.6,
            0.02,
            "would show no clear change: 2.0 points lower to 60 points higher over 8 redraws "
            "(30 images).",
        ),
    ],
)
def test_a_mean_over_draws_has_its_interval_at_once(
    effect: float, low: float, high: float, said: str
) -> None:
    row = {"stage": "s", "group": None, "effect": effect, "n": 30, "draw_effect": effect}
    row |= {"draw_low": low, "draw_high": high, "drawn": "8 redraws"}
    assert str(sentences.mean_sentence(row, ACCURACY, "image", None)).endswith(said)
    of_run = {**row, "effect": effect / 2, "error": 0.01, "rms": 0.5}
    own = sentences.mean_sentence(of_run, ACCURACY, "image", None)
    assert " in this run (30 images); of this recipe, 95 %: " in str(own)
    unsure = low < 0 < high
    assert str(own).endswith("so it is not known to come again.") == unsure
    assert ("amount" in {part.kind for part in own.parts}) != unsure  # emphasised
    assert not own.is_sealed
    # What is known of this run's number stands behind it, and not behind the recipe's interval.
    sealed = sentences.mean_sentence(of_run, ACCURACY, "image", None, EXACT)
    assert sealed.is_sealed
    assert " in this run (● exact, by replay; 30 images); of this recipe, " in str(sealed)


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (4.9, "of this recipe, 95 %: 1.43 to 4.95 lower over 6 redraws."),
        (
            6.04,
            "of this recipe 3.19 lower on average, 95 %: 1.43 to 4.95 lower over 6 redraws; this "
            "one differs by 2.85, which is not unusual: single trainings differ from that mean by "
            "up to 5.38 (95 %).",
        ),
        (
            -2.5,
            "of this recipe 3.19 lower on average, 95 %: 1.43 to 4.95 lower over 6 redraws; this "
            "one differs by 5.69, which is unusual: single trainings differ from that mean by up "
            "to 5.38 (95 %).",
        ),
    ],
)
def test_an_effect_outside_of_the_interval_over_draws_says_why(effect: float, said: str) -> None:
    """The interval is of the mean, around which single trainings scatter."""
    row = {"stage": "s", "group": None, "effect": effect, "n": 42, "draw_effect": 3.19}
    row |= {"draw_low": 1.43, "draw_high": 4.95, "draw_single": 5.38, "drawn": "6 redraws"}
    assert str(sentences.mean_sentence(row, LOSS, "text", None)).endswith(said)


@pytest.mark.parametrize(("effect", "way"), [(-0.25, "higher"), (0.25, "lower")])
def test_what_was_the_same_in_every_draw_is_said_so(effect: float, way: str) -> None:
    row = {"stage": "s", "group": None, "effect": effect, "n": 30, "draw_effect": effect}
    row |= {"draw_low": np.nan, "draw_high": np.nan, "draw_sd": 0.0, "drawn": "6 redraws"}
    own = str(sentences.mean_sentence(row, ACCURACY, "image", None))
    assert own.endswith(f"25 points {way}, the same in each of 6 redraws (30 images).")
    of_run = {**row, "effect": 0.8 * effect, "error": 0.001, "rms": 0.5}
    other = str(sentences.mean_sentence(of_run, ACCURACY, "image", None))
    assert other.endswith(
        f"20 points {way} in this run (30 images); 25 points {way} in each of 6 redraws."
    )
    few = str(sentences.mean_sentence({**row, "draw_sd": 0.1}, ACCURACY, "image", None))
    assert few.endswith(f"25 points {way} (30 images).")
