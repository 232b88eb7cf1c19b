"""Cached reading of run folders.

Caches are bounded and keyed by strings; what they hold is shared by all sessions and must not be
modified. Nothing here imports torch.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import streamlit as st

from stagelens.analyses.slices import effects as slice_effects
from stagelens.analyses.slices.saved import Slice, joined, stored_slices
from stagelens.contracts import ACCURACY, BASE, Behaviour
from stagelens.effects import headlines as strongest
from stagelens.effects import summary
from stagelens.effects.learning_rates import learning_rates
from stagelens.effects.results import FIRST, Result, ResultFacts, is_large, load_result
from stagelens.estimators.stage_trust import is_ground_truth
from stagelens.runs.sets import clusters as clustering
from stagelens.runs.sets.clusters import CLUSTER, Clusters
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.trust import estimates, noise
from stagelens.trust.draws import RECIPE
from stagelens.trust.estimates import stored_effects
from stagelens.trust.score_effects import with_scores
from stagelens.trust.stage_effects import Effects
from stagelens.trust.verification import trusted_facts
from stagelens.wording import sentences
from stagelens.wording.numbers import count_text

from . import drawn, scored
from .sources import MEASURED, Source, run
from .sources import ends as ends
from .sources import source as source


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def evaluation_set(at: Source, name: str) -> EvaluationSet:
    """One of the run's evaluation sets."""
    return run(at).evaluation_set(name)


# Frames are cached as resources throughout: cache_data would copy them at every call.
@st.cache_resource(max_entries=8, show_spinner=False)
def examples(at: Source, set_name: str) -> pd.DataFrame:
    """One row per example of a set: ``example_id``, ``label``, metadata, slices. Read-only."""
    return joined(evaluation_set(at, set_name).table(), slices(at, set_name)[0])


@st.cache_resource(max_entries=16, show_spinner=False)
def labelled(at: Source, set_name: str) -> bool:
    """Whether any example of a set has a label."""
    return bool(examples(at, set_name)["label"].notna().any())


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def clusters(at: Source, set_name: str) -> Clusters | None:
    """``clusters.clusters``: which examples of a set share a source; None if none do."""
    return clustering.clusters(evaluation_set(at, set_name))


def clustered(at: Source, set_name: str, noun: str) -> str:
    """What examples of a set share, where intervals of means go by it; empty if none do."""
    sharing = clusters(at, set_name)
    count = count_text(evaluation_set(at, set_name).count, noun)
    return "" if sharing is None else sharing.words(count)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def with_sources(at: Source, set_name: str) -> pd.DataFrame:
    """``clusters.with_sources``: every example's id, label and what it shares. Read-only."""
    return clustering.with_sources(evaluation_set(at, set_name))


@st.cache_resource(max_entries=16, show_spinner=False)
def groups(at: Source, set_name: str) -> Mapping[str, tuple[str, ...]]:
    """Columns that can form groups, slices included, with their values as text, sorted."""
    table = examples(at, set_name)
    names = summary.group_columns(table, (*evaluation_set(at, set_name).columns, "label"))
    made = slices(at, set_name)[0]
    # A slice of all examples would be a single group.
    names += [one.column for one in made if len(one.example_ids) < len(table)]
    return {name: tuple(sorted(map(str, table[name].dropna().unique()))) for name in names}


@st.cache_resource(max_entries=16, show_spinner=False)
def slices(at: Source, set_name: str) -> tuple[list[Slice], list[str]]:
    """``slices.saved.stored_slices``: the slices of a set, and why others cannot be shown."""
    return stored_slices(run(at), evaluation_set(at, set_name))


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def stored_estimates(at: Source, set_name: str) -> Mapping[str, ResultFacts]:
    """What the stored effect tables say of themselves, by name of the estimate, best first."""
    return estimates.stored_estimates(run(at), set_name)


