"""The words that StageLens uses, reachable from every page."""

from __future__ import annotations

import html
from collections.abc import Mapping

import streamlit as st

WORDS: Mapping[str, str] = {
    "run": "One model's training history on disk: its stages, recorded steps, checkpoints, "
    "evaluation sets and results.",
    "stage": "A contiguous block of optimiser steps with its own data, loss, optimiser and "
    "schedule: pretraining, a fine-tuning round, alignment.",
    "boundary": "The training state between two stages. The state before the first is the base.",
    "evaluation set": "The examples that behaviours are measured on.",
    "behaviour": "One number per example measured on a model: the loss, the margin, the "
    "probability of the label.",
    "counterfactual": "The model as it would be had a stage's updates not happened, all later "
    "stages run as they were.",
    "stage effect": "Behaviour of the final model minus behaviour of the counterfactual without "
    "the stage. In words: without the stage, the loss would be 0.41 higher.",
    "credit": "A stage effect that makes the behaviour better for an example. Blue, solid, ▲.",
    "blame": "A stage effect that makes the behaviour worse for an example. Vermilion, hatched, ▼.",
    "coalition": "The model in which only some of the stages happened.",
    "share": "A stage's fair part (Shapley) of what training as a whole did to a behaviour; shares "
    "add up to the final model minus the base.",
    "seen after": "What changed between the boundary before a stage and the one after it.",
    "estimator": "A way to obtain a counterfactual: the task vector, coarse replay, the unrolled "
    "estimators, replay.",
    "replay": "Running recorded steps again, from any state: the ground truth for a "
    "counterfactual.",
    "trust": "What is known of a number's error: exact; verified or does not agree, where a "
    "replay was there to check it; reliable, rough or sign uncertain where none was, by the error "
    "that nine of ten such estimates stay within; on recorded samples; or refused.",
    "error up to": "What an estimate promises without a replay: nine of ten such estimates stay "
    "within it. An error without “up to” was measured by a replay.",
    "interval": "Between which values a mean effect lies: over the choice of examples (95 %), and "
    "with the error of the estimate. Where it includes zero, there is no clear change.",
    "training noise": "How much an effect varies with the order of the batches. An effect of less "
    "than two of its standard deviations is not a finding, and is marked ≈.",
    "group": "Examples that share a value of one column of the set.",
    "slice": "Examples chosen by filters and kept under a name.",
}
"""Word to its meaning, in the order in which they build on each other."""


def link() -> None:
    """The button that opens the glossary."""
    if st.button(
        "Glossary",
        icon=":material/menu_book:",
        type="tertiary",
        key="glossary",
        help="What the words on these pages mean.",
    ):
        _dialog()


@st.dialog("Glossary", width="medium")
def _dialog() -> None:
    rows = "".join(
        f"<dt style='font-weight:600;margin:0'>{html.escape(word)}</dt>"
        f"<dd style='margin:0 0 .6em 0'>{html.escape(meaning)}</dd>"
        for word, meaning in WORDS.items()
    )
    st.html(f"<dl style='margin:0;line-height:1.5'>{rows}</dl>")
