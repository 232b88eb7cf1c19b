"""Found without metadata: features that go with a stage's effect, with examples of each."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from stagelens.analyses.spurious.feature_table import (
    OF_DRAWS,
    Features,
)
from stagelens.analyses.spurious.ranking import first, strongest
from stagelens.analyses.spurious.sentences import feature_name, feature_sentence
from stagelens.analyses.spurious.statistics import LEVEL, SMALLEST, SUPPORT
from stagelens.charts import BLAME, EITHER
from stagelens.charts.places import patch_map
from stagelens.charts.style import MUTED, short
from stagelens.contracts import is_score
from stagelens.effects.results import ResultFacts
from stagelens.effects.stored_scores import OWN
from stagelens.estimators import registry
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, job_progress, state
from stagelens.ui.pieces.pinning import About
from stagelens.ui.pieces.trust_marks import trust_html, trust_line
from stagelens.ui.reading import loaders
from stagelens.ui.reading.found_features import facts_of, found_features
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import jobs, settings
from stagelens.wording.folding import listed
from stagelens.wording.numbers import count_text, is_share, number, phrase, signed_text
from stagelens.wording.trust_words import percent, signs_known, trust_word

KINDS = {
    "patch": "Patches",
    "word": "Words",
    "pair": "Word pairs",
    "cluster": "Look-alikes",
    "column": "Columns",
}
_CARDS = 6
_THUMBNAIL = 96
_SHOWN = 6
"""Pictures on a card."""
_TEXTS = 3
_LONGEST = 220


def found_features_tab(workspace: Workspace, effects: Effects) -> None:
    """What was found for the chosen stage; if there was no search yet, one starts."""
    kind = workspace.bar.behaviour
    score = kind.name if is_score(kind) else None
    of = (workspace.at, workspace.examples.name, effects.estimator, score)
    facts, found = facts_of(*of), found_features(*of)
    by = {name: value for name, value in facts.settings.items() if name not in OWN}
    arguments = (
        *("features", *workspace.at.words, "--set", workspace.examples.name),
        *(("--score", score) if score else ()),
        *("--estimator", facts.estimator),
        *registry.options(by),
    )
    if found is None:
        _search(arguments)
        return
    _further(found, facts, arguments)
    if workspace.bar.group is not None:
        count = count_text(found.facts.examples, workspace.noun)
        components.text_block(f"Features are tested on all {count}, not on the group alone.")
    stage, chosen = _controls(effects.trust, found, workspace.bar.stage)
    every = strongest(found, stage)
    # Columns are metadata; by default the tab shows what no metadata records, if there is any.
    own = every["kind"] == chosen if chosen is not None else every["kind"] != "column"
    rows = every[own] if chosen is not None or own.any() else every
    _headline(workspace, effects, found, stage, chosen, rows)
    _others(found, chosen, every)
    trust = effects.trust[stage]
    _cards(workspace, found, rows, trust)
    _map(found, stage, trust)
    _how(found, stage, trust)


def _search(arguments: tuple[str, ...]) -> None:
    """Start the search on the first visit; later show its progress, or a button to restart it."""
    components.text_block(
        "Which features go with a stage's effect, whether or not a column records them? Words, "
        "patches of images and groups of examples that look alike to the model are tested within "
        "each label."
    )
    if components.only_shown():
        return
    job = jobs.find(arguments)
    if job is None:
        job = jobs.start(arguments, "The search for features")
    if job_progress.job_state(arguments, "Try again"):
        return
    # Somebody stopped it on purpose: it is offered again, and not restarted by itself.
    if job.status().state == "cancelled":
        st.button("Look for features", icon=":material/search:", on_click=jobs.forget,
                  args=(arguments,), key="look-for-features")  # fmt: skip


def _further(found: Features, facts: ResultFacts, arguments: tuple[str, ...]) -> None:
    """Offer to look at stages that joined the effect table after the search."""
    given = [trust.stage for trust in facts.stages if trust.trust != "refused"]
    if found.holds(given) or settings.read_only():
        return
    job = jobs.find(arguments)
    if job is None:
        jobs.start(arguments, "The search for features")
    if not job_progress.job_state(arguments, "Try again"):
        st.button("Look at the stages that were replayed since", icon=":material/search:",
                  on_click=jobs.forget, args=(arguments,),
                  key="look-at-further-stages")  # fmt: skip


def _controls(
    trust: Mapping[str, StageTrust], found: Features, chosen: str | None
) -> tuple[str, str | None]:
    stages = [each.stage for each in found.facts.stages]
    best = [strongest(found, stage) for stage in stages]
    blamed = [b[(b["kind"] != "column") & (b["mean_with"] < 0)]["weight"].max() for b in best]
    # The largest of no rows is NaN, which would compare as neither larger nor smaller.
    known = [signs_known(trust.get(name), found.facts.behaviour.name) for name in stages]
    blamed = [
        size if size == size and one else 0.0 for size, one in zip(blamed, known, strict=True)
    ]
    stage = chosen if chosen in stages else stages[blamed.index(max(blamed))]
    if stage != chosen:
        components.text_block(
            f"Shown is {stage}, the stage with most to blame for what was found; choose another "
            "one above.",
            muted=True,
        )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        names = {KINDS[kind]: kind for kind in KINDS if kind in found.facts.kinds}
        kind = st.segmented_control(
            "Kind",
            list(names),
            key="kind",
            bind="query-params",
            help="If none is chosen: all except columns, and columns where nothing else passes.",
        )
    return stage, names.get(kind) if kind else None


def _headline(
    workspace: Workspace,
    effects: Effects,
    found: Features,
    stage: str,
    chosen: str | None,
    rows: pd.DataFrame,
) -> None:
    with st.container(border=True):
        if rows.empty:
            which = "No feature" if chosen is None else f"None of the {KINDS[chosen].lower()}"
            components.text_block(
                f"{which} that was tested goes with the effect of {stage} beyond chance, noise "
                "and the smallest difference that counts."
            )
            return
        behaviour, trust = found.facts.behaviour.behaviour(), effects.trust.get(stage)
        said = feature_sentence(rows.iloc[0].to_dict(), behaviour, workspace.noun, trust)
        components.sentences([said], "1.15rem")


def _others(found: Features, chosen: str | None, every: pd.DataFrame) -> None:
    """Where nothing of what is asked for passes: the kinds of which something does."""
    passing = {kind: int((every["kind"] == kind).sum()) for kind in found.facts.kinds}
    passing = {kind: count for kind, count in passing.items() if count}
    if chosen is None and [*passing] == ["column"]:
        tested = listed([KINDS[kind].lower() for kind in found.facts.kinds if kind != "column"])
        components.text_block(
            f"Shown are columns, which are metadata: of what needs none ({tested}), nothing "
            "passes.",
            muted=True,
        )
    elif chosen is not None and chosen not in passing and passing:
        others = listed([f"{KINDS[kind]} ({count:,})" for kind, count in passing.items()])
        components.text_block(f"Features that pass are among other kinds: {others}.", muted=True)


# --------------------------------------------------------------------------------------- cards


def _cards(workspace: Workspace, found: Features, rows: pd.DataFrame, trust: StageTrust) -> None:
    with st.grid(2, min_column_width=330, gap="small"):
        for row in first(rows, _CARDS).to_dict("records"):
            with st.container(border=True, height="stretch", gap="small"):
                _card(workspace, found, row, trust)
    if len(rows) > _CARDS:
        said = f"The {_CARDS} with the strongest evidence, of {len(rows):,} features found."
        components.text_block(said, muted=True)


def _card(workspace: Workspace, found: Features, row: dict[str, Any], trust: StageTrust) -> None:
    behaviour = found.facts.behaviour.behaviour()
    mark = "▲ credit" if row["mean_with"] > 0 else "▼ blame"
    if not signs_known(trust, behaviour.name):
        mark = "± sign uncertain"
    about = (
        f"{workspace.noun}s labelled {row['label']}" if row["label"] else f"all {workspace.noun}s"
    )
    about += f", the opposite among {row['opposite']}" if row["opposite"] else ""
    patch = row["kind"] == "patch"
    # Points are printed behind the numbers.
    unit = f" ({behaviour.unit})" if behaviour.unit and not is_share(behaviour) else ""
    pairs = [
        (f"part of the effect{unit}" if patch else f"mean effect with it{unit}",
         signed_text(row["mean_with"], behaviour), f"{row['support']:,} {workspace.noun}s"),
        ("the same where nothing is there" if patch else "without it",
         signed_text(row["mean_without"], behaviour), f"{row['without']:,} {workspace.noun}s"),
        ("difference", signed_text(row["difference"], behaviour),
         f"{signed_text(row['low'], behaviour)} to {signed_text(row['high'], behaviour)}"),
        ("false-discovery rate", "q " + ("< 0.001" if row["q"] < 0.001 else number(row["q"])), ""),
    ]  # fmt: skip
    lines = "".join(
        f"<div style='opacity:.75'>{components.shown(name)}</div>"
        f"<div style='font-weight:600;white-space:nowrap'>{components.shown(value)}</div>"
        f"<div style='opacity:.75'>{components.shown(more)}</div>"
        for name, value, more in pairs
    )
    st.html(
        f"<div style='display:flex;justify-content:space-between;gap:1em;align-items:baseline'>"
        # bdi: a name written from right to left must not reorder what stands beside it.
        f"<b style='overflow-wrap:anywhere'><bdi>{components.shown(_title(row))}</bdi></b>"
        f"<span style='white-space:nowrap'>{mark}</span></div>"
        f"<div style='font-size:.9em;margin-bottom:.4em'><span style='opacity:.75'>"
        # Beside the muted words, not among them: it is muted itself.
        f"{components.shown(about)} · </span>{trust_html(trust, behaviour.name, brief=True)}</div>"
        "<div style='display:grid;grid-template-columns:auto auto 1fr;gap:.1em .8em;"
        f"font-size:.875rem'>{lines}</div>"
    )
    _examples(workspace, found, row)


def _title(row: Mapping[str, Any]) -> str:
    name = feature_name(row)
    # Not capitalize(), which would put the rest of a name in lower case.
    return f"“{name}”" if row["kind"] in ("word", "pair") else name[:1].upper() + name[1:]


def _examples(workspace: Workspace, found: Features, row: dict[str, Any]) -> None:
    ids = [str(each) for each in row["examples"]]
    at, name = workspace.at, workspace.examples.name
    if workspace.examples.kind == "image":
        ids = ids[:_SHOWN]
        pictures = loaders.pictures(at, name, ids, _THUMBNAIL)
        cells = "".join(
            f"<a href='{_link(each)}' target='_self' title='{components.shown(each)}'"
            f" style='position:relative;display:block'><img src='{picture}' alt='Example "
            f"{components.shown(each)}' style='width:100%;display:block;image-rendering:pixelated;"
            f"border-radius:.2em'>{_outline(row, found)}</a>"
            for each, picture in zip(ids, pictures, strict=True)
        )
        st.html(
            f"<div style='display:grid;grid-template-columns:repeat(6,1fr);gap:.4em'>{cells}</div>"
        )
        return
    ids = ids[:_TEXTS]
    for each, content in zip(ids, loaders.texts(at, name, ids), strict=True):
        text = " ".join(part for part in content.values() if part)
        st.html(
            f"<a href='{_link(each)}' target='_self' style='color:inherit;"
            "text-decoration:none'><p style='margin:0;padding-left:.6em;border-left:2px solid "
            f"{MUTED};overflow-wrap:anywhere;font-size:.9rem'>"
            f"<bdi>{_marked(text, row)}</bdi></p></a>"
        )


def _link(example_id: str) -> str:
    return html.escape(components.address("Examples", **{state.EXAMPLE: example_id}))


def _outline(row: Mapping[str, Any], found: Features) -> str:
    if row["kind"] != "patch" or found.facts.shape is None:
        return ""
    height, width = found.facts.shape
    left, top = 100 * row["left"] / width, 100 * row["top"] / height
    wide, tall = 100 * row["width"] / width, 100 * row["height"] / height
    return (
        f"<span style='position:absolute;left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;"
        f"height:{tall:.2f}%;box-sizing:border-box;border:2px solid {BLAME};border-radius:.15em'>"
        "</span>"
    )


def _marked(text: str, row: Mapping[str, Any]) -> str:
    """A text cut to size, with the feature's words in bold; everything escaped."""
    # In the text, punctuation may stand between the two words of a pair.
    words = re.escape(str(row["name"])).replace(r"\ ", r"\W+")
    at = re.search(rf"\b{words}\b", text, re.IGNORECASE)
    if row["kind"] not in ("word", "pair") or at is None:
        return components.shown(short(text, _LONGEST))
    start = max(at.start() - _LONGEST // 2, 0)
    pieces = (text[start : at.start()], text[at.start() : at.end()])
    # Cut first and escape afterwards: a cut could fall inside an entity.
    before, inside = (components.shown(piece) for piece in pieces)
    after = components.shown(text[at.end() : at.end() + _LONGEST // 2])
    return f"{'…' if start else ''}{before}<b>{inside}</b>{after}"


# ------------------------------------------------------------------------------ where, and how


def _map(found: Features, stage: str, trust: StageTrust) -> None:
    rows = found.table[(found.table["stage"] == stage) & (found.table["kind"] == "patch")]
    if found.facts.shape is None or rows.empty:
        return
    st.header("Where in the images", anchor=False)
    behaviour = found.facts.behaviour.behaviour()
    chosen = (
        f", drawn at random from {found.facts.examples:,}"
        if found.facts.images < found.facts.examples
        else ""
    )
    with st.grid(2, min_column_width=330, gap="medium") as grid:
        with grid.cell():
            signed = signs_known(trust, behaviour.name)
            parts = (rows, found.facts.shape, behaviour, stage, EITHER, signed)
            chart = drawing.chart(patch_map, *parts)
            components.show(chart, "patch-map", About(behaviour=behaviour.name, trust=[trust]))
        with grid.cell():
            components.text_block(
                f"How much the effect of {stage} on the {behaviour.name} changes when a patch is "
                "taken out of the picture: mean size over labels, on "
                f"{count_text(found.facts.images, 'image')}{chosen}. A patch is filled with the "
                "set's background or, where there is none, with the mean of the pixels around it. "
                f"{trust_line({stage: trust}, behaviour.name)}",
                muted=True,
            )


def _how(found: Features, stage: str, trust: StageTrust) -> None:
    counts = next(each for each in found.facts.stages if each.stage == stage)
    noise = (
        "with an interval over draws of the recipe that leaves out zero"
        if found.facts.noise.startswith(OF_DRAWS)
        else "and beyond 2 noise sd of training"
        if found.facts.noise
        else "the training noise is not known (the Trust page measures it)"
    )
    sources = f", with errors clustered by {found.facts.sources}" if found.facts.sources else ""
    each_of, within, pooled = ". Each compares examples with and without a feature", "", ""
    if found.table["label"].notna().any():
        each_of = (
            "; a feature has one test for each label. Each compares examples of one label with "
            "and without a feature"
        )
        within = " within its label"
        pooled = (
            " Where a feature passes in several labels and does the same in them, it is shown "
            "once, with means over their examples."
        )
    components.text_block(
        f"{counts.passed:,} of {count_text(counts.tested, 'test')} pass, over all kinds of "
        f"features{each_of}, at least {SUPPORT} of either: rank-sum test"
        f"{sources}, false discovery rate at most {percent(LEVEL)} over all tests of the stage "
        f"(Benjamini and Hochberg), a difference of at least {SMALLEST:g} standard deviations of "
        f"the effect{within}, {noise}.{pooled} Words and patches "
        "come before groups of look-alikes; each sorted by evidence, the end of the 95 % interval "
        "that is nearer to zero, times examples. That a feature goes with an effect does not mean "
        "that it is spurious: look at the examples.",
        muted=True,
    )
    with st.expander("The tests of this stage as a table"):
        rows = found.table[found.table["stage"] == stage]
        rows = rows.drop(columns=["stage", "top", "left", "height", "width", "examples", "also"])
        measured = found.facts.behaviour.behaviour()
        rows.insert(0, "trust", trust_word(trust, measured.name))
        said = (
            f"The tests for {stage} with the strongest evidence: mean effect on the "
            f"{phrase(measured)} with and without each feature{within}."
        )
        about = About(behaviour=measured.name, trust=[trust])
        components.table(rows, "features-table", said, about, height=320)
