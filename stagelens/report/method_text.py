"""The method and the words of a report, for readers who never saw the dashboard."""

from __future__ import annotations

METHOD = (
    "A model is the product of several training stages. A stage effect is the difference in the "
    "final model's behaviour with and without the stage's updates: the behaviour of the final "
    "model minus that of the counterfactual, the model as it would be had the stage not happened "
    "and all later stages run as they were.",
    "An estimator is a way to obtain a counterfactual. One of them, replay, runs the recorded "
    "steps again, with the same batches, schedule and random numbers; it is the ground truth that "
    "the others are compared with. They do without most of these steps, or all. What is known of "
    "an estimate's error is its trust; it stands beside every number.",
    "Credit is a stage effect that makes the behaviour better for an example, blame one that makes "
    "it worse, by the behaviour's own direction: lower loss is better, higher margin is better. "
    "Over many examples both are means, and their sum is the net effect. An effect of less than "
    "two noise sd, that is how much it varies with the order of the batches, is not a finding.",
    "Signs follow one rule: credit is up, to the right, positive and blue; blame is down, negative "
    "and orange, whichever direction of the behaviour is better. Rows behind charts also keep what "
    "was measured: final, without, effect, low and high are in the behaviour's own direction; "
    "gain, credit and blame follow the rule.",
)
"""Paragraphs."""

SOURCE = (
    "Zhang, Du, Ma and Lakkaraju, Who Gets Credit or Blame? Attributing Accountability in Modern "
    "AI Systems, arXiv 2506.00175"
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("run", "one model's training history: its stages, recorded steps, sets and results"),
    ("stage", "a contiguous block of optimiser steps with its own data, loss and schedule"),
    ("boundary", "the training state between two stages; the state before the first is the base"),
    (
        "behaviour",
        "one number per example measured on a model, such as the loss, the margin (log-odds of "
        "the label) or the probability of the label",
    ),
    (
        "counterfactual",
        "the model as it would be had a stage's updates not happened, all later stages run as "
        "they were",
    ),
    ("stage effect", "behaviour of the final model minus behaviour of the counterfactual"),
    ("credit", "a stage effect that makes the behaviour better"),
    ("blame", "a stage effect that makes the behaviour worse"),
    ("coalition", "the model in which only some of the stages happened"),
    (
        "share",
        "a stage's fair part (Shapley) of what training as a whole did to a behaviour; shares add "
        "up to the final model minus the base",
    ),
    ("estimator", "a way to obtain a counterfactual"),
    ("replay", "running recorded steps again; the ground truth for a counterfactual"),
    ("trust", "what is known of a number's error, in one of the words above"),
    (
        "error up to 22 %",
        "promised without a replay: nine of ten such estimates stay within it; an error without "
        "“up to” was measured by a replay",
    ),
    (
        "interval",
        "between which values a mean lies: over the choice of examples (95 %), and with "
        "the error of the estimate",
    ),
    ("set", "an evaluation set: the examples that behaviours are measured on"),
    ("run digest", "names the recorded training exactly; another training has another one"),
)
"""Words and their meanings, in the order in which they build on each other."""
