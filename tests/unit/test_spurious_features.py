"""Features that go with a stage's effect: planted ones are found, chance is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import mannwhitneyu, t, ttest_ind

from stagelens.analyses.spurious.candidates import clusters, columns, words
from stagelens.analyses.spurious.feature_table import OF_DRAWS, load_features, noise_key
from stagelens.analyses.spurious.features import Look, find_features
from stagelens.analyses.spurious.grids import Patch, grid
from stagelens.analyses.spurious.patches import background, occupied, taken_out
from stagelens.analyses.spurious.ranking import strongest
from stagelens.analyses.spurious.statistics import (
    LEVEL,
    SUPPORT,
    Candidates,
    DrawnGains,
    judged_features,
)
from stagelens.contracts import no_progress
from stagelens.effects.computing import attribute
from stagelens.effects.contrasts import difference_spread
from stagelens.effects.draws import DrawnEffects, interval_over_draws
from stagelens.runs.run import open_run
from tests.benchmarks.spurious_features import permuted_share
from tests.conftest import DemoRun

N = 400


def features(has: np.ndarray, kind: str = "word") -> Candidates:
    names = [f"{kind} {number}" for number in range(has.shape[1])]
    return Candidates(kind, names, np.arange(len(has)), sparse.csr_matrix(has.astype(float)))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------- tests


def test_a_planted_feature_comes_first_in_the_label_that_it_was_planted_in(random) -> None:
    has = random.random((N, 50)) < 0.2
    labels = np.array(["a", "b"] * (N // 2), dtype=object)
    effects = random.standard_t(3, N)
    effects[has[:, 7] & (labels == "b")] -= 2.0
    table = judged_features([features(has)], effects, labels)
    assert (table.loc[0, "name"], table.loc[0, "label"]) == ("word 7", "b")
    assert table["passes"].sum() <= 3 and table.loc[0, "passes"]
    assert table.loc[0, "low"] < -2.0 < table.loc[0, "high"]


def test_a_difference_between_labels_alone_is_no_feature(random) -> None:
    labels = np.array(["a", "b"] * (N // 2), dtype=object)
    has = random.random((N, 20)) < np.where(labels == "a", 0.8, 0.2)[:, None]
    effects = random.normal(np.where(labels == "a", 3.0, -3.0), 1.0)
    assert judged_features([features(has)], effects, labels)["passes"].mean() <= LEVEL


def test_figures_are_those_of_scipy(random) -> None:
    has = random.random((N, 1)) < 0.3
    effects = np.round(random.normal(size=N), 1)  # with ties
    row = judged_features([features(has)], effects, np.full(N, None)).iloc[0]
    one, other = effects[has[:, 0]], effects[~has[:, 0]]
    rank = mannwhitneyu(one, other, use_continuity=False, method="asymptotic")
    assert row["p"] == pytest.approx(rank.pvalue, rel=1e-6)
    welch = ttest_ind(one, other, equal_var=False)
    assert row["difference"] == pytest.approx(one.mean() - other.mean())
    error = (one.mean() - other.mean()) / welch.statistic
    assert row["high"] - row["low"] == pytest.approx(2 * t.ppf(0.975, welch.df) * error)


def test_errors_of_examples_that_share_sources_are_those_of_contrasts(random) -> None:
    has = random.random((N, 3)) < 0.3
    # Pairs, some of which are on both sides, and examples that share no source.
    sources = np.where(np.arange(N) % 5 == 0, -1, np.arange(N) // 2)
    effects = random.normal(size=N // 2 + 1)[sources] + random.normal(size=N)
    table = judged_features([features(has)], effects, np.full(N, None), sources=sources)
    for row in table.itertuples():
        own = has[:, row.feature]
        spread = difference_spread(effects, own, ~own, sources)
        assert (row.difference, row.freedom) == pytest.approx((spread.value, spread.freedom))
        assert (row.low, row.high) == pytest.approx(spread.ends())


def test_what_is_there_several_times_is_no_more_of_a_feature(random) -> None:
    """Each of 60 examples eight times: p is uniform over features that mean nothing."""
    sources = np.repeat(np.arange(60), 8)
    has = (random.random((60, 500)) < 0.4)[sources]
    effects = random.standard_t(4, 60)[sources]
    nothing = np.full(len(sources), None)
    apart, together = (
        (judged_features([features(has)], effects, nothing, sources=known)["p"] < 0.05).mean()
        for known in (None, sources)
    )
    assert apart > 0.3
    assert 0.02 < together < 0.08  # 0.05, give or take three standard errors


def test_features_of_few_examples_are_not_tested(random) -> None:
    has = np.zeros((N, 3), dtype=bool)
    has[: SUPPORT - 1, 0] = has[:SUPPORT, 1] = has[: N - SUPPORT + 1, 2] = True
    assert set(
        judged_features([features(has)], random.normal(size=N), np.full(N, None))["name"]
    ) == {"word 1"}


def test_a_small_difference_does_not_pass_however_many_examples_show_it(random) -> None:
    has = random.random((40_000, 1)) < 0.5
    effects = random.normal(size=40_000) + 0.1 * has[:, 0]
    row = judged_features([features(has)], effects, np.full(40_000, None)).iloc[0]
    assert row["q"] < 1e-6 and not row["passes"]


def test_a_difference_within_training_noise_does_not_pass(random) -> None:
    has = random.random((N, 1)) < 0.5
    effects = random.normal(size=N) + 2 * has[:, 0]
    for noise, passes in ((0.1, True), (3.0, False)):
        orders = effects[:, None] + noise * has * np.array([[-1.0, 0.0, 1.0]])
        row = judged_features([features(has)], effects, np.full(N, None), orders).iloc[0]
        assert row["noise_sd"] == pytest.approx(noise)
        assert bool(row["passes"]) is passes


def test_a_difference_whose_interval_over_draws_holds_zero_does_not_pass(random) -> None:
    has = random.random((N, 1)) < 0.5
    effects = random.normal(size=N) + 2 * has[:, 0]
    for factors, passes in (([0.8, 1.0, 1.2], True), ([-2.0, 1.0, 2.0], False)):
        gains = effects[:, None] * np.array([factors])

        def is_clear(of: np.ndarray, factors=factors) -> bool:
            assert of == pytest.approx(of[1] * np.array(factors))
            return interval_over_draws(of, "same data").is_clear

        # By the noise alone it would be the other way round.
        noise = 3.0 if passes else 0.1
        orders = effects[:, None] + noise * has * np.array([[-1.0, 0.0, 1.0]])
        draws = DrawnGains(gains, is_clear)
        row = judged_features([features(has)], effects, np.full(N, None), orders, draws).iloc[0]
        assert bool(row["passes"]) is passes and np.isnan(row["noise_sd"])


def test_draws_are_part_of_what_features_are_known_by(random) -> None:
    table = pd.DataFrame({"stage": "a", "draw": [0, 1, 2], "effect": [1.0, 2.0, 3.0]})
    of_three, of_two = (DrawnEffects(table.head(count), "recipe") for count in (3, 2))
    assert noise_key(None, of_three).startswith(OF_DRAWS)
    assert noise_key(None, of_two) == noise_key(None, None) == ""
    other = DrawnEffects(table.assign(effect=2 * table["effect"]), "recipe")
    assert noise_key(None, of_three) != noise_key(None, other)


def test_what_is_weaker_with_the_feature_is_found_as_the_feature_of_the_others(random) -> None:
    has = random.random(N) < 0.5
    effects = random.normal(size=N) + np.where(has, 0.0, 3.0)
    table = judged_features([features(np.stack([has, ~has], axis=1))], effects, np.full(N, None))
    assert table.set_index("name")["passes"].to_dict() == {"word 1": True, "word 0": False}


# -------------------------------------------------------------------------------- candidates


def test_words_come_in_any_case_with_their_neighbours() -> None:
    texts = ["The cat sat"] * 15 + ["cat's sat, a CAT"] * 15 + ["sat the cat? A dog!"] * 15
    single, pairs = words(texts)
    assert set(single.names) == {"the", "a", "cat's", "dog"}  # the others are in every text
    assert "cat sat" in pairs.names  # of the first texts alone
    assert "a dog" not in pairs.names  # in just the texts that hold "dog"
    the = single.members[:, [list(single.names).index("the")]].toarray().ravel()
    assert the.tolist() == [1] * 15 + [0] * 15 + [1] * 15


def test_columns_give_values_and_bins() -> None:
    table = pd.DataFrame({"group": ["x", "y"] * 100, "age": np.arange(200.0)})
    table["cluster"] = np.arange(200) // 50  # who shares a source is no feature
    found = columns(table, ["group", "age", "cluster"])
    assert found.names[:2] == ["group = x", "group = y"]
    assert len(found.names) == 6 and found.members.sum(axis=0).tolist()[0][2:] == [50] * 4


def test_examples_that_are_alike_to_the_model_fall_into_one_cluster(random) -> None:
    near = random.normal(size=(120, 8)) + np.repeat([[0.0], [9.0], [-9.0]], 40, axis=0)
    labels = np.repeat(np.array(["a", "b", "c"], dtype=object), 40)
    found = clusters(near, labels)
    assert "100 % labelled b" in " ".join(found.names)


# ----------------------------------------------------------------------------------- patches


def test_patches_cover_an_image_overlap_by_half_and_stay_inside() -> None:
    for height, width in ((8, 8), (28, 28), (5, 9), (1, 3)):
        covered = np.zeros((height, width))
        for patch in grid(height, width):
            assert patch.height >= 1 and patch.width >= 1
            assert patch.top + patch.height <= height and patch.left + patch.width <= width
            covered[
                patch.top : patch.top + patch.height, patch.left : patch.left + patch.width
            ] += 1
        assert (covered > 0).all()
    assert len(grid(8, 8)) == 49


def test_a_patch_is_filled_with_the_background_or_with_its_surroundings(random) -> None:
    plain = np.zeros((8, 8), np.uint8)
    plain[2:5, 2:5] = 200
    ground = background([plain])
    assert ground == 0
    assert (taken_out(plain, Patch(2, 2, 3, 3), ground) == 0).all()
    photo = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    assert background([photo]) is None
    flat = np.full((8, 8, 3), 90, np.uint8)
    flat[2:4, 2:4] = (255, 0, 0)
    assert (taken_out(flat, Patch(2, 2, 2, 2), None) == 90).all()
    assert occupied([flat], [Patch(2, 2, 2, 2), Patch(5, 5, 2, 2)], None).tolist() == [
        [True, False]
    ]


# ------------------------------------------------------------------------------- on the demo


@pytest.fixture(scope="module")
def found(digits_run: DemoRun, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("found") / "digits"
    shutil.copytree(digits_run.path, folder)
    run = open_run(folder)
    return run, find_features(run, "test", "coarse-replay")


@pytest.mark.slow
def test_the_planted_stamp_of_the_demo_is_found_without_its_column(found) -> None:
    _run, features = found
    rows = strongest(features, "shortcut")
    # The stamp itself comes before groups of look-alikes, over all labels that it harms.
    patch = rows.iloc[0]
    assert (patch["kind"], patch["top"], patch["left"]) == ("patch", 0, 0)
    assert patch["evidence"] > 1.0 and patch["mean_with"] < 0
    assert len(patch["label"].split(", ")) > 2 and "3" in patch["opposite"]
    assert sum("stamped" in each for each in patch["examples"]) >= 10
    clusters_of = features.table[features.table["kind"] == "cluster"]["name"]
    assert clusters_of.str.contains("with group = stamped|with something at rows").any()


@pytest.mark.slow
def test_what_was_found_is_stored_and_read_again(found) -> None:
    run, features = found
    again = load_features(run, "test", "coarse-replay", features.facts.settings, "")
    assert again is not None and again.facts == features.facts
    pd.testing.assert_frame_equal(
        again.table.drop(columns="examples"), features.table.drop(columns="examples"),
        check_dtype=False,
    )  # fmt: skip
    assert load_features(run, "mixed-up", "coarse-replay", features.facts.settings, "") is None


@pytest.mark.slow
def test_with_stage_effects_permuted_within_label_next_to_nothing_passes(found) -> None:
    run, _features = found
    result = attribute(run, "test", "coarse-replay")
    look = Look.at(run, "test", result)
    removed = look.patches(no_progress)
    for stage in look.stages:
        each = [*look.candidates(), removed[stage.stage]]
        effects = look.gains(result.table, stage.stage)
        shares = [permuted_share(look, each, effects, seed) for seed in range(5)]
        assert np.mean(shares) <= 0.05


@pytest.mark.slow
def test_the_command_prints_the_strongest(found) -> None:
    command = ("features", str(found[0].path), "--set", "test", "--top", "2")
    done = subprocess.run(
        [sys.executable, "-m", "stagelens", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "What goes with the effect of shortcut" in done.stdout
    assert "patch at rows 0–1, columns 0–1" in done.stdout


def test_a_damaged_table_is_looked_for_again(found, tmp_path: Path) -> None:
    run, features = found
    contents = {p: p.read_bytes() for p in (run.path / "results" / "features").glob("*.parquet")}
    assert load_features(run, "test", "coarse-replay", features.facts.settings, "") is not None
    try:
        for path, content in contents.items():
            path.write_bytes(content[:100])
        assert load_features(run, "test", "coarse-replay", features.facts.settings, "") is None
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def test_words_that_are_equally_frequent_are_kept_by_their_names(monkeypatch) -> None:
    monkeypatch.setattr("stagelens.analyses.spurious.candidates.MOST", 2)
    texts = [word for word in ("pear", "fig", "apple") for _ in range(SUPPORT)]
    assert list(words(texts)[0].names) == ["apple", "fig"]
