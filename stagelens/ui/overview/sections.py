"""The sections of the Overview page."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.analyses.shares.sentences import QUESTIONS
from stagelens.analyses.shares.share_table import WITHOUT
from stagelens.contracts import ACCURACY, Behaviour, is_score
from stagelens.effects.headlines import FEWEST
from stagelens.report.provenance import RECORDED
from stagelens.runs.merge_words import merge_words
from stagelens.runs.run import Stage
from stagelens.runs.schema import StageFile
from stagelens.trust.draws import RECIPE
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components, drawing, readings
from stagelens.ui.pieces.folding import when_opened
from stagelens.ui.pieces.pinning import About, pinnable
from stagelens.ui.pieces.trust_marks import trust_badges, trust_legend
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.folding import MOST, listed
from stagelens.wording.hand_overs import end_lines, hand_over_lines
from stagelens.wording.intervals import mean_interval
from stagelens.wording.numbers import axis_unit, count_text, is_share, phrase
from stagelens.wording.objectives import objective_lines
from stagelens.wording.sentences import mean_sentence
from stagelens.wording.signs import POSITIVE_IS, gain
from stagelens.wording.stage_facts import optimizer_words, steps_words
from stagelens.wording.trust_words import trust_of_row, trust_word

from . import drawn_shares, recipe, shares
from .board_bars import examples_of
from .board_words import Focus

_CARDS_A_ROW = 4
_ABOUT_ENDS = (
    " Interval of the stage effect over the choice of examples (95 %) and with the error of the "
    "estimate; empty: not known."
)
_OF_DRAWS = " Interval of the mean over draws of the recipe (95 %); empty: not known."
_OF_RECIPE = {
    "of the recipe": " Mean of the stage effect over draws of the recipe.",
    "recipe low": _OF_DRAWS,
    "recipe high": _OF_DRAWS,
    "draw sd": " Standard deviation of the mean effect over draws of the recipe.",
}


_ORDER = " Reliable blame comes first."


def headlines(
    workspace: Workspace,
    effects: Effects,
    behaviour: Behaviour,
    by: str | None,
    group: str | None,
) -> None:
    """Two or three sentences that a stakeholder can read aloud."""
    found = loaders.headlines(
        workspace.at,
        workspace.examples.name,
        effects.estimator,
        behaviour.name,
        # Groups chosen by effects or answers stand out by that choice, which is not a finding.
        None if workspace.chosen_by_outcome(by) else by,
        group,
        workspace.noun,
    )
    with st.container(border=True):
        if not found:
            st.markdown("No stage stands out on this behaviour.")
        else:
            about = About("Headlines", behaviour.name, lambda: found)
            with pinnable("headlines", None, "Headlines", about):
                components.sentences(found, size="1.15rem")
        # Over draws of the recipe, intervals stand in the sentences themselves.
        bracketed = any("(95 %: " in str(each) or "(interval" in str(each) for each in found)
        brackets = (
            f" In brackets: the interval over the choice of {workspace.noun}s, with an estimate's "
            "error."
        )
        components.text_block(
            f"Headlines are mean effects over at least {count_text(FEWEST, workspace.noun)}, "
            "beyond chance over them (95 %) and, where known, the error of the estimate"
            f"{recipe.rule(workspace, effects)}{brackets if bracketed else ''}"
            f"{_ORDER if len(found) > 1 else ''}",
            muted=True,
        )


def credit_and_blame(
    workspace: Workspace,
    effects: Effects,
    behaviour: Behaviour,
    focus: Focus,
    folded: bool = False,
) -> None:
    """One diverging bar per stage, its trust, and the same numbers as a table.

    Args:
        workspace: What is open.
        effects: Whose numbers.
        behaviour: Which behaviour.
        focus: On which examples.
        folded: Whether the bars wait to be asked for, because the page shows similar ones already.
    """
    parts = (workspace.at, workspace.examples.name, effects.estimator, behaviour.name)
    by, group = focus.by, focus.group
    means = loaders.stage_summary(*parts, by, group)
    about = focus.examples(workspace.noun)
    st.header(components.plain(f"Credit and blame on {about}"), anchor=False)
    reading = WITHOUT if is_score(behaviour) else readings.choose()
    if reading != WITHOUT:
        if effects.estimator == RECIPE:
            if drawn_shares.of_recipe(workspace, behaviour, by, group, reading):
                return
            components.text_block(recipe.SHARES_OF_THIS_RUN)
            drawn_shares.offer(workspace)
        shares.adding_up(workspace, behaviour, by, group, reading)
        return
    if is_score(behaviour):
        components.text_block(shares.NONE_OF_SCORES, muted=True)
    components.text_block(
        f"{QUESTIONS[WITHOUT]} Mean stage effect on the {phrase(behaviour)} of {about}: what each "
        "stage made better (credit) and worse (blame) for individual examples, and the net of the "
        "two.",
        muted=True,
    )
    kept = charts.shown_stages(means)
    trust = {
        str(row["stage"]): trust_of_row(effects.trust[str(row["stage"])], row, behaviour.name)
        for row in means.to_dict("records")
        if str(row["stage"]) in effects.trust
    }

    def opens(bar: str) -> dict[str, str]:
        """What a click on a bar opens: the examples that the stage helped or hurt most."""
        side, _, stage = bar.partition(" ")
        return examples_of(focus.query, stage, side)

    def chart() -> charts.Chart:
        return drawing.chart(charts.credit_and_blame, means, behaviour, trust, charts.EITHER, about)

    about_it = About(
        behaviour=behaviour.name,
        sentences=lambda: [
            mean_sentence(row, behaviour, workspace.noun, by, trust.get(str(row["stage"])))
            for row in means.assign(group=group).iloc[kept].to_dict("records")
        ],
        filters={by: group} if by is not None and group is not None else {},
    )
    when_opened(
        "bars",
        "Bars of credit, blame and the net of the two",
        lambda: components.show(chart(), "bars", about_it, opens),
        folded,
    )
    if more := charts.rest_text(means, behaviour):
        components.text_block(f"{more} The table below has all of them.")
    if effects.estimator != RECIPE:  # what all do together is known of the recorded run alone
        shares.left_unsaid(workspace, behaviour, by, group)
    trust_badges([trust[name] for name in workspace.stages if name in trust], behaviour.name)
    said = [*_counts(means, workspace.noun, behaviour), *_clustered(workspace), *_noise(means)]
    components.text_block(" ".join(said), muted=True)
    trust_legend()

    def numbers() -> None:
        rows = means
        # Whoever chose a group asked for no other.
        if by is not None and (group is None or focus.chosen):
            every = loaders.stage_summary(*parts, by, None)
            rows = pd.concat([every, loaders.group_summary(*parts, by)], ignore_index=True)
        _table(rows, behaviour, effects)

    when_opened("numbers", "The same numbers as a table, with groups", numbers)


def _counts(means: pd.DataFrame, noun: str, behaviour: Behaviour) -> list[str]:
    """How many examples the means are over."""
    if means.empty:
        return []
    # A refused stage has effects on no example.
    row = means.loc[means["n"].idxmax()]
    said = f"Measured on {count_text(int(row['n']), noun)}"
    if row["missing"]:
        lacks = "score" if is_score(behaviour) else "label"
        said += f"; {count_text(int(row['missing']), noun)} without a {lacks} left out"
    return [f"{said}."]


def _clustered(workspace: Workspace) -> list[str]:
    """What examples share, where intervals of means go by it."""
    said = loaders.clustered(workspace.at, workspace.examples.name, workspace.noun)
    return [said] if said else []


def _noise(means: pd.DataFrame) -> list[str]:
    """Which mean effects are no more than the order of the batches, where that is known."""
    drawn = means[means["draw_low"].notna()]
    if len(drawn):
        return _over_draws(drawn)
    known = means[means["within_noise"].notna()]
    if known.empty:
        return ["Training noise not known."]
    within = known.loc[known["within_noise"].astype(bool), "stage"].tolist()
    if within:
        return [f"≈ Within training noise, so not a finding: the mean effect of {listed(within)}."]
    return [f"Beyond training noise: the mean effects of {listed(known['stage'].tolist())}."]


def _over_draws(drawn: pd.DataFrame) -> list[str]:
    """Which mean effects an interval over draws leaves in doubt."""
    words = drawn["drawn"].iloc[0]
    holding = drawn.loc[drawn["within_noise"].astype(bool), "stage"].tolist()
    if holding:
        return [
            f"≈ The interval over {words} of the recipe holds zero, so no finding: the mean effect "
            f"of {listed(holding)}."
        ]
    return [
        f"The intervals over {words} of the recipe leave out zero: the mean effects of "
        f"{listed(drawn['stage'].tolist())}."
    ]


def _table(rows: pd.DataFrame, behaviour: Behaviour, effects: Effects) -> None:
    scale, called = 100 if is_share(behaviour) else 1, behaviour.name
    named = "percent and points" if is_share(behaviour) else axis_unit(behaviour) or "its unit"
    # The lower end of a loss is the better one.
    recipe_ends = behaviour.sign * rows[["draw_low", "draw_high"]].astype(float)
    shown = pd.DataFrame(
        {
            "stage": rows["stage"],
            # As objects, because groups may be numbers, which a word cannot stand among.
            "group": rows["group"].astype(object).where(rows["group"].notna(), "all"),
            "trust": [
                trust_word(trust_of_row(effects.trust[row["stage"]], row, called), called)
                for row in rows.to_dict("records")
            ],
            "examples": rows["n"],
            "final": scale * rows["final"],
            "without the stage": scale * rows["without"],
            "stage effect": scale * gain(rows["effect"], behaviour),
            "credit": scale * rows["credit"],
            "blame": scale * rows["blame"],
            "standard error": scale * rows["error"],
            "noise sd": scale * rows["noise_sd"],
            "of the recipe": scale * gain(rows["draw_effect"].astype(float), behaviour),
            "recipe low": scale * recipe_ends.min(axis=1),
            "recipe high": scale * recipe_ends.max(axis=1),
            "draw sd": scale * rows["draw_sd"].astype(float),
            "within noise": 100 * rows["noise_share"].astype(float),
        }
    )
    intervals = [
        mean_interval(row, effects.trust.get(str(row["stage"])), behaviour)
        for row in rows.to_dict("records")
    ]
    ends = [(np.nan, np.nan) if one is None else one.gains(behaviour) for one in intervals]
    for at, name in enumerate(("low", "high")):
        values = np.array([each[at] for each in ends])
        shown.insert(shown.columns.get_loc("credit"), name, scale * values)
    if shown["of the recipe"].isna().all():
        shown = shown.drop(columns=list(_OF_RECIPE))
    about_ends = _OF_DRAWS if effects.estimator == RECIPE else _ABOUT_ENDS
    helps = {"stage effect": f" {POSITIVE_IS}", "low": about_ends, "high": about_ends, **_OF_RECIPE}
    errors = ("low", "high", "standard error", "noise sd", *(n for n in _OF_RECIPE if n in shown))
    numbers = ("final", "without the stage", "stage effect", "credit", "blame", *errors)
    digits = "%.1f" if is_share(behaviour) else "%.3f"
    components.table(
        shown,
        "stage-table",
        f"Mean stage effect, credit and blame per stage and group, in {named}. {POSITIVE_IS}",
        About(behaviour=behaviour.name),
        column_config={
            **{
                name: st.column_config.NumberColumn(
                    name,
                    format=digits,
                    help=f"In {named}.{helps.get(name, '')}",
                )
                for name in numbers
            },
            "within noise": st.column_config.NumberColumn(
                "within noise",
                format="%.0f %%",
                help="Share of the examples whose effect is within training noise; empty: noise "
                "not known.",
            ),
        },
    )


def time_line(
    workspace: Workspace, behaviour: Behaviour | None, note: str = "", folded: bool = True
) -> None:
    """The stages from left to right, and a card for each; when opened, where it is folded."""
    st.header("Stages", anchor=False)
    if note:
        components.text_block(note, muted=True)
    when_opened(
        "stages",
        "Time line of the stages, and a card for each",
        lambda: _time_line(workspace, behaviour),
        folded,
    )


def _time_line(workspace: Workspace, behaviour: Behaviour | None) -> None:
    # Behaviours after boundaries can be known before any effect is measured.
    better = behaviour or ACCURACY
    measured = loaders.boundary_summary(
        workspace.at, workspace.examples.name, better.name, better.better, workspace.by
    )
    curve = loaders.rates(workspace.at)
    steps = {stage.name: stage.updates for stage in workspace.run.stages}
    chart = drawing.chart(charts.time_line, steps, curve, measured, better, charts.EITHER)
    about_it = About(
        behaviour=better.name if measured is not None else "", observed=RECORDED, filters={}
    )
    components.show(chart, "time-line", about_it)
    _cards(workspace, curve)


@st.fragment
def _cards(workspace: Workspace, curve: pd.DataFrame) -> None:
    """A card for each stage; of many, a page of them."""
    stages, number = workspace.run.stages, 1
    if len(stages) > MOST:
        number = st.pagination(-(-len(stages) // MOST), key="stages-page", max_visible_pages=5)
    shown = stages[(number - 1) * MOST : number * MOST]
    with st.grid(_CARDS_A_ROW, min_column_width=170, border=True):
        for stage in shown:
            values = curve.loc[curve["stage"] == stage.name, "lr"].dropna()
            st.html(_card(stage, charts.stage_color(stage.index), values))


def _began(facts: StageFile) -> tuple[str, str]:
    if facts.merge is not None:
        return merge_words(facts.name, facts.merge), ""
    return f"optimiser state at its start: {facts.boundary.optimizer}", ""


def _card(stage: Stage, color: str, rates: pd.Series) -> str:
    facts = stage.facts
    before = None if stage.previous is None else stage.previous.facts
    rate = ""
    if len(rates):
        low, high = float(rates.min()), float(rates.max())
        rate = f"learning rate {high:.2g}" if low == high else f"learning rate up to {high:.2g}"
    lines = [
        (facts.description, "margin:.35em 0 .5em 0")
        if facts.description
        else ("No data description was recorded.", ""),
        (", ".join(optimizer_words(facts)), ""),
        *((line, "") for line in objective_lines(facts)),
        # Without a recorded rate the comma in front goes too.
        (f"{rate}, {steps_words(stage)}".lstrip(", "), ""),
        _began(facts),
        *((line, "") for line in hand_over_lines(facts, before)),
        *((line, "") for line in end_lines(facts)),
    ]
    body = "".join(
        f"<div style='overflow-wrap:anywhere;{style or 'opacity:.75;font-size:.875em'}'>"
        f"{html.escape(text)}</div>"
        for text, style in lines
    )
    return (
        "<div style='display:flex;align-items:center;gap:.5em'>"
        f"<span style='width:.8em;height:.8em;border-radius:.2em;background:{color}'></span>"
        f"<b style='overflow-wrap:anywhere'>{html.escape(stage.name)}</b></div>{body}"
    )
