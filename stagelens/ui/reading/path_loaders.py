"""Cached reading of paths: each example's answers after every boundary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses.paths.answers import KINDS, Paths, kind_of
from stagelens.analyses.paths.answers import paths as made_of
from stagelens.analyses.paths.stages import by_stage
from stagelens.charts.alluvial import marks
from stagelens.contracts import ACCURACY, BASE

from . import loaders
from .loaders import MEASURED, Source

_MOST_OPTIONS = 40
"""Single paths that can be picked: the most frequent ones."""


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def paths(at: Source, set_name: str) -> Paths | None:
    """The paths of a set's examples; None where boundaries were not measured, or without labels."""
    examples = loaders.with_sources(at, set_name)
    stages = [stage.name for stage in loaders.run(at).stages]
    return made_of(loaders.boundaries(at, set_name, ACCURACY.name), examples, (BASE, *stages))


@st.cache_data(max_entries=32, show_spinner=False)
def table(
    at: Source, set_name: str, estimate: str, by: str | None, group: str | None
) -> pd.DataFrame:
    """``paths.stages.by_stage`` over a set or one of its groups."""
    found, effects = paths(at, set_name), loaders.best_known(at, set_name, estimate)
    assert found is not None, "pages ask only where there are paths"
    rows = None
    if effects is not None:
        columns = ("stage", "behaviour", "example_id", "label", "prediction_without")
        first = next(iter(effects.behaviours))
        rows = pd.concat(effects.parts(first, columns), ignore_index=True)
    kept = of_group(at, set_name, by, group)
    if kept is not None:
        found = found.only(kept)
        if rows is not None:
            rows = rows[rows["example_id"].isin(set(found.example_ids))]
    return by_stage(found, rows, [stage.name for stage in loaders.run(at).stages])


def of_group(at: Source, set_name: str, by: str | None, group: str | None) -> np.ndarray | None:
    """(N,) bool, the examples of one group in the set's order; None for all of them."""
    if by is None or group is None:
        return None
    column = loaders.examples(at, set_name)[by]
    return (column.astype(object).map(str, na_action="ignore") == group).to_numpy()


def options(found: Paths) -> list[str]:
    """What can be picked: the kinds that occur, then the most frequent paths one by one."""
    counts = found.counts()
    kinds = {kind_of(code) for code in counts}
    return [*(kind for kind in KINDS if kind in kinds), *map(option, list(counts)[:_MOST_OPTIONS])]


def option(code: str) -> str:
    """How a path is named among the options, and in links."""
    return f"{marks(code)} {kind_of(code)}"


def taken(found: Paths, picked: str, example_ids: Sequence[str]) -> np.ndarray:
    """(N,) bool, the examples on the paths that an option names.

    Args:
        found: The paths of the set.
        picked: One of :func:`options`.
        example_ids: (N,) whose answer is asked, in any order.
    """
    named = found.kinds if picked in KINDS else found.codes
    wanted = picked if picked in KINDS else {option(c): c for c in found.counts()}.get(picked)
    on_it = pd.Series(named == wanted, index=found.example_ids)
    return on_it.reindex(example_ids).fillna(False).to_numpy(dtype=bool)
