"""A text token by token, shaded by the effect of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from stagelens import charts
from stagelens.contracts import Behaviour, StageLensError
from stagelens.estimators.stage_trust import StageTrust
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.pieces.trust_marks import trust_badge, trust_line
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.signs import POSITIVE_IS, gain
from stagelens.wording.trust_words import signs_known

from . import live_answers

if TYPE_CHECKING:
    from stagelens.analyses.own_example import TokenEffects

_STAGE = "tokens"
"""Key of the control, also in links."""


def has_tokens(workspace: Workspace) -> bool:
    """Whether the task has values per token, and can be asked for them here."""
    known = workspace.traits
    # Only the class of a task from elsewhere could say no, and pages load no classes.
    may = known is None or known.has_token_values
    return workspace.noun == "text" and workspace.computable and may


def has_maps(workspace: Workspace) -> bool:
    """Whether an effect can be attributed to places of an input; where not, says so."""
    if workspace.traits is None or workspace.traits.has_maps:
        return True
    components.text_block(
        "No map of the input: models of this kind read several texts of an example, and a map is "
        "of one.",
        muted=True,
    )
    return False


def of_the_set(workspace: Workspace, effects: Effects, example_id: str) -> None:
    """The tokens of an example of the set; to be called where :func:`has_tokens` is true."""
    try:
        with st.spinner("Asking the models about every token"):
            answer = live_answers.about(
                workspace.at, workspace.examples.name, effects.estimator, example_id
            )
    except StageLensError as error:
        components.text_block(f"Effects per token are not known: {error}.", muted=True)
        return
    if answer.tokens is not None:
        token_effects(workspace.stages, answer.tokens, answer.behaviours[0], effects.trust)


def token_effects(
    stages: Sequence[str],
    tokens: TokenEffects,
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
) -> None:
    """Shaded tokens for a stage, and the numbers of all stages as a table.

    Args:
        stages: Names in training order.
        tokens: Tokens of one text, with their effects.
        behaviour: What the values per token are parts of.
        trust: What is known of each stage's counterfactual.
    """
    st.subheader("Tokens", anchor=False)
    stage = _stage(stages, tokens)
    known = trust.get(stage)
    components.text_block(
        f"How much more likely {stage} made each token (credit), or less likely (blame), in "
        f"{behaviour.unit or 'the behaviour'}; all stages share one scale of shades."
        if behaviour.name == "log-likelihood" and signs_known(known, behaviour.name)
        else f"Effect of {stage} on the {behaviour.name} of each token.",
        muted=True,
    )
    if known is not None:
        trust_badge(known, behaviour.name, stage)
    # Over all stages, so that shades of one stage can be compared with those of another.
    largest = charts.largest_effect(list(tokens.effects.values()))
    effects = tokens.effects[stage]
    signed = signs_known(known, behaviour.name)
    drawn = charts.shaded_tokens(tokens.tokens, effects, behaviour, stage, largest, signed)
    st.html(drawn.html)
    with st.expander("The same numbers as a table, for every stage"):
        _table(stages, tokens, behaviour)
        components.text_block(trust_line(trust, behaviour.name), muted=True)


def _stage(stages: Sequence[str], tokens: TokenEffects) -> str:
    """The chosen stage; initially the one with the largest effects."""
    # Set before the control is drawn, as Streamlit requires; a link's choice takes precedence.
    if _STAGE not in st.session_state and _STAGE not in st.query_params:
        sizes = [np.nansum(np.abs(tokens.effects[stage])) for stage in stages]
        st.session_state[_STAGE] = stages[int(np.argmax(sizes))]
    chosen = st.segmented_control(
        "Stage",
        stages,
        key=_STAGE,
        bind="query-params",
        required=True,
        help="Whose effect shades the tokens.",
    )
    return chosen or stages[0]


def _table(stages: Sequence[str], tokens: TokenEffects, behaviour: Behaviour) -> None:
    columns: dict[str, object] = {
        "token": [charts.visible(token) for token in tokens.tokens],
        "final": tokens.final,
        **{f"effect of {stage}": gain(tokens.effects[stage], behaviour) for stage in stages},
    }
    numbers = {
        name: st.column_config.NumberColumn(name, format="%.3f")
        for name in columns
        if name != "token"
    }
    components.table(
        pd.DataFrame(columns),
        "tokens-table",
        "The final model's value for every token, and the effect of every stage on it. "
        f"{POSITIVE_IS}",
        column_config=numbers,
    )
