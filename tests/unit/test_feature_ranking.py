"""Which found features come first: pooled over labels, of the input, merged, and named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import norm

from stagelens.analyses.spurious.candidates import merged, named_by_shared
from stagelens.analyses.spurious.feature_table import COLUMNS, MORE_COLUMNS, FeatureFacts, Features
from stagelens.analyses.spurious.ranking import first, strongest
from stagelens.analyses.spurious.sentences import feature_name, feature_sentence
from stagelens.analyses.spurious.statistics import Candidates, judged_features
from stagelens.contracts import Behaviour
from stagelens.effects.results import BehaviourFacts

MARGIN, LOSS = Behaviour("margin", "higher"), Behaviour("loss", "lower")
N = 600


def row(
    kind: str, name: str, label: str | None, difference: float, reach: float = 0.2, n: int = 50,
    noise: float = np.nan, at: tuple[int, int] = (0, 0), passes: bool = True,
) -> dict[str, object]:  # fmt: skip
    low, high = difference - reach, difference + reach
    top, left = at if kind == "patch" else (None, None)
    return {
        **{"stage": "s", "kind": kind, "name": name, "label": label, "support": n, "without": n},
        **{"mean_with": difference, "mean_without": 0.0, "difference": difference},
        **{"low": low, "high": high, "p": 0.0, "q": 0.01, "noise_sd": noise, "smallest": 0.1},
        **{"evidence": min(abs(low), abs(high)), "passes": passes, "top": top, "left": left},
        **{"height": 2, "width": 2, "examples": [f"{label}-{i}" for i in range(3)], "also": []},
        "freedom": np.inf,
    }


def ranked(*rows: dict[str, object]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=[*COLUMNS, *MORE_COLUMNS])
    table = table.sort_values("evidence", ascending=False, kind="stable").reset_index(drop=True)
    facts = FeatureFacts(
        run_digest="", set_digest="", estimator="replay", settings={}, noise="",
        behaviour=BehaviourFacts.of(MARGIN), stages=[], kinds=[], examples=N,
    )  # fmt: skip
    return strongest(Features(facts, table), "s")


def test_features_of_the_input_come_before_groups_of_look_alikes() -> None:
    found = ranked(row("cluster", "cluster 1", "a", -9.0), row("word", "stamp", "a", -1.0))
    assert found["name"].tolist() == ["stamp", "cluster 1"]


def test_evidence_is_pooled_over_the_labels_where_it_agrees() -> None:
    many = [row("patch", "stamp", label, -2.0, n=100, at=(8, 8)) for label in "abcd"]
    odd = row("patch", "stamp", "e", 1.0, at=(8, 8))
    once = row("patch", "corner", "a", -3.0)
    found = ranked(once, *many, odd, row("patch", "stamp", "f", -9.0, passes=False, at=(8, 8)))
    assert found["name"].tolist() == ["stamp", "corner"]  # though corner is larger in its label
    stamp = found.iloc[0]
    assert (stamp["label"], stamp["opposite"], stamp["support"]) == ("a, b, c or d", "e", 400)
    assert stamp["mean_with"] == pytest.approx(-2.0)
    # Four independent intervals of one width: the mean's is half as wide.
    assert stamp["high"] - stamp["difference"] == pytest.approx(0.1)
    assert stamp["examples"][:5] == ["a-0", "b-0", "c-0", "d-0", "a-1"]
    said = str(feature_sentence(stamp.to_dict(), MARGIN, "image", None))
    assert "labelled a, b, c or d that have something there, it makes up −2.00 (blame)" in said
    assert said.endswith("Among images labelled e it is the opposite.")


def test_noise_that_all_labels_share_does_not_average_out() -> None:
    own = [row("word", "w", label, -2.0, 0.2, noise=0.2 / norm.ppf(0.975)) for label in "abcd"]
    assert ranked(*own).iloc[0]["high"] == pytest.approx(-1.8)


def test_the_largest_difference_is_never_left_out() -> None:
    found = ranked(
        *(row("word", f"w{i}", "a", -1.0, n=100) for i in range(6)),
        row("cluster", "cluster 1", "a", -8.0, n=12),
    )
    assert first(found, 3)["name"].tolist() == ["w0", "w1", "cluster 1"]
    assert len(first(found, 7)) == 7 and first(found, 1)["name"].tolist() == ["cluster 1"]
    assert first(found.iloc[:2], 1)["name"].tolist() == ["w0"]


def test_of_overlapping_patches_the_one_of_most_weight_is_kept() -> None:
    apart = row("patch", "far", "a", -1.0, at=(6, 6))
    found = ranked(row("patch", "p", "a", -2.0), row("patch", "near", "b", -1.0, at=(1, 1)), apart)
    assert found["name"].tolist() == ["p", "far"]


def test_a_set_without_labels_has_one_group() -> None:
    found = ranked(row("word", "w", None, 1.0))
    assert found.iloc[0]["label"] is None and found.iloc[0]["opposite"] == ""
    assert "Among all texts" in str(feature_sentence(found.iloc[0].to_dict(), LOSS, "text", None))


def test_a_label_that_is_missing_is_no_name() -> None:
    found = ranked(row("word", "w", "a", 1.0), row("word", "w", None, 0.9))
    assert found.iloc[0]["label"] == "a"


def word_features(has: np.ndarray, names: list[str], kind: str = "word") -> Candidates:
    return Candidates(kind, names, np.arange(len(has)), sparse.csr_matrix(has.astype(float)))


def test_features_of_the_same_examples_are_one() -> None:
    random = np.random.default_rng(0)
    has = random.random(N) < 0.3
    nearly = has & (random.random(N) < 0.97)
    other = random.random(N) < 0.3
    effects = random.normal(size=N) - 2.0 * has - 2.0 * other
    words = word_features(np.column_stack([has, nearly, other]), ["new", "york", "dog"])
    pairs = word_features(nearly[:, None], ["new york"], "pair")
    labels = np.array(["a"] * N, dtype=object)
    table = merged(judged_features([words, pairs], effects, labels), {"word": words, "pair": pairs})
    passed = table[table["passes"]]
    assert len(passed) == 2
    together = next(one for one in passed.to_dict("records") if one["name"] != "dog")
    assert {together["name"], *together["also"]} == {"new", "york", "new york"}
    assert feature_name(together).count(", also ") == 2


def test_a_cluster_is_named_by_what_its_members_share() -> None:
    inside = np.arange(N) < 100
    stamped = np.where(inside, np.arange(N) % 20 > 0, np.arange(N) % 5 == 0)
    common = np.ones(N, dtype=bool)
    clusters = word_features(
        np.column_stack([inside, ~inside]), ["cluster 1, 48 % labelled 9", "cluster 2"], "cluster"
    )
    others = word_features(np.column_stack([common, stamped]), ["ink", "stamp"], "patch")
    named = named_by_shared(clusters, [others, clusters])
    assert named.names[0] == "cluster 1: 95 % with stamp (20 % of the others), 48 % labelled 9"
    assert named.names[1] == "cluster 2"  # nothing sets it apart