@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def facts(at: Source, set_name: str, estimate: str) -> ResultFacts | None:
    """What a stored effect table says of itself, with what was verified; None if there is none."""
    found = stored_estimates(at, set_name).get(estimate)
    if found is None:
        return None
    return trusted_facts(run(at), found)


def result(at: Source, set_name: str, estimate: str, behaviour: str) -> Result | None:
    """A stored effect table, with the rows of one behaviour only; None if there is none."""
    known, measured = facts(at, set_name, estimate), _measured(at, set_name, estimate)
    if known is None or measured is None:
        return None
    kinds = [each for each in known.behaviours if each.name == behaviour]
    return Result(known.model_copy(update={"behaviours": kinds}), measured.of(behaviour))


@st.cache_resource(max_entries=8, show_spinner=False)
def effects(at: Source, set_name: str, estimate: str) -> Effects | None:
    """An effect table as pages use it; None if there is none.

    Stages that the table lacks, as a replay does that has not come to them, have the best known
    numbers of the other tables; ``Effects.sources`` says which. ``RECIPE`` names means over draws.
    """
    found = drawn.recipe(at, set_name) if estimate == RECIPE else _measured(at, set_name, estimate)
    if found is None:
        return None
    stages = [stage.name for stage in run(at).stages]
    if any(stage not in found.trust for stage in stages):
        names = [name for name in available(at, set_name) if name != estimate]
        others = [other for name in names if (other := _measured(at, set_name, name)) is not None]
        found = estimates.completed(found, others, stages)
    # Slices join a table that stays cached, so that saving one does not read effects again.
    own = slices(at, set_name)[0]
    found = found.with_columns(lambda rows: joined(rows, own)) if own else found
    sharing = clusters(at, set_name)
    return found if sharing is None else found.with_columns(sharing.joined)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def _measured(at: Source, set_name: str, estimate: str) -> Effects | None:
    known, own = facts(at, set_name, estimate), None
    if known is not None:
        about = labelled(at, set_name), orders(at, set_name)
        own = stored_effects(run(at), estimate, known, *about, coded=True)
    return with_scores(run(at), estimate, own, scored.scores(at, set_name), coded=True)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=MEASURED)
def orders(at: Source, set_name: str) -> pd.DataFrame | None:
    """``noise.load_orders``: effects in several orders of the batches; None if not known."""
    return noise.load_orders(run(at), set_name)


@st.cache_resource(max_entries=8, show_spinner=False)
def best_known(at: Source, set_name: str, estimate: str) -> Effects | None:
    """``estimates.best_known`` of all stored tables of a set."""
    chosen = effects(at, set_name, estimate)
    if chosen is None:
        return None
    if estimate == RECIPE or all(is_ground_truth(known) for known in chosen.trust.values()):
        return chosen  # nothing is better known, so the other tables need not be read
    others = [effects(at, set_name, name) for name in available(at, set_name) if name != estimate]
    return estimates.best_known(chosen, [other for other in others if other is not None])


def available(at: Source, set_name: str) -> list[str]:
    """Estimates that have a table for this set, best first."""
    return list(stored_estimates(at, set_name))


def boundaries(
    at: Source, set_name: str, behaviour: str, by: str | None = None
) -> Iterator[pd.DataFrame]:
    """One behaviour after each boundary, with a column of the set, in parts of whole boundaries.

    There is none where nothing was measured, and one of a small set.
    """
    if not is_large(evaluation_set(at, set_name).count):
        every = _boundaries(at, set_name, behaviour, by)
        if every is not None and len(every):
            yield every
        return
    for name in (BASE, *(stage.name for stage in run(at).stages)):
        # Not cached: of a large set, no more than one boundary is in memory.
        part = _boundary(at, set_name, behaviour, by, name)
        if part is not None:
            yield part


@st.cache_resource(max_entries=8, show_spinner=False)
def _boundaries(at: Source, set_name: str, behaviour: str, by: str | None) -> pd.DataFrame | None:
    return _boundary(at, set_name, behaviour, by, None)


