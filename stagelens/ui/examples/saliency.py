"""Where in the input a stage's effect sits: a gallery of examples, and one example's maps."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.saliency.concentration import where_most
from stagelens.analyses.saliency.map_table import (
    BASELINES,
    MOST_STEPS,
    NOT_ATTRIBUTED,
    WITHIN,
    Map,
    load_maps,
    map_facts,
)
from stagelens.charts.saliency import pixel_maps, titles, token_maps
from stagelens.contracts import Behaviour, StageLensError
from stagelens.estimators import registry
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, job_progress, state
from stagelens.ui.pieces.pinning import About, pinnable
from stagelens.ui.pieces.trust_marks import trust_line
from stagelens.ui.reading import browse, loaders
from stagelens.ui.reading.browse import Filters, answer_column, effect_column
from stagelens.ui.reading.loaders import Effects
from stagelens.ui.server import forward_passes, jobs
from stagelens.wording.numbers import axis_unit, count_text, phrase
from stagelens.wording.signs import gain, gain_text
from stagelens.wording.trust_words import is_trustworthy, percent, signs_known

from . import filters
from .found_patch import beside_the_map
from .shown_stage import shown_stage, shown_words

_IMAGES, _TEXTS = 6, 4
"""Examples in the gallery."""
_SIDE = 256
"""Pixels on the longer side of the image behind a map."""
_BASELINE = "baseline"
"""Key of the control, also in links."""
_QUICK = 1 << 20
"""Largest product of the final model's bytes and examples for this process; more is a job."""


def gallery(workspace: Workspace, effects: Effects) -> None:
    """The examples with a stage's strongest effects, and their maps."""
    components.text_block(
        "Which pixels or tokens carry a stage's effect: the maps of the final model and of the "
        "model without the stage, and their difference, which is the stage's."
    )
    behaviours = _behaviours(effects)
    if not behaviours:
        st.info("No behaviour of this run can be attributed.", icon=":material/info:")
        return
    own = workspace.of_one(effects).name
    name = own if own in behaviours else behaviours[0]
    behaviour = effects.behaviours[name]
    stage = _stage(workspace, effects)
    with st.container(border=True), st.grid(3, min_column_width=170):
        every = filters.every_example(
            workspace.at, workspace.examples.name, effects.estimator, name
        )
        label = filters.pick_label(every.labels) if workspace.labelled else None
        side = filters.pick_side()
        baseline = _pick_baseline(workspace, wide=True)
    if _refused(effects, stage):
        return
    asked = Filters(
        stage=stage,
        label=label,
        by=workspace.bar.by,
        group=workspace.bar.group,
        side=side,
        sort="strongest effect",
    )
    rows = browse.select(every, asked, behaviour, workspace.stages).rows
    rows = rows[rows[effect_column(stage)].notna()]
    if rows.empty:
        st.info("No examples are left. Loosen a filter.", icon=":material/filter_alt_off:")
        return
    most = _IMAGES if workspace.noun == "image" else _TEXTS
    ids = rows["example_id"].head(most).tolist()
    maps = _maps(workspace, effects, stage, behaviour, baseline, ids)
    if maps is None:
        return
    _headline(workspace, effects, stage, behaviour, maps)
    across = 2 if workspace.noun == "image" else 1
    with st.grid(across, min_column_width=400, gap="small"):
        for each in maps:
            with st.container(border=True, height="stretch", gap="small"):
                row = rows.loc[rows["example_id"] == each.example_id].iloc[0]
                link = _link(workspace, effects, stage, each.example_id)
                _head(workspace, row, stage, link)
                _show(workspace, effects, stage, behaviour, each)
    if len(rows) > len(ids):
        components.text_block(
            f"The {count_text(len(ids), workspace.noun)} with the strongest effects of "
            f"{len(rows):,}.",
            muted=True,
        )
    _how(workspace, baseline)


