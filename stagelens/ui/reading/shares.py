"""Cached reading of coalitions, for pages that show shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from stagelens.analyses.shares.pairs import Pair, pairs_of
from stagelens.analyses.shares.share_table import (
    SEEN_AFTER,
    SHARE,
    Shares,
    shares_of,
)
from stagelens.analyses.shares.stored import best_coalitions
from stagelens.contracts import BASE, Behaviour, StageLensError
from stagelens.effects.coalition_results import FOLDER, CoalitionResult, load_coalitions
from stagelens.estimators.halves import stored_halves
from stagelens.estimators.stage_trust import StageTrust
from stagelens.runs.cutting import Cut
from stagelens.runs.sets.clusters import CLUSTER
from stagelens.wording.intervals import example_error

from . import loaders
from .loaders import MEASURED, Source

_OBSERVED = "Measured on the recorded models; nothing is estimated."


def shares(
    at: Source, set_name: str, behaviour: str, together: tuple[str, ...] = ()
) -> Shares | None:
    """``share_table.shares_of`` the best coalitions of a set; None where they give no shares.

    Args:
        at: The run folder.
        set_name: The set.
        behaviour: Which behaviour.
        together: Stages taken as one.
    """
    return _shares(at, set_name, behaviour, together, stamp(at))


def halved(at: Source, set_name: str, behaviour: str, cut: Cut) -> Shares | None:
    """Shares with a stage as two halves, by the estimator of those shown; None where not known."""
    return _halved(at, set_name, behaviour, cut, stamp(at))


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def _halved(at: Source, set_name: str, behaviour: str, cut: Cut, stored: str) -> Shares | None:
    run, shown = loaders.run(at), _coalitions(at, set_name, (), stored)
    made = None if shown is None else stored_halves(run, cut)
    if shown is None or made is None:
        return None
    found = load_coalitions(made, set_name, shown.facts.estimator, shown.facts.settings)
    if found is None or not found.complete:
        return None
    return shares_of(found, behaviour)


def coalitions(at: Source, set_name: str) -> CoalitionResult | None:
    """``stored.best_coalitions`` of a set, every stage by itself."""
    return _coalitions(at, set_name, (), stamp(at))


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=MEASURED)
def _coalitions(
    at: Source, set_name: str, together: tuple[str, ...], stored: str
) -> CoalitionResult | None:
    return best_coalitions(loaders.run(at), set_name, together)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def _shares(
    at: Source, set_name: str, behaviour: str, together: tuple[str, ...], stored: str
) -> Shares | None:
    found = _coalitions(at, set_name, together, stored)
    if found is None:
        return None
    try:
        return shares_of(found, behaviour)
    except StageLensError:  # this behaviour was not measured
        return None


def pairs(
    at: Source,
    set_name: str,
    behaviour: str,
    together: tuple[str, ...] = (),
    by: str | None = None,
    group: str | None = None,
) -> list[Pair]:
    """``pairs.pairs_of`` over a set, or one of its groups; none where shares are not known."""
    return _pairs(at, set_name, behaviour, together, by, group, stamp(at))


# Slices are among the groups, so here they are part of the key.
@st.cache_resource(max_entries=16, show_spinner=False)
def _pairs(
    at: Source,
    set_name: str,
    behaviour: str,
    together: tuple[str, ...],
    by: str | None,
    group: str | None,
    stored: str,
) -> list[Pair]:
    found = _shares(at, set_name, behaviour, together, stored)
    return [] if found is None else pairs_of(found, chosen(at, set_name, by, group))


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def seen_after(at: Source, set_name: str, behaviour: Behaviour) -> Shares | None:
    """The boundaries of a run as coalitions of its first stages; None where not all are known.

    They give what is seen after each stage, and no shares.
    """
    names = [stage.name for stage in loaders.run(at).stages]
    examples = loaders.with_sources(at, set_name)
    v: dict[int, np.ndarray] = {}
    for part in loaders.boundaries(at, set_name, behaviour.name):
        for boundary, rows in part.groupby("boundary", observed=True):
            happened = 0 if boundary == BASE else names.index(str(boundary)) + 1
            v[(1 << happened) - 1] = rows["value"].to_numpy(dtype=float)
    if len(v) <= len(names):
        return None
    known = {
        mask: StageTrust(
            stage=names[mask.bit_length() - 1], estimator="", trust="exact", reason=_OBSERVED
        )
        for mask in v
    }
    return Shares(
        behaviour,
        tuple(names),
        v,
        known,
        examples["label"].notna().to_numpy(),
        clusters=pd.factorize(examples[CLUSTER])[0] if CLUSTER in examples else None,
    )


def known(at: Source, set_name: str) -> bool:
    """Whether shares of single stages are known on a set."""
    return coalitions(at, set_name) is not None


def columns(found: Shares) -> dict[str, dict[str, np.ndarray]]:
    """From reading and stage to (N,) numbers, for tables of examples."""
    return {
        reading: dict(zip(found.names, found.reading(reading), strict=True))
        for reading in (SHARE, SEEN_AFTER)
    }


def errors(found: Shares, reading: str) -> dict[str, float]:
    """Stage to what the errors of models add on either side of a single example's number."""
    trust, numbers = found.trust_in(reading), found.reading(reading)
    off = {
        name: example_error(trust[name], found.rms(own), found.behaviour.name)
        for name, own in zip(found.names, numbers, strict=True)
    }
    return {name: float("nan") if error is None else error for name, error in off.items()}


def stamp(at: Source) -> str:
    """Changes whenever a coalition is stored, which is no reason to read anything else again."""
    folders = sorted((Path(at.path) / FOLDER).glob("*"))
    return "-".join(f"{each.name[:8]}{each.stat().st_mtime_ns:x}" for each in folders)


def chosen(at: Source, set_name: str, by: str | None, group: str | None) -> np.ndarray | None:
    """(N,) which examples of a set are in a group; None for all of them."""
    if by is None or group is None:
        return None
    return np.asarray(loaders.examples(at, set_name)[by].astype(str) == group)
