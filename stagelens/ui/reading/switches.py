"""Cached reading of what the model does with some stages switched off. Nothing here imports torch.

Everything that the switchboard of a group shows is put together once, and is small: means of every
known combination, and what each of them answers for the few examples on the wall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses import switches
from stagelens.analyses.switches import ALL_ON, Level, Off, Switched, Turned
from stagelens.contracts import ACCURACY, is_score
from stagelens.runs.sets.clusters import CLUSTER

from . import loaders, shares
from .loaders import MEASURED, Source

_MOST_MODELS = 128
"""Combinations that are sent to a browser at once."""


@dataclass(frozen=True)
class Board:
    """What a switchboard shows of one group.

    Attributes:
        ids: Of the examples on the wall.
        labels: Theirs; None where there is none.
        total: How many examples the group has.
        models: Every known combination, with the values and answers of the wall's examples alone.
        levels: Combination to its mean over the whole group.
        turned: Combination to how it differs from the final model on the whole group.
        middle: The median of the final model's values over the group.
        spread: How far nine of ten of them lie from it at most.
    """

    ids: tuple[str, ...]
    labels: tuple[str | None, ...]
    total: int
    models: Mapping[Off, Switched]
    levels: Mapping[Off, Level]
    turned: Mapping[Off, Turned]
    middle: float
    spread: float


def board(
    at: Source,
    set_name: str,
    estimator: str,
    behaviour: str,
    by: str | None,
    group: str | None,
    most: int,
) -> Board | None:
    """The switchboard of a set or one of its groups; None where the estimator has no table.

    Args:
        at: The run folder.
        set_name: The set.
        estimator: Whose effects single stages have.
        behaviour: Which behaviour.
        by: The column of the group.
        group: The group; None for all examples.
        most: How many examples the wall has at most.
    """
    return _board(at, set_name, estimator, behaviour, by, group, most, shares.stamp(at))


# Slices are among the groups, so here they are part of the key.
@st.cache_resource(max_entries=16, show_spinner=False)
def _board(
    at: Source,
    set_name: str,
    estimator: str,
    behaviour: str,
    by: str | None,
    group: str | None,
    most: int,
    stored: str,
) -> Board | None:
    effects = loaders.effects(at, set_name, estimator)
    if effects is None:
        return None
    kind = effects.behaviours[behaviour]
    table = loaders.examples(at, set_name)
    ids = table["example_id"].astype(object).tolist()
    stages = [stage.name for stage in loaders.run(at).stages]
    found = switches.measured(effects, shares.coalitions(at, set_name), kind, stages, ids)
    if ALL_ON not in found:
        return None
    # Few stages off come first: where not all combinations fit, these are the ones asked for.
    kept = sorted(found, key=lambda off: (len(off), off))[: max(_MOST_MODELS, len(stages) + 1)]
    found = {off: found[off] for off in kept}
    own = shares.chosen(at, set_name, by, group)
    chosen = np.ones(len(ids), dtype=bool) if own is None else own
    labelled = table["label"].notna().to_numpy()
    if kind == ACCURACY:  # others cannot be right or wrong
        chosen = chosen & labelled
    scored = np.isfinite(found[ALL_ON].values)
    if is_score(kind) and scored[chosen].any():  # of others it says nothing
        chosen = chosen & scored
    clusters = _clusters(at, set_name, table)
    places = switches.sample(found, kind, chosen, most)
    final = found[ALL_ON]
    values = final.values[chosen]
    values = values[np.isfinite(values)]
    middle = float(np.median(values)) if len(values) else 0.0
    spread = float(np.quantile(np.abs(values - middle), 0.9)) if len(values) else 0.0
    of_them = (final, kind, chosen, labelled, clusters)
    labels = [None if pd.isna(label) else str(label) for label in table["label"].iloc[places]]
    return Board(
        tuple(ids[place] for place in places),
        tuple(labels),
        int(chosen.sum()),
        {off: _of_wall(one, places) for off, one in found.items()},
        {off: switches.level(one, *of_them) for off, one in found.items()},
        {off: switches.turned(one, *of_them) for off, one in found.items()},
        middle,
        spread,
    )


def _of_wall(one: Switched, places: np.ndarray) -> Switched:
    return Switched(one.off, one.values[places], one.answers[places], one.trust, one.estimator)


def _clusters(at: Source, set_name: str, table: pd.DataFrame) -> np.ndarray | None:
    """(N,) the source of every example, -1 where it shares none; None where all are apart."""
    sharing = loaders.clusters(at, set_name)
    if sharing is None:
        return None
    return pd.factorize(sharing.joined(table)[CLUSTER])[0]


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def learning_rates(at: Source, points: int = 24) -> Mapping[str, tuple[float, list[float]]]:
    """Stage to its highest learning rate, and to its course in shares of it at equal distances.

    Args:
        at: The run folder.
        points: How many points a course has at most.

    Returns:
        Only stages whose rates were recorded.
    """
    found = {}
    for stage, rows in loaders.rates(at).groupby("stage", sort=False):
        own = rows["lr"].dropna().to_numpy(float)
        highest = float(own.max(initial=0))
        if highest:
            kept = own[np.linspace(0, len(own) - 1, min(points, len(own))).round().astype(int)]
            found[str(stage)] = highest, [round(float(rate / highest), 3) for rate in kept]
    return found
