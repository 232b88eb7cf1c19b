"""Two leaves of a run, and what made a merge, as far as they were measured; without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
import streamlit as st

from stagelens.analyses.lineages import soup_table, two_leaves
from stagelens.analyses.lineages.soup_table import Soup
from stagelens.analyses.lineages.two_leaves import TwoLeaves
from stagelens.contracts import Behaviour, RunError

from . import loaders
from .loaders import MEASURED, Source


@dataclass(frozen=True)
class Compared:
    """Two leaves, measured on one set.

    Attributes:
        two: Where they part.
        table: Both models' values, as ``two_leaves.paired`` has them.
        behaviours: By name.
    """

    two: TwoLeaves
    table: pd.DataFrame
    behaviours: dict[str, Behaviour]


def parted(at: Source, other: str) -> TwoLeaves:
    """Where a leaf and another one part.

    Raises:
        RunError: They are the same.
    """
    return TwoLeaves.of(loaders.run(at), loaders.run(replace(at, leaf=other)))


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def compared(at: Source, other: str, set_name: str) -> Compared | None:
    """Both leaves on a set; None where one of them was not measured, or cannot be compared."""
    two, examples = parted(at, other), loaders.evaluation_set(at, set_name)
    try:
        ends = [two_leaves.final_answers(run, examples) for run in (two.first, two.second)]
        table = two_leaves.paired(two, examples, *ends)
    except (RunError, KeyError):
        return None
    known = two_leaves.behaviours_of(table, ends[0])
    return Compared(two, table, {each.name: each for each in known})


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def differences(
    at: Source, other: str, set_name: str, behaviour: str, by: str | None
) -> pd.DataFrame:
    """``two_leaves.differences`` of what was measured; empty where nothing was."""
    found = compared(at, other, set_name)
    if found is None or behaviour not in found.behaviours:
        return pd.DataFrame(columns=list(two_leaves.DIFFERENCES))
    examples = loaders.evaluation_set(at, set_name)
    return two_leaves.differences(found.table, found.behaviours[behaviour], examples, by)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def effects_since(at: Source, other: str, set_name: str, kind: Behaviour) -> pd.DataFrame:
    """``two_leaves.effects_since`` of the stages that both leaves have since they parted."""
    two, examples = parted(at, other), loaders.evaluation_set(at, set_name)
    return pd.concat(
        [
            two_leaves.effects_since(run, two.since[run.last.name], examples, kind)
            for run in (two.first, two.second)
        ],
        ignore_index=True,
    )


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=MEASURED)
def soup(at: Source, set_name: str) -> Soup | None:
    """What was measured of the merge that a leaf is; None where nothing was."""
    return soup_table.load_soup(loaders.run(at), set_name)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def given(at: Source, set_name: str, kind: Behaviour) -> pd.DataFrame | None:
    """``soup_table.given`` of what was measured."""
    found = soup(at, set_name)
    if found is None or kind.name not in found.behaviours:
        return None
    return soup_table.given(found, kind, loaders.evaluation_set(at, set_name))