def _boundary(
    at: Source, set_name: str, behaviour: str, by: str | None, boundary: str | None
) -> pd.DataFrame | None:
    # Accuracy is not stored: it follows from predictions, which every behaviour repeats.
    measured = FIRST if behaviour == ACCURACY.name else behaviour
    columns = ("boundary", "behaviour", "example_id", "value", "prediction")
    if behaviour in scored.scores(at, set_name):
        rows = scored.at_boundaries(at, set_name, behaviour, boundary)
        own = examples(at, set_name)[["example_id", *([] if by is None else [by])]]
        return None if rows is None else rows.merge(own, on="example_id")
    found = load_result(
        *(run(at), evaluation_set(at, set_name), "boundaries"),
        coded=True,
        behaviour=measured,
        stage=boundary,
        columns=columns,
    )
    if found is None:
        return None
    own = list(dict.fromkeys(["example_id", "label", *([] if by is None else [by])]))
    table = summary.boundaries_with_accuracy(found.table, examples(at, set_name)[own])
    return summary.of_behaviour(table, behaviour)


@st.cache_data(max_entries=64, show_spinner=False)
def _summaries(
    at: Source, set_name: str, estimator: str, behaviour: str, by: str | None, best: bool
) -> list[pd.DataFrame]:
    """``summary.stage_summary`` over a set, then per group of a column; empty if nothing is stored.

    Both in one go, because all effects of a large set are read for it; ``best`` for those that
    :func:`best_known` takes.
    """
    wanted = [None] if by is None else [None, by]
    found = (best_known if best else effects)(at, set_name, estimator)
    if found is None:
        return [pd.DataFrame(columns=list(summary.SUMMARY_COLUMNS)) for _ in wanted]
    return summary.stage_summaries(
        found.parts(behaviour, _needed(at, set_name, by)),
        found.behaviours[behaviour],
        [stage.name for stage in run(at).stages],
        wanted,
        orders(at, set_name),
        drawn.draws(at, set_name),
    )


def _needed(at: Source, set_name: str, by: str | None = None) -> list[str]:
    """Columns of effects that a summary by a column needs."""
    known = orders(at, set_name) is not None or drawn.draws(at, set_name) is not None
    noise_of = ["example_id"] if known else []
    own = [] if by is None else [by]
    return list(dict.fromkeys([*summary.SUMMARISED, *own, *noise_of]))


def stage_summary(
    at: Source, set_name: str, estimator: str, behaviour: str, by: str | None, group: str | None
) -> pd.DataFrame:
    """``summary.stage_summary`` over a set or one of its groups; no rows if nothing is stored."""
    every, *groups = _summaries(at, set_name, estimator, behaviour, by, False)
    return every if group is None else _of_group(groups[0], group).assign(group=None)


def group_summary(
    at: Source, set_name: str, estimator: str, behaviour: str, by: str
) -> pd.DataFrame:
    """``summary.stage_summary`` per group of a column."""
    return _summaries(at, set_name, estimator, behaviour, by, False)[1]


def _of_group(groups: pd.DataFrame, group: str) -> pd.DataFrame:
    return groups[groups["group"].astype(str) == group].reset_index(drop=True)


def headlines(
    at: Source,
    set_name: str,
    estimator: str,
    behaviour: str,
    by: str | None,
    group: str | None,
    noun: str,
) -> list[sentences.Sentence]:
    """``headlines.headlines`` over a set or one of its groups, from the best known numbers."""
    found = best_known(at, set_name, estimator)
    if found is None:
        return []
    # Where the chosen ones are known best, they are summarised already.
    other = found is not effects(at, set_name, estimator)
    kind = found.behaviours[behaviour]

    def summaries(name: str) -> list[pd.DataFrame]:
        every = _summaries(at, set_name, estimator, name, by, other)
        if group is None:
            return every
        return [_of_group(every[1], group)] if by is not None else []

    too = strongest.meant_too(kind, found.behaviours)
    beside = None if too is None else (too, summaries(too.name))
    every = summaries(behaviour)
    trust = found.trust_of(behaviour)
    return strongest.of_summaries(every, kind, trust, noun, by, beside=beside)


