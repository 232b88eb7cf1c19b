"""A selection in words: what it costs, what was chosen, and what replays say of it."""

from __future__ import annotations

from stagelens.contracts import Behaviour
from stagelens.derivatives.curvature_kinds import by_curvature
from stagelens.runs.run import Run
from stagelens.wording.folding import listed
from stagelens.wording.numbers import amount_text, count_text, phrase
from stagelens.wording.trust_words import FIRST_ORDER

from .outcomes import Outcome, Wanted
from .proofs import KINDS, TrainedOn

LITTLE = 0.5
"""Rank correlation between halves of the target below which an order is called mostly chance: of
the whole target's order, less than two thirds then is reproducible, as far as that depends on which
examples the target has (Spearman and Brown)."""

_WHOLE = 2
"""Kept examples of the rarest label from which their number follows the label's share: below, which
labels have one at all is a matter of rounding."""

INTERVALS = (
    "Intervals of differences say how far these may be off with other orders of batches and on "
    "other examples of the target; those of single models, with other orders alone."
)
FILLED_UP_BY_NOTHING = (
    "Rows left out leave the batches that were drawn, and no others come in their place."
)


def cost(run: Run, wanted: Wanted) -> str:
    """What a selection takes: sweeps to order the examples, and replays that judge.

    Args:
        run: The run.
        wanted: What is asked.
    """
    stage = run.stage(wanted.stage)
    later = run.stages[stage.index + 1 :]
    steps = stage.steps + sum(each.steps for each in later)
    through = wanted.stage
    if later:
        through += f" with the later {listed([each.name for each in later])}"
    sweeps = count_text(len(wanted.horizons), "backward sweep")
    ordered = f"Takes {sweeps} through {wanted.stage} to rank its examples, one for each horizon"
    if not wanted.replays:
        return f"{ordered}; nothing is replayed."
    proof = len(KINDS) * wanted.draws
    parts = [
        f"{wanted.trials:,} to choose the horizon" if wanted.trials else "",
        f"{proof:,} to prove the choice ({wanted.draws:,} draws of {len(KINDS)} models)"
        if proof
        else "",
    ]
    return (
        f"{ordered}; then {count_text(wanted.replays, 'replay')} of {through} "
        f"({count_text(steps, 'step')} each): {', '.join(filter(None, parts))}."
    )


def chosen(outcome: Outcome) -> str:
    """How many examples were chosen, and for what."""
    facts, kind = outcome.facts, outcome.behaviour
    how = FIRST_ORDER + by_curvature(facts.wanted.curvature)
    target = f"{count_text(facts.ranking.count, 'example')} of {facts.wanted.set_name}"
    ranking = facts.ranking
    when = f"{count_text(ranking.horizon, 'step')} later"
    if ranking.horizon >= ranking.steps:  # a longer one asks for no more
        when = f"at the end of {facts.wanted.stage}"
    said = (
        f"{len(outcome.kept):,} of {count_text(facts.of, 'training example')} of "
        f"{facts.wanted.stage} kept: those that help the {phrase(kind)} of {target} most, "
        f"{when} ({how})"
    )
    if ranking.per_label and outcome.kept["label"].value_counts().min() >= _WHOLE:
        said += "; the same share of every label"
    elif ranking.per_label:
        said += "; too few for the same share of every label"
    if facts.wanted.by:
        said += f"; each example valued by its group ({facts.wanted.by})"
    if facts.alike:
        said += f"; {count_text(facts.alike, 'other')} passed over, nearly the same as a better one"
    return said


def rests_on(outcome: Outcome) -> str:
    """How far the order depends on which examples the target happens to have; empty if unknown.

    Two things are known before any proof: whether both halves of the ranking examples give the same
    order, and whether what either half would choose is better than random examples on the other.
    """
    agreed, better = outcome.agreement, outcome.beats_random
    little = agreed is not None and agreed < LITTLE
    parts = []
    if agreed is not None:
        parts.append(
            "the orders by one half of the ranking examples and by the other have a rank "
            f"correlation of {agreed:.2f}"
            + (": it is mostly chance which examples they are" if little else "")
        )
    if better is False:
        parts.append(
            "in the two draws of the trials no horizon's choice was better than random examples"
        )
    if not parts:
        return ""
    found = "; ".join(parts)
    advice = ""
    if little or better is False:
        by_source = ", or value the training examples by a column such as their source"
        advice = f" Take a larger target{'' if outcome.facts.wanted.by else by_source}."
    return f"{found[0].upper()}{found[1:]}.{advice}"


def trained_on(kind: TrainedOn, size: int) -> str:
    """What a replayed stage had: ``the chosen 100``, ``random 100``."""
    words = {"all": "all", "chosen": "the chosen", "random": "random", "worst": "the worst"}
    return f"{words[kind]} {size:,}"


def verdict(outcome: Outcome, behaviour: Behaviour) -> str:
    """Whether the chosen examples are better than others, by replay; empty without a proof.

    Args:
        outcome: What was chosen.
        behaviour: Of which behaviour, accuracy included.
    """
    if outcome.proof is None or not outcome.measured(behaviour.name):
        return ""
    size = len(outcome.kept)
    parts = []
    for kind in ("random", "all"):
        gain = outcome.proof.gain(kind, behaviour.name)
        other = trained_on(kind, outcome.facts.of if kind == "all" else size)
        if not gain.is_clear:
            parts.append(f"not told apart from that with {other}")
            continue
        higher = (gain.mean > 0) == (behaviour.sign > 0)
        ends = sorted((abs(gain.low), abs(gain.high)))
        parts.append(
            f"{amount_text(gain.mean, behaviour)} {'higher' if higher else 'lower'} than with "
            f"{other} ({amount_text(ends[0], behaviour, unit=False)} to "
            f"{amount_text(ends[1], behaviour)})"
        )
    return (
        f"By replay, with {trained_on('chosen', size)} the {phrase(behaviour)} is "
        f"{', and '.join(parts)}."
    )
