"""Where in the network a stage's effect sits, as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.numbers import amount_text, phrase
from stagelens.wording.sentences import Part, Sentence, would_be

from .block_table import REST, Network, Reading, strongest_block

INTERVENTION = (
    "Measured by forward passes on weights made of two models, the final one and the one without "
    "the stage: an intervention, not a training, since no training gave the models in between."
)
_MUCH = 0.5
"""Share of the effect from which on it is said that blocks act together; also where no block
carries as much."""


def network_sentence(
    rows: pd.DataFrame,
    total: float,
    stage: str,
    behaviour: Behaviour,
    trust: StageTrust | None,
    about: tuple[Part, ...] | None,
) -> Sentence:
    """Which block carries most of a stage's effect.

    Args:
        rows: As ``block_table.network_rows`` gives them, of the reading ``carried``.
        total: The stage effect over the same examples, by the counterfactual's weights.
        stage: Its name.
        behaviour: What was measured.
        trust: What is known of the counterfactual.
        about: Which examples, as ``slice_parts`` says it; None for a single one.
    """
    subject = phrase(behaviour)
    if about is not None and behaviour != ACCURACY:
        subject = f"mean {subject}"
    article = "" if behaviour == ACCURACY else "the "
    opening = (Part("Without "), Part(stage, "stage"), Part(f", {article}{subject}"))
    on = () if about is None else (Part(" on "), *about)
    said = (*opening, *on, *would_be(total, behaviour, trust))
    place = strongest_block(rows)
    if place is None or not np.isfinite(total):
        why = "; no block of the network was changed" if place is None else ""
        return Sentence((*said, Part(f"{why}.")), trust, behaviour.name)
    top = rows.loc[place]
    effect = float(top["effect"])
    amount = Part(amount_text(effect, behaviour), "amount")
    carries: tuple[Part, ...]
    block = Part(str(top["block"]), "group")
    if effect * total > 0:
        back = ", which others take back in part" if abs(effect) > abs(total) else " of it"
        carries = (Part("; "), block, Part(" carries "), amount, Part(back))
    else:
        way = " higher" if effect < 0 else " lower"
        carries = (
            Part("; most is carried by "),
            block,
            Part(", the other way: "),
            amount,
            Part(way),
        )
    rest = float(rows.loc[rows["block"] == REST, "effect"].iloc[0])
    together: tuple[Part, ...] = ()
    if abs(rest) > min(_MUCH * abs(total), abs(effect)):
        together = (Part(f", and no block alone accounts for {amount_text(rest, behaviour)}"),)
    return Sentence((*said, *carries, *together, Part(".")), trust, behaviour.name)


def notes(found: Network) -> list[str]:
    """What has to be known to read the numbers: what is tied, began here, or is unchanged."""
    blocks = found.facts.blocks
    said = []
    begun = [block.name for block in blocks if block.begins]
    # In the first stage everything did.
    if 0 < len(begun) < len(blocks):
        said.append(
            f"Undone, what began in {found.facts.stage} has the values that it began with: "
            f"{', '.join(begun)}."
        )
    tied = [block for block in blocks if block.tied]
    if tied:
        names = "; ".join(f"{one.name} is also {', '.join(one.tied)}" for one in tied)
        said.append(f"Tied weights are one block: {names}.")
    still = [block.name for block in blocks if not block.moved]
    if still:
        said.append(
            f"Not changed by {found.facts.stage}, so nothing is carried: {', '.join(still)}."
        )
    if found.facts.trust.twins_share:
        said.append(
            "By weights alone: the twins that sharpen an effect on other pages have no part."
        )
    return said


def for_json(
    found: Network, tables: Mapping[Reading, pd.DataFrame], total: float, behaviour: Behaviour
) -> dict[str, Any]:
    """What ``stagelens network --json`` prints.

    Args:
        found: What was measured.
        tables: Reading to its rows, as ``network_rows`` gives them.
        total: The stage effect over the same examples.
        behaviour: What was measured.
    """
    facts = found.facts
    blocks = []
    for number, block in enumerate(facts.blocks):
        own: dict[str, Any] = {
            "block": block.name,
            "kind": block.kind,
            "layer": block.layer,
            "parameters": block.size,
            "moved": _number(block.moved),
            "begins": block.begins,
            "tied": list(block.tied),
            "tensors": list(block.tensors),
        }
        for reading, rows in tables.items():
            own[reading] = _number(rows["effect"].iloc[number])
        first = tables["carried"].iloc[number]
        blocks.append(own | {"low": _number(first["low"]), "high": _number(first["high"])})
    return {
        "stage": facts.stage,
        "behaviour": behaviour.name,
        "better": behaviour.better,
        "estimator": facts.estimator,
        "trust": facts.trust.trust,
        "n": int(tables["carried"]["n"].iloc[0]),
        "effect": _number(total),
        "rest": {reading: _number(rows["effect"].iloc[-1]) for reading, rows in tables.items()},
        "blocks": blocks,
    }


def _number(value: float) -> float | None:
    """JSON has no NaN or infinity."""
    return float(value) if np.isfinite(value) else None
