"""Paths: the answers after every boundary, what guessing makes of them, and which stage did it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from stagelens.analyses.paths.answers import ENDS, KINDS, Paths, ended, kind_of, paths
from stagelens.analyses.paths.chance import (
    _weights,
    fits,
    flipped_by_end,
    lost_words,
    without_lucky_guesses,
)
from stagelens.analyses.paths.stages import by_stage

STAGES = ("one", "two", "three")
BOUNDARIES = ("base", *STAGES)


def made(right: np.ndarray, choices: int = 4) -> Paths:
    ids = np.array([f"e{n}" for n in range(len(right))], dtype=object)
    return Paths(BOUNDARIES[: right.shape[1]], ids, right.astype(float), choices)


def tables(generator: np.random.Generator, count: int = 40) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels, and answers after every boundary."""
    ids = [f"e{n}" for n in range(count)]
    labels = generator.choice(list("abc"), count)
    examples = pd.DataFrame({"example_id": ids, "label": labels})
    answers = [
        pd.DataFrame(
            {
                "boundary": name,
                "example_id": ids,
                "prediction": generator.choice(list("abc"), count),
            }
        )
        for name in BOUNDARIES
    ]
    return examples, pd.concat(answers, ignore_index=True)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RRR", "always right"),
        ("WWW", "never right"),
        ("WRR", "learned"),
        ("RWW", "forgotten"),
        ("WRW", "flipped"),
        ("RWRR", "flipped"),
    ],
)
def test_a_path_has_a_name(code: str, kind: str) -> None:
    assert kind_of(code) == kind


@pytest.mark.parametrize(
    ("code", "name"),
    [("WRW", ENDS[1]), ("RWRW", ENDS[1]), ("RWR", ENDS[0]), ("WRWRR", ENDS[0]), ("WRR", "learned")],
)
def test_a_flipped_path_says_how_it_ends(code: str, name: str) -> None:
    assert ended(code) == name


def test_flipped_ones_by_their_end_sum_to_all_flipped_also_without_lucky_guesses() -> None:
    right = np.random.default_rng(1).integers(0, 2, (300, 4))
    found = made(right, choices=3)
    (flipped,) = [one for one in without_lucky_guesses(found) if one.kind == "flipped"]
    by_end = flipped_by_end(found)
    assert [one.kind for one in by_end] == list(ENDS)
    assert sum(one.count for one in by_end) == flipped.count
    assert sum(one.corrected for one in by_end) == pytest.approx(flipped.corrected)
    # By hand: wrong, later right, and wrong in the end.
    lost = sum(
        any(not row[i] and row[j] for i in range(4) for j in range(i + 1, 4)) and not row[-1]
        for row in right
    )
    assert by_end[1].count == lost
    assert f"wrong in the end): {lost} images" in lost_words(found, "image")


def test_what_is_forgotten_only_by_guessing_is_taken_out() -> None:
    """500 examples are never known, 40 were learned and forgotten: 40 are found, within error."""
    generator = np.random.default_rng(2)
    known = np.zeros((540, 3), bool)
    known[:40] = [0, 1, 0]
    counts = []
    for _ in range(200):
        found = flipped_by_end(made(known | (generator.random(known.shape) < 0.25)))[1]
        counts.append(found.corrected)
        assert found.count > 60
    error = np.std(counts) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - 40) < 4 * error


def test_counts_add_up_to_the_labelled_examples() -> None:
    generator = np.random.default_rng(0)
    right = generator.integers(0, 2, (200, 4)).astype(float)
    right[:30] = np.nan
    found = made(right)
    assert sum(found.counts().values()) == 170 == found.known.sum()
    assert (found.codes[:30] == "").all() and (found.kinds[:30] == "").all()
    kinds = without_lucky_guesses(found)
    assert [one.kind for one in kinds] == list(KINDS)
    assert sum(one.count for one in kinds) == 170
    assert sum(one.corrected for one in kinds) == pytest.approx(170)


def test_answers_are_joined_with_labels_by_id() -> None:
    generator = np.random.default_rng(1)
    examples, answers = tables(generator)
    found = paths([answers], examples, BOUNDARIES)
    shuffled = pd.concat(
        [part.sample(frac=1, random_state=5) for _, part in answers.groupby("boundary")]
    )
    again = paths([shuffled], examples, BOUNDARIES)
    assert found is not None and again is not None
    np.testing.assert_array_equal(found.right, again.right)
    first = answers[answers["boundary"] == "base"]["prediction"].to_numpy()
    np.testing.assert_array_equal(found.right[:, 0], first == examples["label"].to_numpy())


