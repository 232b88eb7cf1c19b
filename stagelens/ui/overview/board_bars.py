"""The bars beside the switchboard's wall: credit and blame of each stage for the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagelens import charts
from stagelens.charts.diverging_bars import SHORT_NOISE, is_true
from stagelens.charts.style import short, written_out
from stagelens.contracts import Behaviour, is_score
from stagelens.ui.opening.workspace import Workspace
from stagelens.ui.pieces import components
from stagelens.ui.reading import loaders
from stagelens.ui.reading.loaders import Effects
from stagelens.wording.folding import MOST, strongest
from stagelens.wording.intervals import is_marked, mean_interval, over_draws
from stagelens.wording.numbers import amount_text, is_share, phrase, scaled, signed_text
from stagelens.wording.sentences import is_certain, mean_sentence
from stagelens.wording.trust_words import MARKS, is_trustworthy, trust_word


def examples_of(focus_query: Mapping[str, str], stage: str, side: str) -> dict[str, str]:
    """What to change in a link, to the examples that a stage helped or hurt most."""
    more = {"side": side, "sort": f"most {side}"} if side in ("credit", "blame") else {}
    return {**focus_query, "stage": stage, **more}


def bars(
    workspace: Workspace,
    effects: Effects,
    behaviour: Behaviour,
    by: str | None,
    group: str | None,
    about: str,
) -> dict[str, Any]:
    """One bar per stage, the mean stage effect on a group; of many stages, the strongest.

    Args:
        workspace: What is open.
        effects: Whose numbers.
        behaviour: Which behaviour.
        by: The column of the group.
        group: The group; None for all examples.
        about: The same in words.
    """
    parts = (workspace.at, workspace.examples.name, effects.estimator, behaviour.name)
    means = loaders.stage_summary(*parts, by, group).assign(group=group)
    of_group = {} if group is None else {"group": group}
    kept = means.iloc[strongest(means["effect"], MOST)].to_dict("records")
    intervals = [
        mean_interval(row, effects.trust.get(str(row["stage"])), behaviour) for row in kept
    ]
    sizes = [abs(scaled(float(row["gain"]), behaviour)) for row in kept]
    # A lower bound, so that effects that all round to zero are not blown up.
    reach = max([*(s for s in sizes if np.isfinite(s)), 1.0 if is_share(behaviour) else 0.01])
    # No share moves by more than all of it, so that no scale says more.
    reach = min(1.1 * reach, 100.0) if is_share(behaviour) else 1.1 * reach
    rows = []
    for row, interval in zip(kept, intervals, strict=True):
        stage, gain = str(row["stage"]), float(row["gain"])
        trust = effects.trust.get(stage)
        word = None if trust is None else trust_word(trust, behaviour.name)
        signed = is_marked(row, trust, behaviour)
        side = ("credit" if gain >= 0 else "blame") if signed else "neither"
        known = [] if word is None else [f"{MARKS[word]} {word}"]
        known += [SHORT_NOISE] if is_true(row["within_noise"]) else []
        ends: tuple[float, ...] | None = None
        if interval is not None and np.isfinite(gain):
            ends = tuple(
                float(np.clip(scaled(end, behaviour) / reach, -1, 1))
                for end in interval.gains(behaviour)
            )
            low, high = (
                signed_text(end, behaviour, unit=False) for end in sorted(interval.gains(behaviour))
            )
            known.append(f"95 %: {low} to {high}")
        column = None if group is None else by
        sentence = str(mean_sentence(row, behaviour, workspace.noun, column, trust))
        # A mean over draws may be rough and its sign known all the same.
        sure = is_certain(trust, behaviour) and not is_true(row["within_noise"])
        clear = sure and signed and interval is not None and interval.is_clear
        rows.append(
            {
                "clear": clear,
                "stage": short(written_out(stage), 60),
                "side": side,
                "faint": trust is not None and not is_trustworthy(trust, behaviour.name),
                "share": scaled(gain, behaviour) / reach if np.isfinite(gain) else 0.0,
                "low": None if ends is None else ends[0],
                "high": None if ends is None else ends[1],
                "amount": charts.marked(gain, behaviour, signed=signed)
                if np.isfinite(gain)
                else "no number",
                "trust": ", ".join(known),
                "again": _again(row, behaviour),
                "said": written_out(sentence),
                "href": components.address("Examples", **examples_of(of_group, stage, side)),
            }
        )
    worse = {"higher": "lower", "lower": "higher"}[behaviour.better]
    more = len(means) - len(kept)
    half = amount_text(reach / 100 if is_share(behaviour) else reach, behaviour)
    name = phrase(behaviour) if is_score(behaviour) else behaviour.name
    return {
        "title": f"Credit and blame: what each stage did to {about}",
        "rows": rows,
        # The length of half a track, since examples of another group have another scale.
        "worse": f"−{half} ← {name} {worse}",
        "better": f"{name} {behaviour.better} → +{half}",
        "more": f"{more:,} more stages have smaller effects." if more > 0 else "",
        "open": "Opens the examples",
    }


def most_to_blame(rows: Sequence[Mapping[str, Any]]) -> str:
    """The stage with the most blame that is known to be that, and how much; empty without one.

    Args:
        rows: Of :func:`bars`.
    """
    blamed = [row for row in rows if row["side"] == "blame" and row["clear"]]
    if not blamed:
        return ""
    worst = min(blamed, key=lambda row: float(row["share"]))
    return f"{worst['stage']} ({worst['amount']}{worst['again']})"


def _again(row: Mapping[str, Any], behaviour: Behaviour) -> str:
    """Between which sizes the effect lies over draws of the recipe, where this run was shown."""
    low, high = (float(row.get(name, np.nan)) for name in ("draw_low", "draw_high"))
    if not np.isfinite(high - low) or over_draws(row) is not None:
        return ""
    if low <= 0 <= high:
        return " in this run; of its recipe the interval holds zero"
    least, most = sorted((abs(low), abs(high)))
    sizes = f"{amount_text(least, behaviour, unit=False)} to {amount_text(most, behaviour)}"
    effect, mean = float(row["effect"]), float(row["draw_effect"])
    outside = not low <= effect <= high
    centre = f"{amount_text(abs(mean), behaviour)} on average, " if outside else ""
    return f" in this run; of its recipe {centre}{sizes}, 95 %"
