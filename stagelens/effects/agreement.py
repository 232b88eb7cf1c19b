"""How far two scorers agree on the same answers: Cohen's kappa, with an interval over prompts.

A judge's errors are not ours, but they can be seen: where a second scorer, a rule or a person, gave
numbers to the same answers of the same models. Kappa is the share of answers on which both agree,
beyond what they would by chance: J. Cohen, A coefficient of agreement for nominal scales, Educ.
Psychol. Meas. 20, 1960, as scikit-learn computes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour, is_fraction
from stagelens.runs.run import Run
from stagelens.runs.schema import digest
from stagelens.runs.sets.clusters import CLUSTER, with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .given_files import GivenFacts, behaviour_of, given, per_example
from .model_names import AFTER, FINAL, WITHOUT, model_name
from .resampling import Resamples, interval, numbered, places
from .results import load_result
from .stored_scores import GIVEN, StoredScore, stored_scores

MOST_VALUES = 10
"""Kappa is of categories: scores with more values than this are none."""
_RESAMPLES = Resamples(most=2_000, fewest=400, draws=4_000_000)
_DECIMALS = 9
"""Values are told apart to so many decimals."""

COLUMNS = ("model", "example_id", "value", "answer")
"""Of what a scorer said of answers: the model with its estimate, the prompt, the score, and the
answer, None where it is not known."""


@dataclass(frozen=True)
class Agreement:
    """How far two scorers agree.

    Attributes:
        first, second: Their names, as tables call them.
        answers: How many answers both gave a number to.
        same: Share of these, 0 to 1, with the same number; NaN where kappa is not shown.
        kappa: 1 where they always agree, 0 where as often as by chance; NaN where it is not shown.
        low, high: Its 95 % interval, by a bootstrap of prompts (of their sources, where they have
            some); NaN where it is not known.
        turned: Whether the second counts the other way round (lower is better), and was turned.
        reason: Why kappa is not shown; empty where it is.
    """

    first: str
    second: str
    answers: int
    same: float = float("nan")
    kappa: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    turned: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """What a scorer said.

    Attributes:
        kind: The score.
        rows: With the columns :data:`COLUMNS`.
        sampled: Whether a score is the mean over several answers.
    """

    kind: Behaviour
    rows: pd.DataFrame
    sampled: bool = False


def judged(run: Run, set_name: str) -> dict[str, Judged]:
    """What every scorer said of answers to a set's prompts, by name; given scores included."""
    examples = run.evaluation_set(set_name)
    found = {}
    for name, score in stored_scores(run, set_name).items():
        if GIVEN not in score.any.settings:
            rows = pd.concat(list(_stored(run, examples, score)), ignore_index=True)
            found[name] = Judged(score.behaviour, rows, score.samples > 1)
    scorers: dict[str, list[tuple[GivenFacts, pd.DataFrame]]] = {}
    for facts, table in given(run, examples):
        own = facts, per_example(examples, table)
        scorers.setdefault(digest(facts.scorer), []).append(own)
    for each in scorers.values():
        scorer = each[0][0].scorer
        kind = behaviour_of(scorer)
        models = [_rows(f"{one.model} {one.estimator}".strip(), rows) for one, rows in each]
        sampled = any(rows["sd"].notna().any() for _, rows in each)
        rows = pd.concat(models, ignore_index=True)
        found[_name(kind.name, scorer, found)] = Judged(kind, rows, sampled)
    return found


def agreements(run: Run, set_name: str) -> list[Agreement]:
    """How far every two scorers of a set agree, where they scored the same answers."""
    known = judged(run, set_name)
    table = with_sources(run.evaluation_set(set_name))
    numbers = np.arange(len(table))
    if CLUSTER in table:
        codes = pd.factorize(table[CLUSTER])[0]
        numbers = np.where(codes < 0, len(table) + numbers, codes)
    clusters = dict(zip(table["example_id"], numbers.tolist(), strict=True))
    pairs = combinations(known.items(), 2)
    found = (agreement(a, one, b, other, clusters) for (a, one), (b, other) in pairs)
    return [each for each in found if each.answers]


