"""Every slice and behaviour of a gate, judged together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from stagelens.contracts import Behaviour, StageLensError
from stagelens.effects.contrasts import mean_spread
from stagelens.wording.folding import listed
from stagelens.wording.numbers import is_share, signed_text

from .asked import POINTS
from .blame import counted_besides
from .report import Estimand, SliceFinding
from .sides import Compared
from .slices import GateSlice
from .verdict import Drop, holm, judge, training_noise


def limit(kind: Behaviour, given: Mapping[str, float], scores: Sequence[str] = ()) -> float:
    """How much a behaviour may drop, in its own unit.

    Args:
        kind: Which behaviour.
        given: Behaviour to how much it may drop; ``""`` for all others.
        scores: Those of which points say something, to name where they say nothing of this one.

    Raises:
        StageLensError: Nothing is given for what is no share of examples.
    """
    share = is_share(kind)
    points = given.get(kind.name, given.get("", POINTS if share else math.nan))
    if math.isnan(points):
        named = f"; or judge the answers by a score: --behaviour {listed(scores)}" if scores else ""
        raise StageLensError(
            f"{kind.name} is no share of examples, so 2 points say nothing of it; say how much it "
            f"may drop, in its own unit: --max-drop {kind.name}=0.1{named}"
        )
    return points / 100 if share else points


def check_limits(given: Mapping[str, float], names: Sequence[str]) -> None:
    """Refuse limits of what is not judged, which would otherwise pass unseen.

    Args:
        given: Behaviour to how much it may drop; ``""`` for all others.
        names: Of the behaviours that are judged.

    Raises:
        StageLensError: A limit is of another one.
    """
    for name in given:
        if name and name not in names:
            are = "is" if len(names) == 1 else "are"
            asked = " ".join(f"--behaviour {each}" for each in (*names, name))
            raise StageLensError(
                f"--max-drop {name}={given[name]:g} is of no behaviour that is judged, which "
                f"{are} {listed(names)}; to judge {name} too: {asked}"
            )


def judged(
    sides: Sequence[Compared],
    kinds: Sequence[Behaviour],
    slices: Sequence[GateSlice],
    limits: Mapping[str, float],
    clusters: np.ndarray | None,
    estimand: Estimand,
    same: bool,
) -> list[SliceFinding]:
    """Every slice and behaviour, judged together."""
    work = [(kind, one) for kind in kinds for one in slices]
    found = [_drop(sides, kind, one, clusters, estimand, same) for kind, one in work]
    ps = [
        drop.above(limits[k.name]) if drop else math.nan
        for (k, _), (drop, _, _) in zip(work, found, strict=True)
    ]
    adjusted = holm(ps)
    rows = []
    for (kind, one), (drop, known, unknown), p, together in zip(
        work, found, ps, adjusted, strict=True
    ):
        old, new = (side.values[kind.name][0][one.inside][known] for side in sides)
        most, value = limits[kind.name], math.nan
        low = high = sd = math.nan
        if drop is not None:
            value, (low, high) = drop.over.value, drop.ends()
            sd = math.nan if drop.noise is None else drop.noise.sd
        elif same and known.any():
            value = low = high = 0.0
        elif known.any():
            value = kind.sign * float(old.mean() - new.mean())
        verdict = "fine" if same and known.any() else judge(together, high, most)
        rows.append(
            SliceFinding(
                behaviour=kind.name,
                better=kind.better,
                unit="points" if is_share(kind) else kind.unit,
                by=one.by,
                group=one.group,
                examples=int(known.sum()),
                missing=int((~known).sum()),
                old=number(old.mean() if known.any() else math.nan),
                new=number(new.mean() if known.any() else math.nan),
                drop=number(value),
                low=number(low),
                high=number(high),
                training_sd=number(sd),
                max_drop=most,
                p=number(p),
                p_adjusted=number(together),
                verdict=verdict,
                reason=unknown or _reason(verdict, kind, low, high, most, together),
            )
        )
    return rows


def without_empty(
    found: Sequence[SliceFinding], sides: Sequence[Compared], slices: Sequence[GateSlice]
) -> tuple[list[SliceFinding], list[str]]:
    """The findings less those of slices on which neither model has any value of the behaviour.

    There it does not apply: a score of agreement says nothing of prompts without an opinion. Where
    one of both models has values, the slice stays, and says that they cannot be compared.

    Args:
        found: As of :func:`judged`.
        sides: Both models.
        slices: Those that were judged.

    Returns:
        What is left, and a note for each behaviour with the slices that are left out.
    """
    inside = {(one.by, one.group): one.inside for one in slices}
    left: list[SliceFinding] = []
    out: dict[str, list[str]] = {}
    for one in found:
        own = inside[one.by, one.group]
        if any(np.isfinite(s.values[one.behaviour][0][own]).any() for s in sides):
            left.append(one)
        else:
            out.setdefault(one.behaviour, []).append(f"{one.by}={one.group}" if one.by else "all")
    notes = [
        f"{name} has no value of either model on {', '.join(names)}, which are left out."
        for name, names in out.items()
    ]
    # Nothing would be left to judge, and that is no pass.
    return (left, notes) if left else (list(found), [])


def _drop(
    sides: Sequence[Compared],
    kind: Behaviour,
    one: GateSlice,
    clusters: np.ndarray | None,
    estimand: Estimand,
    same: bool,
) -> tuple[Drop | None, np.ndarray, str]:
    """The drop on a slice, which of its examples have values, and why nothing is known of it."""
    values = [side.values[kind.name][:, one.inside] for side in sides]
    if estimand == "models":
        values = [each[:1] for each in values]
    known = np.isfinite(np.concatenate(values)).all(axis=0)
    if same:
        return None, known, "" if known.any() else _EMPTY
    if not known.any():
        return None, known, _EMPTY
    old, new = (each[:, known] for each in values)
    own = None if clusters is None else clusters[one.inside][known]
    over = mean_spread(
        kind.sign * (old.mean(axis=0) - new.mean(axis=0)), own, counted_besides(kind)
    )
    if estimand == "models":
        return Drop(over), known, ""
    counts = [1 if s.source == "redraws" else len(s.values[kind.name]) for s in sides]
    noise = training_noise(old, new, own, (counts[0], counts[1]))
    if noise is None:
        return None, known, _NO_NOISE
    return Drop(over, noise), known, ""


_EMPTY = "No example of it has a value of both models."
_NO_NOISE = (
    "How much two trainings of one recipe differ on it is not known, so a drop cannot be told from "
    "another seed: give recorded repeats (--old-repeat RUN), or ask about these two models alone "
    "(--estimand models)."
)


def _reason(
    verdict: str, kind: Behaviour, low: float, high: float, most: float, adjusted: float
) -> str:
    allowed = signed_text(most, kind).removeprefix("+")
    if math.isnan(low):
        return "Too few examples, or all of one source: how far it may be off is not known."
    ends = f"{signed_text(low, kind, unit=False)} to {signed_text(high, kind)}"
    if verdict == "regressed":
        return f"It dropped by more than {allowed}: p {_p_text(adjusted)} for all slices together."
    if verdict == "fine":
        return f"The drop is below {allowed}: 95 % interval {ends}."
    if low > most:  # which alone would show it
        return (
            f"A drop of more than {allowed} is not shown for all slices together (p "
            f"{_p_text(adjusted)}), though this slice's own 95 % interval, {ends}, lies beyond it."
        )
    return f"A drop of more than {allowed} is neither shown nor ruled out: 95 % interval {ends}."


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def number(value: float) -> float | None:
    """A number as JSON has it, which knows no NaN."""
    return float(value) if math.isfinite(value) else None
