"""Where most of a map lies: in a patch of images, or a word of texts. Nothing imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.analyses.spurious.grids import Patch, grid
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.numbers import count_text, phrase
from stagelens.wording.sentences import Part, Sentence
from stagelens.wording.trust_words import trust_word

from .map_table import Map
from .spans import words_of


@dataclass(frozen=True)
class Densest:
    """The patch or word of some inputs in which their maps are densest.

    Attributes:
        name: In words: ``rows 0–1, columns 0–1 (top left)``, or a word.
        share: Its part of a map's sizes, |a|; mean over the maps.
        expected: Its part of a map's places, which is what it has of a uniform map.
        count: How many maps have it.
    """

    name: str
    share: float
    expected: float
    count: int


def share_of(stage_map: np.ndarray, inside: np.ndarray) -> float:
    """The part of a map's sizes that lies in some of its places; NaN where it is 0 everywhere.

    Args:
        stage_map: (H, W) or (T,).
        inside: The same shape, True in these places.
    """
    sizes = np.abs(stage_map)
    total = float(sizes.sum())
    return float(sizes[inside].sum()) / total if total else float("nan")


def densest_patch(maps: Sequence[np.ndarray]) -> Densest | None:
    """The patch in which images' maps are densest; None where they are 0, or differ in size.

    Args:
        maps: (H, W) each. Patches are a quarter as wide and high, and overlap by half.
    """
    # A map of zeros has no shares: 0 / 0.
    maps = [each for each in maps if np.abs(each).sum() > 0]
    if not maps or len({each.shape for each in maps}) > 1:
        return None
    # Shares first, so that no image outweighs the others by a larger effect.
    shares = np.mean([np.abs(each) / np.abs(each).sum() for each in maps], axis=0)
    height, width = shares.shape

    def inside(at: Patch) -> float:
        return float(shares[at.top : at.top + at.height, at.left : at.left + at.width].sum())

    best = max(grid(height, width), key=inside)
    name = best.name.removeprefix("patch at ")
    place = _place(best.top, best.height, height, ("top", "middle", "bottom"))
    place += " " + _place(best.left, best.width, width, ("left", "centre", "right"))
    area = best.height * best.width / shares.size
    return Densest(f"{name} ({place})", inside(best), area, len(maps))


def _place(start: int, length: int, size: int, names: tuple[str, str, str]) -> str:
    third = int(3 * (start + length / 2) / size)
    return names[min(third, 2)]


def densest_word(tokens: Sequence[Sequence[str]], maps: Sequence[np.ndarray]) -> Densest | None:
    """The word that has most of texts' maps beyond its part of the places; None where they are 0.

    Args:
        tokens: (T,) pieces of each text, which are put together to words; case and surrounding
            spaces do not count.
        maps: (T,) of each.
    """
    shares: dict[str, list[float]] = {}
    places: dict[str, list[float]] = {}
    for pieces, each in zip(tokens, maps, strict=True):
        names = np.empty(len(pieces), dtype=object)
        for start, end in words_of(pieces):
            names[start:end] = "".join(pieces[start:end]).strip().lower()
        for name in dict.fromkeys(names):
            share = share_of(each, names == name)
            # Pieces of spaces alone are empty: no token to name.
            if name and np.isfinite(share):
                shares.setdefault(name, []).append(share)
                places.setdefault(name, []).append(float((names == name).mean()))
    if not shares:
        return None
    # Sums, not means, so that many texts weigh more than one.
    best = max(shares, key=lambda name: sum(shares[name]) - sum(places[name]))
    return Densest(
        best, float(np.mean(shares[best])), float(np.mean(places[best])), len(shares[best])
    )


def where_most(
    maps: Sequence[Map], stage: str, behaviour: Behaviour, trust: StageTrust | None
) -> Sentence | None:
    """Where most of a stage's maps lies, as a sentence; None where they are 0.

    Args:
        maps: Those that hold.
        stage: Whose maps.
        behaviour: Of the effect.
        trust: What is known of the counterfactual.
    """
    own = [each.stage for each in maps]
    texts = [each.tokens for each in maps if each.tokens is not None]
    found = densest_word(texts, own) if texts else densest_patch(own)
    if found is None:
        return None
    noun, place = ("text", "tokens") if texts else ("image", "pixels")
    count = count_text(len(maps), noun)
    among = f"On this {noun}" if len(maps) == 1 else f"On these {count}"
    if found.count < len(maps):
        among = f"In the {found.count} of these {count} that have it"
        if found.count == 1:
            among = f"In the only one of these {count} that has it"
    parts = (
        Part(f"{among}, "),
        Part(f"{100 * found.share:.0f} %", "amount"),
        Part(" of the effect of "),
        Part(stage, "stage"),
        Part(f" on the {phrase(behaviour)}, by size, lies in "),
        Part(f"“{found.name}”" if texts else found.name, "group"),
        Part(f", which is {100 * found.expected:.0f} % of the {place}."),
    )
    # How a map divides an exact effect is a matter of its baseline, and not exact.
    exact = trust is not None and trust_word(trust, behaviour.name) == "exact"
    return Sentence(parts, None if exact else trust, behaviour.name)
