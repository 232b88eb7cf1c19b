"""One vocabulary for how far a number can be relied on."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from stagelens.effects.headlines import FEWEST
from stagelens.estimators.expected_error import (
    RELIABLE_BELOW,
    SIGN_UNCERTAIN_ABOVE,
    WRONG_SIGNS_ABOVE,
)
from stagelens.estimators.stage_trust import AGREES_ERROR, AGREES_R, StageTrust
from stagelens.wording import trust_words
from stagelens.wording.trust_words import (
    TrustWord,
    holds,
    is_trustworthy,
    may_be_finding,
    percent,
    signs_known,
    trust_advice,
    trust_explanation,
    trust_label,
    trust_word,
    weakest,
)
from tests.support.stage_trust import (
    AGREES,
    ALL,
    DISAGREES,
    EXACT,
    REFUSED,
    RELIABLE,
    ROUGH,
    SAMPLED,
    UNKNOWN,
    UNSURE,
    agreement,
    trust,
)

EIGHT = {
    *("exact", "verified", "does not agree", "reliable", "rough", "sign uncertain"),
    *("on recorded samples", "refused"),
}


def test_there_are_eight_words_each_with_a_mark_and_a_meaning() -> None:
    assert set(get_args(TrustWord)) == EIGHT
    for table in (trust_words.MARKS, trust_words.MEANINGS):
        assert tuple(table) == get_args(TrustWord) and len(set(table.values())) == len(EIGHT)


@pytest.mark.parametrize("name", ALL)
def test_every_standing_has_its_word(name: str) -> None:
    assert trust_word(ALL[name]) == name


def test_only_what_is_exact_verified_or_reliable_may_be_leaned_on() -> None:
    leaned_on = {name for name, one in ALL.items() if is_trustworthy(one)}
    assert leaned_on == {"exact", "verified", "reliable"}
    assert not is_trustworthy(UNKNOWN)


def test_a_replay_of_training_on_samples_is_never_exact_and_says_what_is_held_fixed() -> None:
    of_samples = {
        name: trust_word(one.model_copy(update={"on_samples": ("rl",)}))
        for name, one in ALL.items()
    }
    better = {"exact", "verified", "reliable", "on recorded samples"}
    weaker = {name: name for name in ALL if name not in better}
    assert of_samples == dict.fromkeys(better, "on recorded samples") | weaker
    said = trust_explanation(SAMPLED)
    assert said.startswith("Replay repeats it. Stage grpo was trained on answers that the model")
    assert "held as recorded" in said and said.endswith("for the answers that were recorded.")
    assert "sampled" not in trust_explanation(EXACT)
    assert {name for name, one in ALL.items() if holds(one)} == better


def test_where_even_the_sign_may_be_wrong_there_is_no_finding() -> None:
    kept = {name for name, one in ALL.items() if may_be_finding(one)}
    assert kept == {"exact", "verified", "reliable", "on recorded samples", "rough"}
    assert may_be_finding(None)


def test_the_sign_is_uncertain_above_its_threshold_only() -> None:
    edge = SIGN_UNCERTAIN_ABOVE
    assert trust_word(trust(expected_error=edge, reliable=False)) == "rough"
    assert trust_word(trust(expected_error=edge + 0.01, reliable=False)) == "sign uncertain"
    assert trust_word(trust(expected_error=0.01, reliable=False)) == "rough"


def test_where_signs_were_counted_their_share_decides() -> None:
    edge, large = WRONG_SIGNS_ABOVE, SIGN_UNCERTAIN_ABOVE + 0.01
    assert trust_word(trust(expected_error=large, wrong_signs=edge)) == "rough"
    unsure = trust(expected_error=0.1, wrong_signs=edge + 0.01, reliable=True)
    assert trust_word(unsure) == "sign uncertain" and not signs_known(unsure)
    assert "at most 21 % of the signs are wrong." in trust_explanation(unsure)


def test_only_known_signs_are_credit_or_blame() -> None:
    unknown = {name for name, one in ALL.items() if not signs_known(one)}
    assert unknown == {"sign uncertain", "does not agree"} and signs_known(None)
    # What a replay refutes is neither, however many signs it found right.
    off = agreement(0.4, 0.6).model_copy(update={"sign_agreement": 0.98})
    assert not signs_known(trust("does not agree", agreements=(off,)))
    assert signs_known(trust("exact", estimator="replay"))


def test_promises_say_where_they_were_measured_on_other_behaviours() -> None:
    measured = "That was measured on margins, losses and log-likelihoods, not on the accuracy."
    assert measured in trust_explanation(RELIABLE, "accuracy")
    for behaviour in (None, "margin", "loss", "log-likelihood"):
        assert "measured on" not in trust_explanation(RELIABLE, behaviour)
    for one in (EXACT, AGREES, UNKNOWN, REFUSED):  # these promise nothing
        assert "measured on" not in trust_explanation(one, "accuracy")


def test_where_nothing_can_be_replayed_no_replay_is_advised() -> None:
    why = "its batches were not kept"
    for one, said in ((ROUGH, "Do not rely on it."), (UNSURE, "Even its sign may be wrong.")):
        assert "replay" in trust_advice(one)
        stuck = one.model_copy(update={"no_replay": why})
        assert trust_advice(stuck) == f"{said} No replay can settle it: {why}."
    reliable = RELIABLE.model_copy(update={"no_replay": why})
    assert trust_advice(reliable) == trust_advice(RELIABLE)


def test_a_replay_that_is_not_bit_for_bit_promises_nothing_for_nine_of_ten() -> None:
    replay = trust(estimator="replay", expected_error=0.02, reliable=True, reason="Replay.")
    assert trust_label(replay) == "reliable (error about 2 %)"
    assert trust_explanation(replay) == "Replay. You can rely on it."


def test_what_rests_on_several_counterfactuals_is_no_better_than_the_worst() -> None:
    assert weakest(["exact", "rough", "verified"]) == "rough"
    assert weakest(ALL) == "refused"
    assert weakest(["does not agree", "sign uncertain"]) == "does not agree"


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (EXACT, "exact"),
        (AGREES, "verified (r 0.97, error 12 %)"),
        (DISAGREES, "does not agree (r 0.40, error 130 %)"),
        (RELIABLE, "reliable (error up to 22 %, typically 9 %)"),
        (ROUGH, "rough (error up to 52 %)"),
        (UNKNOWN, "rough (error not known)"),
        (UNSURE, "sign uncertain (error up to 90 %)"),
        (REFUSED, "refused"),
    ],
)
def test_a_label_has_the_figures_that_matter(of: StageTrust, said: str) -> None:
    assert trust_label(of) == said


def test_agreement_needs_a_correlation_and_a_small_error() -> None:
    edge = trust("verified", agreements=(agreement(AGREES_R, AGREES_ERROR),))
    assert trust_word(edge) == "verified"
    for r, error in ((AGREES_R - 0.01, 0.1), (0.99, AGREES_ERROR + 0.01), (0.99, float("inf"))):
        assert trust_word(trust("verified", agreements=(agreement(r, error),))) == "does not agree"


def test_each_behaviour_has_its_own_agreement() -> None:
    both = trust("verified", agreements=(agreement(), agreement(0.2, 0.9, behaviour="loss")))
    assert trust_word(both, "margin") == "verified"
    assert trust_word(both, "loss") == "does not agree"
    assert trust_label(both, "loss") == "does not agree (r 0.20, error 90 %)"


def test_of_several_behaviours_together_the_one_that_agrees_least_speaks() -> None:
    both = trust("verified", agreements=(agreement(), agreement(0.2, 0.9, behaviour="loss")))
    assert trust_word(both) == "does not agree" and not is_trustworthy(both)
    assert trust_label(both) == "does not agree (loss: r 0.20, error 90 %)"
    assert "on the loss" in trust_explanation(both)


def test_for_a_derived_behaviour_the_first_one_stands_and_is_named() -> None:
    assert trust_label(AGREES, "accuracy") == "verified (margin: r 0.97, error 12 %)"
    assert "on the margin" in trust_explanation(AGREES, "accuracy")


def test_thresholds_stand_in_the_meanings() -> None:
    assert percent(WRONG_SIGNS_ABOVE) in trust_words.MEANINGS["sign uncertain"]
    assert f"r at least {AGREES_R:g}" in trust_words.MEANINGS["verified"]
    assert percent(AGREES_ERROR) in trust_words.MEANINGS["verified"]
    assert percent(RELIABLE_BELOW) in trust_words.MEANINGS["reliable"]
    assert percent(SIGN_UNCERTAIN_ABOVE) in trust_words.MEANINGS["sign uncertain"]


def test_the_readme_has_the_marks_and_the_thresholds_that_hold() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"r at least {AGREES_R:g} and relative error at most {percent(AGREES_ERROR)}" in readme
    details = (Path(__file__).parents[2] / "docs" / "estimators-and-trust.md").read_text()
    for text in (readme, details):
        assert all(f"| {mark} | {word} |" in text for word, mark in trust_words.MARKS.items())
        assert f"error up to {percent(RELIABLE_BELOW)} at most" in text
        assert f"more than {percent(WRONG_SIGNS_ABOVE)} of the signs may be wrong" in text
    assert f"at least {FEWEST} examples" in details


def test_a_verified_stage_says_r_slope_and_error_together_and_what_follows() -> None:
    assert trust_explanation(AGREES) == (
        "Checked against a replay, on the margin: r 0.97, slope 1.02, relative error 12 %. "
        "Before the replay, it was to be at most 10 %. Close enough to rely on."
    )
    assert trust_explanation(DISAGREES).endswith("Too far off to rely on: use replay.")


def test_a_promise_that_was_not_kept_is_said() -> None:
    missed = trust("verified", agreements=(agreement(0.9, 0.6),), expected_error=0.04)
    assert "Before the replay, it was to be at most 4 %." in trust_explanation(missed)
    kept = trust("verified", agreements=(agreement(0.97, 0.12),), expected_error=0.13)
    assert "Before the replay" not in trust_explanation(kept)
    alike = trust("verified", agreements=(agreement(0.97, 0.124),), expected_error=0.121)
    assert "Before the replay" not in trust_explanation(alike)


def test_estimates_say_whether_to_lean_on_them() -> None:
    assert trust_explanation(RELIABLE) == (
        "Coarse replay. In nine of ten such estimates the error is at most 22 % (typically 9 %). "
        "You can rely on it."
    )
    assert trust_explanation(ROUGH).endswith("Do not rely on it unless a replay settles it.")
    assert trust_explanation(UNSURE).endswith("Even its sign may be wrong: use replay.")
    assert trust_explanation(UNKNOWN).startswith(
        "Task vector; its error is not known. Do not rely on it"
    )


def test_exact_and_refused_stages_give_their_reason_alone() -> None:
    assert (trust_explanation(EXACT), trust_advice(EXACT)) == (EXACT.reason, "")
    assert (trust_explanation(REFUSED), trust_advice(REFUSED)) == ("It would diverge.", "")


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.123, "12 %"), (0.0, "0 %"), (0.003, "under 1 %"), (12.0, "more than 1,000 %"),
     (None, "n/a"), (float("nan"), "n/a"), (float("inf"), "n/a")],
)  # fmt: skip
def test_percentages(share: float | None, said: str) -> None:
    assert percent(share) == said
