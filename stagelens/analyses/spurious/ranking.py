"""Which found features come first, each once: pooled over labels, those of the input before others.

A feature is tested within every label. Where it passes in several, with an effect of one direction,
it is one finding about all of them: means are weighted by examples, and training noise, which the
labels share, adds up. Features of the input (words, pairs, patches) come first, because they say
what to look at; groups of look-alikes and values of columns follow. Within each the order is that
of *weight*, evidence times examples: how much of the stage's effect a feature has for certain.
"""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

import pandas as pd

from stagelens.wording.quantiles import t_quantile

from .feature_table import COLUMNS, MORE_COLUMNS, Features

_OF_THE_INPUT = ("patch", "word", "pair")
_EXAMPLES = 12


def strongest(found: Features, stage: str) -> pd.DataFrame:
    """The features of a stage that pass, the first one first.

    Of overlapping patches, only the first is kept.

    Returns:
        The columns of a table of features, of labels that agree together: ``label`` lists them
        (None: examples have no labels), ``opposite`` lists labels in which the feature has the
        opposite effect, and ``weight`` is what the order goes by.
    """
    table = found.table
    rows = table[(table["stage"] == stage) & table["passes"]]
    pooled = [_pooled(own) for _, own in rows.groupby(["kind", "name"], sort=False)]
    # Stable, so that of equal ones the first of the table stays first.
    pooled.sort(key=lambda row: (row["kind"] not in _OF_THE_INPUT, -row["weight"]))
    kept: list[dict[str, Any]] = []
    for row in pooled:
        patches = [other for other in kept if other["kind"] == row["kind"] == "patch"]
        if not any(_overlap(row, other) for other in patches):
            kept.append(row)
    columns = [*(c for c in COLUMNS if c != "p"), *MORE_COLUMNS, "opposite", "weight"]
    return pd.DataFrame(kept, columns=columns)


def first(rows: pd.DataFrame, top: int) -> pd.DataFrame:
    """The first ``top`` of :func:`strongest`, with the one of the largest difference among them."""
    if len(rows) <= top:
        return rows
    largest = int(rows["difference"].abs().to_numpy().argmax())
    kept = [*range(top)] if largest < top else [*range(top - 1), largest]
    return rows.iloc[kept].reset_index(drop=True)


def _pooled(rows: pd.DataFrame) -> dict[str, Any]:
    """One feature, over the labels in which it has the direction that carries more weight."""
    weights = rows["evidence"] * rows["support"]
    positive = rows["mean_with"] > 0
    side = positive if weights[positive].sum() >= weights[~positive].sum() else ~positive
    own, others = rows[side], rows[~side]
    share = own["support"] / own["support"].sum()
    freedom = own["freedom"].to_numpy(dtype=float)
    error = (own["high"] - own["low"]) / 2 / t_quantile(freedom)
    noise = own["noise_sd"].fillna(0.0)
    # Examples of different labels are drawn apart, but the noise of training moves all of them.
    parts = share**2 * (error**2 - noise**2).clip(0)
    variance = parts.sum() + (share * noise).sum() ** 2
    weighted = (parts**2 / freedom).sum()  # Satterthwaite's
    freed = float(parts.sum() ** 2 / weighted) if weighted else float(freedom.min())
    difference, reach = float((share * own["difference"]).sum()), t_quantile(freed) * variance**0.5
    low, high = difference - reach, difference + reach
    evidence = min(abs(low), abs(high)) if low * high > 0 else 0.0
    best = own.iloc[0].to_dict()  # of the strongest evidence: rows are stored in that order
    support = int(own["support"].sum())
    return {
        **best,
        "label": _labels(own),
        "support": support,
        "without": int(own["without"].sum()),
        "mean_with": float((share * own["mean_with"]).sum()),
        "mean_without": float((share * own["mean_without"]).sum()),
        **{"difference": difference, "low": low, "high": high, "freedom": freed},
        "q": float(own["q"].max()),
        "noise_sd": float((share * own["noise_sd"]).sum(skipna=False)),
        "evidence": evidence,
        "examples": _in_turn(own["examples"].tolist()),
        "also": list(dict.fromkeys(chain.from_iterable(own["also"]))),
        "opposite": _labels(others) or "",
        "weight": evidence * support,
    }


def _labels(rows: pd.DataFrame) -> str | None:
    names = sorted(str(label) for label in rows["label"] if pd.notna(label))
    if not names:
        return None
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _in_turn(examples: list[list[str]]) -> list[str]:
    """The first of every label, then the second, and so on."""
    turns = chain.from_iterable(zip_longest(*(list(each) for each in examples)))
    return [each for each in turns if each is not None][:_EXAMPLES]


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    across = a["left"] < b["left"] + b["width"] and b["left"] < a["left"] + a["width"]
    return bool(across and a["top"] < b["top"] + b["height"] and b["top"] < a["top"] + a["height"])