def agreement(
    first: str, one: Judged, second: str, other: Judged, clusters: Mapping[str, int]
) -> Agreement:
    """How far two scorers agree on the answers that both scored.

    Args:
        first: Name of one.
        one: What it said.
        second: Name of the other.
        other: What it said.
        clusters: Prompt to the number of its source.
    """
    both = one.rows.merge(other.rows, on=["model", "example_id"], suffixes=("", "_other"))
    both = both[both["value"].notna() & both["value_other"].notna()]
    # Another answer to the same prompt is another thing to score.
    unknown = both["answer"].isna() | both["answer_other"].isna()
    both = both[unknown | (both["answer"] == both["answer_other"])]
    count = len(both)
    if not count:
        return Agreement(first, second, 0)
    if one.sampled or other.sampled:
        return Agreement(first, second, count, reason="scores are means over several answers")
    turned = one.kind.better != other.kind.better
    if turned and not (is_fraction(one.kind) and is_fraction(other.kind)):
        return Agreement(first, second, count, reason="they count in opposite directions")
    values = both["value"].to_numpy().round(_DECIMALS)
    others = both["value_other"].to_numpy()
    others = (1 - others if turned else others).round(_DECIMALS)
    categories, codes = np.unique(np.concatenate([values, others]), return_inverse=True)
    if len(categories) > MOST_VALUES:
        reason = f"scores take more than {MOST_VALUES} values, and kappa is of categories"
        return Agreement(first, second, count, reason=reason)
    if len(categories) == 1:
        return Agreement(
            first, second, count, 1.0, turned=turned, reason="every score is the same number"
        )
    a, b = codes[:count], codes[count:]
    own = numbered(np.array([clusters[name] for name in both["example_id"]]))
    # How often each pair of categories was given, by source.
    pair, size = a * len(categories) + b, len(categories) ** 2
    counts = np.zeros((int(own.max()) + 1, size))
    np.add.at(counts, (own, pair), 1)
    low, high = interval(kappas(np.concatenate(list(_draws(counts)))))
    from sklearn.metrics import cohen_kappa_score  # takes a while to import

    kappa = float(cohen_kappa_score(a, b))
    return Agreement(first, second, count, float((a == b).mean()), kappa, low, high, turned)


def _draws(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of categories counted over bootstraps of sources, (B, K * K) at a time.

    Args:
        counts: (sources, K * K).
    """
    sources = len(counts)
    for block in places(sources, _RESAMPLES.of(sources), np.random.default_rng(0)):
        times = np.stack([np.bincount(drawn, minlength=sources) for drawn in block])
        yield times @ counts


def kappas(counts: np.ndarray) -> np.ndarray:
    """(B,) kappas of B tables of counts, all at once: scikit-learn takes a millisecond for each.

    Args:
        counts: (B, K * K) how often the first gave category i and the second j, row by row.

    Returns:
        NaN where both always gave one and the same category.
    """
    size = round(counts.shape[1] ** 0.5)
    tables_BKK = counts.reshape(-1, size, size) / counts.sum(1)[:, None, None]
    same = np.trace(tables_BKK, axis1=1, axis2=2)
    chance = (tables_BKK.sum(1) * tables_BKK.sum(2)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1, (same - chance) / (1 - chance), np.nan)


def _name(name: str, scorer: Mapping[str, Any], taken: Collection[str]) -> str:
    """The name of a given scorer, told apart from those that others have."""
    said = scorer["settings"]
    for more in (said.get("tool") or "added", f"version {scorer['version']}", digest(scorer)[:6]):
        if name not in taken:
            break
        name = f"{name} ({more})"
    return name


def _stored(run: Run, examples: EvaluationSet, score: StoredScore) -> Iterator[pd.DataFrame]:
    """What a scorer said of answers that models of the run gave."""
    final = None
    for facts in score.facts.values():
        found = load_result(run, examples, "scores", facts.estimator, facts.settings)
        if found is None:
            continue
        for stage, own in found.table.groupby("stage", sort=False):
            if final is None:
                final = own.rename(columns={"final": "value", "prediction": "answer"})
                yield _rows(FINAL, final)
            names = {"without": "value", "prediction_without": "answer"}
            without = own[["example_id", *names]].rename(columns=names)
            yield _rows(f"{model_name(WITHOUT, str(stage))} {facts.estimator}", without)
    if score.boundaries is not None:
        found = load_result(run, examples, "score-boundaries", "", score.boundaries.settings)
        for boundary, own in found.table.groupby("boundary", sort=False) if found else ():
            if boundary != run.last.name:
                names = {"prediction": "answer"}
                yield _rows(model_name(AFTER, str(boundary)), own.rename(columns=names))


def _rows(model: str, table: pd.DataFrame) -> pd.DataFrame:
    if "example_id" not in table:
        table = table.rename_axis("example_id").reset_index()
    return table.assign(model=model)[list(COLUMNS)]