def saliency_maps(
    workspace: Workspace, effects: Effects, behaviour: Behaviour, example_id: str
) -> None:
    """The maps of one example."""
    st.subheader("Which part of the input carries the effect", anchor=False)
    if behaviour.name in NOT_ATTRIBUTED:
        components.text_block(
            f"{phrase(behaviour).capitalize()} cannot be attributed: it is not a smooth function "
            "of one input. Choose another behaviour.",
            muted=True,
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        baseline = _pick_baseline(workspace)
    stage = _stage(workspace, effects, example_id)
    if _refused(effects, stage):
        return
    if pd.isna(_effect(effects, stage, behaviour, example_id)):
        components.text_block(f"No map: the {phrase(behaviour)} of this example is not known.")
        return
    maps = _maps(workspace, effects, stage, behaviour, baseline, [example_id])
    if maps is None:
        return
    _headline(workspace, effects, stage, behaviour, maps)
    _show(workspace, effects, stage, behaviour, maps[0], height=320)
    _how(workspace, baseline)


def _behaviours(effects: Effects) -> list[str]:
    left_out = {*NOT_ATTRIBUTED, *effects.judged}  # scores are of whole answers
    names = [name for name in effects.behaviours if name not in left_out]
    return sorted(names, key=lambda name: name != "margin")


def _places(workspace: Workspace) -> str:
    return "pixels" if workspace.noun == "image" else "tokens"


def _stage(workspace: Workspace, effects: Effects, example_id: str | None = None) -> str:
    """The chosen stage; without a choice the one most to blame, for one example or on average."""
    if workspace.bar.stage is not None:
        return workspace.bar.stage
    behaviour = effects.behaviours[_behaviours(effects)[0]]
    means = []
    for rows in effects.parts(behaviour.name, ("example_id", "stage", "effect")):
        own = rows if example_id is None else rows[rows["example_id"] == example_id]
        means.append(own.groupby("stage", observed=True)["effect"].mean())
    # Gains are positive for credit, so the smallest of them is the most blame.
    gains = (behaviour.sign * pd.concat(means)).dropna()
    gains = gains[[signs_known(effects.trust.get(s), behaviour.name) for s in gains.index]]
    stage, why = shown_stage(gains, workspace.stages)
    of = "of this example" if example_id is not None else "on average"
    components.text_block(shown_words(stage, why, behaviour, of), muted=True)
    return stage


def _pick_baseline(workspace: Workspace, wide: bool = False) -> str:
    known = BASELINES[workspace.noun]
    said = " ".join(f"{name}: {meaning}." for name, meaning in known.items())
    return st.selectbox(
        "Baseline",
        list(known),
        key=_BASELINE,
        bind="query-params",
        width="stretch" if wide else 220,
        help=f"What counts as an empty input; maps show what the input adds to it. {said}",
    )


def _refused(effects: Effects, stage: str) -> bool:
    """Whether there is no counterfactual to attribute; says why."""
    known = effects.trust.get(stage)
    if known is not None and known.trust != "refused":
        return False
    reason = "it was not computed" if known is None else known.reason
    st.info(
        components.plain(f"No map of {stage} by {effects.estimator}: {reason}"),
        icon=":material/block:",
    )
    return True


# ------------------------------------------------------------------------------------ computing


def _maps(
    workspace: Workspace,
    effects: Effects,
    stage: str,
    behaviour: Behaviour,
    baseline: str,
    ids: Sequence[str],
) -> list[Map] | None:
    """The maps of some examples; None where they are yet to be made, after showing that."""
    name = workspace.examples.name
    stored = loaders.stored_estimates(workspace.at, name)[effects.sources[stage]]
    facts = map_facts(
        *(workspace.run, name, stored.estimator, stored.settings, stage, behaviour.name, baseline)
    )
    found = load_maps(workspace.run, facts, ids)
    missing = [each for each in ids if each not in found]
    if not missing:
        return [found[each] for each in ids]
    if not workspace.computable:
        st.info("No map can be made without the run's task.", icon=":material/info:")
        return None
    if _weights(workspace) * len(missing) <= _QUICK:
        try:
            with st.spinner("Attributing the models' behaviour"):
                # Imports torch, which pages load only to ask a model.
                from stagelens.analyses.saliency.maps import stage_maps

                with forward_passes.alone():
                    made = stage_maps(
                        *(workspace.run, name, stage, ids, stored.estimator, stored.settings),
                        behaviour=behaviour.name,
                        baseline=baseline,
                    )
        except StageLensError as error:
            components.error_state(str(error))
            return None
        return list(made.maps)
    _job(
        (
            *("saliency", *workspace.at.words, "--set", name, "--stage", stage),
            *("--behaviour", behaviour.name, "--baseline", baseline),
            *("--estimator", stored.estimator),
            *registry.options(stored.settings),
            *(word for each in missing for word in ("--example", each)),
        )
    )
    return None


def _weights(workspace: Workspace) -> int:
    """Bytes of the final model."""
    end = workspace.run.last.facts.end
    return 0 if end is None else sum(file.bytes for file in end.shards)


def _job(arguments: tuple[str, ...]) -> None:
    """Make maps in a child process; started when they are first asked for."""
    if components.only_shown():
        return
    job = jobs.find(arguments)
    if job is None:
        job = jobs.start(arguments, "The search in the inputs")
    if job_progress.job_state(arguments, "Try again"):
        return
    # Not started again by itself: somebody cancelled it, or it ended without these maps.
    if job.status().state in ("cancelled", "done"):
        st.button("Look in the inputs", icon=":material/search:", on_click=jobs.forget,
                  args=(arguments,), key="look-in-inputs")  # fmt: skip


# -------------------------------------------------------------------------------------- showing


def _head(workspace: Workspace, row: pd.Series, stage: str, link: str) -> None:
    """An example's id as a link to it, and what the two models answer."""
    answers = f"{row['prediction']}, without {stage} {row[answer_column(stage)]}"
    label = f"label {row['label']} · " if workspace.labelled and pd.notna(row["label"]) else ""
    st.html(
        "<div style='display:flex;flex-wrap:wrap;justify-content:space-between;gap:.1em 1em;"
        "align-items:baseline;overflow-wrap:anywhere'>"
        f"<a href='{html.escape(link)}' target='_self' style='color:inherit;"
        f"font-weight:600'><bdi>{components.shown(row['example_id'])}</bdi></a>"
        f"<span style='opacity:.75;font-size:.9em'>{components.shown(label)}answer "
        f"{components.shown(answers)}</span></div>"
    )


def _headline(
    workspace: Workspace, effects: Effects, stage: str, behaviour: Behaviour, maps: Sequence[Map]
) -> None:
    # What is not shown below, because its sums do not hold, has no part in the sentence.
    held = [each for each in maps if each.holds]
    said = where_most(held, stage, behaviour, effects.trust.get(stage))
    if said is not None:
        with st.container(border=True):
            components.sentences([said], "1.15rem")
            beside_the_map(workspace, effects, stage, held)
    elif held:
        components.text_block(f"The maps of {stage} are zero everywhere on these examples.")


def _show(
    workspace: Workspace,
    effects: Effects,
    stage: str,
    behaviour: Behaviour,
    one: Map,
    height: int = 216,
) -> None:
    """The three maps of one example with their sums, or why they are not shown."""
    places = _places(workspace)
    if not one.holds:
        components.text_block(
            f"No map is shown: after {one.steps} steps the {places} sum to something that is "
            f"{percent(one.error)} away from what the models change, and {percent(WITHIN)} is "
            "allowed. Try another baseline."
        )
        return
    known = effects.trust.get(stage)
    signed, title = signs_known(known, behaviour.name), f"Where the effect of {stage} sits in "
    trust_of = None if known is None else [known]
    about = About(f"{title}{one.example_id}", behaviour.name, trust=trust_of)
    if workspace.noun == "image":
        png = loaders.picture(workspace.at, workspace.examples.name, one.example_id, _SIDE)
        address = "data:image/png;base64," + base64.b64encode(png).decode()
        faint = known is None or not is_trustworthy(known, behaviour.name)
        chart = pixel_maps(one, address, behaviour, stage, charts.EITHER, height, faint, signed)
        components.show(chart, f"where-{one.example_id}", about)
    else:
        shaded = token_maps(one, behaviour, stage, signed)
        rows = _by_token(one, stage, behaviour)
        with pinnable(f"where-{one.example_id}", rows, shaded.alt, about):
            st.html(shaded.html)
    trust = "" if known is None else f" · {trust_line({stage: known}, behaviour.name)}"
    unit, sums = axis_unit(behaviour), (one.effect, one.total, one.baseline_effect)
    amounts = [gain_text(value, behaviour, unit=False) for value in sums]
    components.text_block(
        f"Effect {amounts[0]} = {places} {amounts[1]} + baseline {amounts[2]}"
        f"{f' {unit}' if unit else ''}{trust}"
    )
    _differs(effects, stage, behaviour, one)


def _by_token(one: Map, stage: str, behaviour: Behaviour) -> pd.DataFrame:
    """A text's three maps as a table to pin: a row per token, on the credit scale."""
    maps = (gain(each, behaviour) for each in (one.final, one.without, one.stage))
    return pd.DataFrame({"token": one.tokens, **dict(zip(titles(stage), maps, strict=True))})


def _differs(effects: Effects, stage: str, behaviour: Behaviour, one: Map) -> None:
    """What the table says where twins sharpen its effect, which the map does without."""
    known = effects.trust.get(stage)
    if known is None or not known.twins_share:
        return
    value = _effect(effects, stage, behaviour, one.example_id)
    components.text_block(
        f"By both read-outs of {effects.estimator} the effect is "
        f"{gain_text(value, behaviour)}; the map is that of the counterfactual's weights.",
        muted=True,
    )


def _effect(effects: Effects, stage: str, behaviour: Behaviour, example_id: str) -> float:
    """What the effect table says of one example."""
    rows = effects.of_stage(behaviour.name, stage, ("example_id", "effect"))
    return float(rows.loc[rows["example_id"] == example_id, "effect"].iloc[0])


def _how(workspace: Workspace, baseline: str) -> None:
    places = _places(workspace)
    text = (
        "A token counts as what the model reads, at its embedding; tokens that frame a text stay. "
        if workspace.noun == "text"
        else "A pixel counts with all its channels. "
    )
    components.text_block(
        f"Integrated gradients from the baseline ({baseline}: "
        f"{BASELINES[workspace.noun][baseline]}) to the input, of the final model and of the model "
        f"without the stage; the stage's map is their difference. Its {places} sum to the effect "
        f"on the input less that on the baseline: checked within {percent(WITHIN)} of the larger "
        f"of the two models' own changes, with up to {MOST_STEPS} steps. {text}A place that equals "
        "the baseline gets nothing, whatever the model makes of it, so another baseline can give "
        "another map.",
        muted=True,
    )


def _link(workspace: Workspace, effects: Effects, stage: str, example_id: str) -> str:
    """A link to the map of one example, with the settings chosen here."""
    return components.address(
        "Examples",
        **{
            "set": workspace.examples.name,
            "estimator": effects.estimator,
            "stage": stage,
            state.EXAMPLE: example_id,
            state.LOOK: state.INPUT,
            _BASELINE: st.session_state[_BASELINE],
        },
    )