def test_answers_of_other_examples_are_refused() -> None:
    examples, answers = tables(np.random.default_rng(2))
    for other in (answers.assign(example_id="x" + answers["example_id"]), answers[1:]):
        with pytest.raises(ValueError, match="measured on other examples"):
            paths([other], examples, BOUNDARIES)


def test_there_are_no_paths_without_labels_or_with_one_boundary() -> None:
    examples, answers = tables(np.random.default_rng(3))
    assert paths([answers], examples.assign(label=None), BOUNDARIES) is None
    assert paths([answers], examples, ["base"]) is None


def test_corrected_weights_invert_the_mixture_by_guessing() -> None:
    """The expectation of a path's weights under guessing is the kind of the true path."""
    guess, length = 0.25, 4
    for true in map("".join, product("RW", repeat=length)):
        expected = dict.fromkeys(KINDS, 0.0)
        for seen in map("".join, product("RW", repeat=length)):
            probability = 1.0
            for state, answer in zip(true, seen, strict=True):
                right = 1.0 if state == "R" else guess
                probability *= right if answer == "R" else 1.0 - right
            for kind, weight in _weights(seen, guess).items():
                expected[kind] += probability * weight
        for kind in KINDS:
            assert expected[kind] == pytest.approx(float(kind == kind_of(true)), abs=1e-12)


def test_guessing_alone_is_neither_learned_nor_forgotten() -> None:
    """Simulated with known truth: intervals cover it, though many seem to be learned."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(100):
        known = np.zeros((400, 4), dtype=bool)
        known[:120, 2:] = True  # learned in the second of three stages
        guesses = generator.random(known.shape) < 0.25
        found = {one.kind: one for one in without_lucky_guesses(made(known | guesses))}
        assert found["flipped"].count > 100  # what a plain count would tell
        assert fits(list(found.values()))
        assert all(0 <= number <= 400 for one in found.values() for number in one.shown())
        covered += found["flipped"].low <= 0 <= found["flipped"].high
        covered += found["learned"].low <= 120 <= found["learned"].high
    assert covered >= 180  # 190 of 200 expected; 180 is more than three standard deviations below


def test_answers_that_stay_alike_without_being_known_are_not_corrected_for_guessing() -> None:
    """A guess that is kept for some boundaries is no guess of the model that is inverted."""
    generator = np.random.default_rng(7)
    kept = np.repeat(generator.random((400, 2)) < 0.25, 2, axis=1)
    counted = without_lucky_guesses(made(kept))
    assert min(one.high for one in counted) < 0  # fewer than none, and surely so
    assert not fits(counted)
    assert fits(without_lucky_guesses(made(np.ones((5, 3), dtype=bool))))


def test_what_is_seen_after_stages_adds_up_and_what_they_caused_stands_beside_it() -> None:
    examples, answers = tables(np.random.default_rng(4))
    found = paths([answers], examples, BOUNDARIES)
    assert found is not None
    final = answers[answers["boundary"] == "three"]["prediction"].to_numpy()
    effects = examples.assign(
        stage="one", prediction=final, prediction_without=examples["label"].to_numpy()
    ).sample(frac=1, random_state=0)
    table = by_stage(found, effects, STAGES).set_index("stage")
    whole = found.right[:, -1].sum() - found.right[:, 0].sum()
    assert table["seen_after"].sum() == whole
    changed = table["became_right"] - table["became_wrong"]
    np.testing.assert_array_equal(changed, table["seen_after"])
    # Without stage one every answer would be right, so it is to blame for each wrong one.
    assert table.loc["one", "wrong_because"] == (found.right[:, -1] == 0).sum()
    assert table.loc["one", "right_because"] == 0
    assert table.loc["two":, "without_it"].isna().all()


def test_a_boundary_that_was_not_measured_leaves_its_stages_open() -> None:
    examples, answers = tables(np.random.default_rng(6))
    found = paths([answers[answers["boundary"] != "one"]], examples, BOUNDARIES)
    assert found is not None and found.boundaries == ("base", "two", "three")
    table = by_stage(found, None, STAGES).set_index("stage")
    assert table["seen_after"].isna().tolist() == [True, True, False]