@st.cache_data(max_entries=64, show_spinner=False)
def slice_summary(at: Source, set_name: str, estimator: str, behaviour: str) -> pd.DataFrame:
    """``slices.effects.slice_summary`` over all slices of a set."""
    found = effects(at, set_name, estimator)
    assert found is not None, "pages ask only for estimators that have a result"
    names = [stage.name for stage in run(at).stages]
    own = slices(at, set_name)[0]
    kind = found.behaviours[behaviour]
    rows = found.parts(behaviour, _needed(at, set_name, "example_id"))
    of_noise = orders(at, set_name), drawn.draws(at, set_name)
    return slice_effects.slice_summary(rows, kind, names, own, *of_noise)


@st.cache_resource(max_entries=64, show_spinner=False)
def largest_difference(
    at: Source, set_name: str, estimator: str, behaviour: str
) -> slice_effects.Difference | None:
    """``slices.effects.largest_difference`` between the slices of a set."""
    found = effects(at, set_name, estimator)
    assert found is not None, "pages ask only for estimators that have a result"
    kind = found.behaviours[behaviour]
    rows = found.parts(behaviour, ("stage", "behaviour", "example_id", "effect", CLUSTER))
    return slice_effects.largest_difference(
        *(rows, kind, found.trust_of(behaviour), slices(at, set_name)[0]),
        *(orders(at, set_name), drawn.draws(at, set_name)),
    )


@st.cache_data(max_entries=64, show_spinner=False)
def boundary_summary(
    at: Source, set_name: str, behaviour: str, better: str, by: str | None
) -> pd.DataFrame | None:
    """Means after each boundary: over all examples, then per group; None where not measured."""
    # From its parts, because the cache is keyed by strings.
    kind = Behaviour(behaviour, "lower" if better == "lower" else "higher")
    names = [stage.name for stage in run(at).stages]
    wanted = [None] if by is None else [None, by]
    found: dict[str | None, list[pd.DataFrame]] = {each: [] for each in wanted}
    for part in boundaries(at, set_name, behaviour, by):
        for each in wanted:
            found[each].append(summary.boundary_summary(part, kind, names, each))
    every = [frame for each in wanted for frame in found[each]]
    return pd.concat(every, ignore_index=True) if every else None


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs=MEASURED)
def rates(at: Source) -> pd.DataFrame:
    """``learning_rates`` of the run."""
    return learning_rates(run(at).stages)


@st.cache_data(max_entries=256, show_spinner=False, hash_funcs=MEASURED)
def pictures(at: Source, set_name: str, ids: Sequence[str], side: int) -> list[str]:
    """Images of these examples as ``data:`` addresses, for table cells."""
    found = evaluation_set(at, set_name).image_pngs(ids, side, framed=True)
    return ["data:image/png;base64," + base64.b64encode(png).decode() for png in found]


@st.cache_data(max_entries=128, show_spinner=False, hash_funcs=MEASURED)
def picture(at: Source, set_name: str, example_id: str, side: int) -> bytes:
    """One image as PNG bytes."""
    return evaluation_set(at, set_name).image_png(example_id, side, framed=True)


@st.cache_data(max_entries=128, show_spinner=False, hash_funcs=MEASURED)
def texts(at: Source, set_name: str, ids: Sequence[str]) -> list[dict[str, str | None]]:
    """Texts of these examples, by the name of their field."""
    return [dict(example.input) for example in evaluation_set(at, set_name).by_id(list(ids))]


@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=MEASURED)
def searchable(at: Source, set_name: str) -> pd.Series:
    """What a search looks at, in the set's order: ids, and the texts of a set of texts."""
    of_texts = evaluation_set(at, set_name)
    if of_texts.kind != "text":
        return examples(at, set_name)["example_id"]
    return of_texts.texts()
