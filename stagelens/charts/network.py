"""A network as a map: its blocks in the order of the forward pass, coloured by what they carry."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pandas as pd

from stagelens.analyses.network.block_table import REST
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.numbers import amount_text, axis_unit, phrase
from stagelens.wording.trust_words import is_trustworthy, signs_known

from .diverging_bars import FAINT
from .effect_bars import marked
from .style import BLAME, CREDIT, MUTED, NEITHER, PAPER, see_through, written
from .tokens import Markup

_DEEPEST = 0.42
"""Of a tint: text on it keeps a contrast of 4.5:1, in the light and in the dark."""
_STRIPE = see_through(PAPER, 0.65)

STYLE = (
    "<style>.net{display:flex;flex-wrap:wrap;gap:.55rem .9rem;align-items:stretch;"
    "font-size:.85rem;line-height:1.3}"
    ".net .column{display:flex;flex-direction:column;gap:.3rem;position:relative;"
    "flex:1 1 7.4rem;max-width:10.5rem;min-width:6.6rem}"
    ".net .column+.column::before{content:'→';position:absolute;left:-.9rem;width:.9rem;"
    "text-align:center;top:50%;transform:translateY(-50%);opacity:.6}"
    ".net .column.apart+.column::before,.net .column.apart::before{content:none}"
    ".net .layer{font-size:.75rem;opacity:.8;text-align:center;min-height:1rem;"
    "overflow-wrap:anywhere}"
    ".net button.layer{font:inherit;font-size:.75rem;color:inherit;background:none;border:0;"
    "padding:0;cursor:pointer;text-decoration:underline dotted}"
    ".net button.layer:focus-visible{outline:2px solid currentColor;outline-offset:2px}"
    ".net .box{font:inherit;color:inherit;text-align:left;position:relative;flex:1;"
    "border:1px solid var(--edge);border-radius:.45rem;padding:.35rem .5rem .55rem;"
    "box-sizing:border-box;"
    "overflow:hidden;display:flex;flex-direction:column;justify-content:center;"
    "background:var(--tint);min-height:3.1rem;width:100%}"
    ".net button.box{cursor:pointer}"
    ".net button.box:hover{box-shadow:0 0 0 1px currentColor}"
    ".net .box:focus-visible{outline:2px solid currentColor;outline-offset:2px}"
    ".net .box[aria-pressed=true]{box-shadow:0 0 0 2px currentColor}"
    ".net .name{overflow-wrap:anywhere}"
    ".net .amount{font-weight:600;white-space:nowrap}"
    ".net .bar{position:absolute;left:0;bottom:0;height:.28rem}"
    ".net .still{border-style:dashed;opacity:.75}"
    ".net .ends{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.8rem;opacity:.85;width:100%}"
    "</style>"
)


def network_map(
    rows: pd.DataFrame,
    total: float,
    stage: str,
    behaviour: Behaviour,
    trust: StageTrust | None,
    chosen: int | None = None,
    clickable: bool = False,
) -> Markup:
    """The blocks of a network, each with what it carries of a stage's effect.

    Columns follow the forward pass; the blocks of a layer are one column. Credit is blue with
    ▲, blame is orange and hatched with ▼. What is not known to be either, since its interval
    includes zero or the counterfactual's signs are not known, is grey with ±.

    Args:
        rows: As ``block_table.network_rows`` gives them.
        total: The stage effect over the same examples.
        stage: Its name.
        behaviour: What was measured.
        trust: What is known of the counterfactual.
        chosen: The place of the block that is looked at.
        clickable: Whether boxes and layers are buttons, with the block's place in ``data-block``.
    """
    # pandas makes NaN of None where other rows have a layer.
    layers = [layer if isinstance(layer, str) else "" for layer in rows["layer"]]
    gains = behaviour.sign * rows["effect"].to_numpy(float)
    finite = np.abs(gains[np.isfinite(gains)])
    reach = max(float(finite.max()) if len(finite) else 0.0, 1e-12)
    known = trust is None or signs_known(trust, behaviour.name)
    faint = trust is not None and not is_trustworthy(trust, behaviour.name)
    boxes, neither = [], False
    for place in range(len(rows)):
        row = rows.iloc[place]
        # NaN where it is one example, which has no interval.
        clear = not (row["low"] <= 0 <= row["high"])
        neither = neither or not (known and clear)
        boxes.append(
            _box(row, gains[place], reach, behaviour, known and clear, faint,
                 place if clickable and row["block"] != REST else None, place == chosen)
        )  # fmt: skip
    keys = [layer or f"{place}" for place, layer in enumerate(layers)]
    columns = []
    for _, members in groupby(range(len(rows)), key=lambda place: keys[place]):
        places = list(members)
        rest = rows["block"].iloc[places[0]] == REST
        head = layers[places[0]]
        columns.append(
            f"<div class='column{' apart' if rest else ''}'>"
            f"{_head(head, places, rows, clickable)}"
            f"{''.join(boxes[place] for place in places)}</div>"
        )
    alt = _said(rows, total, stage, behaviour)
    all_of_it = marked(behaviour.sign * total, behaviour, unit=False, signed=known)
    unit = f", in {axis_unit(behaviour)}" if axis_unit(behaviour) else ""
    either = "" if not neither else ", ± may be either" if known else ", ± of uncertain sign"
    ends = (
        f"<div class='ends'><span>▲ credit, ▼ blame{either} for the {written(phrase(behaviour))}"
        f"{written(unit)}</span><span>all blocks and their interaction: {written(all_of_it)}"
        "</span></div>"
    )
    role = "group" if clickable else "img"
    return Markup(
        f"{STYLE}<div class='net' role='{role}' aria-label='{written(alt)}'>"
        f"{''.join(columns)}{ends}</div>",
        alt,
    )


def _head(name: str, places: list[int], rows: pd.DataFrame, clickable: bool) -> str:
    """The name of a layer; where boxes are buttons it is one too, for its strongest block."""
    if not (clickable and name and len(places) > 1):
        return f"<div class='layer'>{written(name)}</div>"
    sizes = rows["effect"].abs().iloc[places]
    place = places[int(sizes.fillna(0).to_numpy().argmax())]
    said = f"{name}: its strongest block, {rows['block'].iloc[place]}"
    return (
        f"<button type='button' class='layer' data-block='{place}' title='{written(said)}' "
        f"aria-label='{written(said)}'>{written(name)}</button>"
    )


def _box(
    row: pd.Series,
    gain: float,
    reach: float,
    behaviour: Behaviour,
    signed: bool,
    faint: bool,
    place: int | None,
    pressed: bool,
) -> str:
    rest = row["block"] == REST
    still = not rest and row["moved"] == 0
    share = min(abs(gain) / reach, 1.0) if np.isfinite(gain) else 0.0
    color = NEITHER if rest or not signed else CREDIT if gain > 0 else BLAME
    tint = see_through(color, _DEEPEST * share * (FAINT if faint else 1))
    name = str(row["block"]).removeprefix(f"{row['layer']} ")
    amount = "unchanged" if still else marked(gain, behaviour, unit=False, signed=signed)
    filled = color
    if color == BLAME:
        filled = f"repeating-linear-gradient(135deg,{BLAME} 0 4px,{_STRIPE} 4px 6px),{BLAME}"
    bar = (
        f"<span class='bar' style='width:{100 * share:.1f}%;background:{filled};"
        f"opacity:{FAINT if faint else 1}'></span>"
    )
    inner = (
        f"<span class='name'>{written(name)}</span>"
        f"<span class='amount'>{written(amount)}</span>{'' if still else bar}"
    )
    style = f"--tint:{tint};--edge:{color if share > 0.5 and signed and not rest else MUTED}"
    kind = "box still" if still else "box"
    if place is None:
        return f"<div class='{kind}' style='{style}'>{inner}</div>"
    said = f"{row['block']}: {amount}"
    return (
        f"<button type='button' class='{kind}' style='{style}' data-block='{place}' "
        f"aria-pressed='{str(pressed).lower()}' title='{written(said)}'>{inner}</button>"
    )


def _said(rows: pd.DataFrame, total: float, stage: str, behaviour: Behaviour) -> str:
    """The takeaway: the three largest blocks, with their amounts."""
    blocks = rows[rows["block"] != REST]
    order = blocks["effect"].abs().sort_values(ascending=False, kind="stable").index[:3]
    told = [
        f"{blocks['block'][place]} {_side(behaviour.sign * blocks['effect'][place], behaviour)}"
        for place in order
    ]
    return (
        f"Where in the network {stage} changes the {phrase(behaviour)}, "
        f"{_side(behaviour.sign * total, behaviour)} in all: {', '.join(told)}."
    )


def _side(gain: float, behaviour: Behaviour) -> str:
    text = amount_text(gain, behaviour)
    if not any(digit in text for digit in "123456789"):
        return text
    return f"{text} {'credit' if gain > 0 else 'blame'}"
