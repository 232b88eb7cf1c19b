"""What the design asks of the estimators, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

CELL = ["scenario", "seed", "stage"]
PEERS = ("task vector", "captum TracInCP", "dattri TracIn")
UNROLLED = ("unrolled jump", "unrolled scale")


class Rows:
    """Measured rows by estimator; None where an estimator was not measured.

    Args:
        table: One row per scenario, seed, stage and estimator (several of the noise floor).
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self._by = {name: part for name, part in table.groupby("estimator")}
        floor = self._by.get("noise floor")
        self.floor = None if floor is None else floor.groupby(CELL)["r"].mean()

    def of(self, name: str, *regimes: str) -> pd.DataFrame | None:
        """The rows of one estimator, in some regimes (all where none is given)."""
        found = self._by.get(name)
        if found is None:
            return None
        if regimes:
            found = found[found["regime"].isin(regimes)]
        return None if found.empty else found.drop_duplicates(CELL).set_index(CELL)

    def error(self, name: str, *regimes: str) -> pd.Series | None:
        """Relative errors; infinite where the estimator refused or diverged."""
        found = self.of(name, *regimes)
        if found is None:
            return None
        return found["relative_error"].where(~found["refused"].astype(bool)).fillna(np.inf)

    def all_coarse(self) -> pd.DataFrame:
        """The rows of coarse replay at every budget."""
        return pd.concat([part for name, part in self._by.items() if name.startswith("coarse")])


def goals(table: pd.DataFrame) -> list[str]:
    """One line per goal for which the rows are there."""
    rows = Rows(table)
    return [*_fidelity(rows), *_against_others(rows), *_trust(rows)]


def _fidelity(rows: Rows) -> Iterator[str]:
    quarter, eighth = (rows.of(f"coarse 1/{n}", "fine-tuning") for n in (4, 8))
    if quarter is not None and eighth is not None:
        yield (
            f"AdamW fine-tuning, coarse 1/4: r {quarter['r'].median():.3f} (>= 0.97), relative "
            f"error {quarter['relative_error'].median():.2f} (<= 0.25); 1/8: r "
            f"{eighth['r'].median():.3f} (>= 0.95)"
        )
    for name, allowed in (("coarse 1/4", 0.03), ("coarse 1/8", 0.12)):
        hard = rows.of(name, "hard")
        if hard is not None and rows.floor is not None:
            gap = (rows.floor.reindex(hard.index) - hard["r"]).median()
            yield f"AdamW trained hard, {name}: {gap:.3f} below the floor (<= {allowed})"
    sgd, vector = rows.of("coarse 1/2", "sgd"), rows.of("task vector", "sgd")
    if sgd is not None and vector is not None and rows.floor is not None:
        start = vector["r"].reindex(sgd.index)
        way = (sgd["r"] - start) / (rows.floor.reindex(sgd.index) - start)
        yield (
            f"SGD, coarse 1/2: {way[~sgd['refused'].astype(bool)].median():.2f} of the way from "
            f"task vector to floor (>= 0.67), refused {sgd['refused'].mean():.0%} (<= 50 %)"
        )
    text = rows.of("coarse 1/4", "text")
    if text is not None:
        yield (
            f"pretrained encoder, coarse 1/4: r {text['r'].median():.3f} (>= 0.93), relative "
            f"error {text['relative_error'].median():.2f} (<= 0.4)"
        )


def _against_others(rows: Rows) -> Iterator[str]:
    for name in PEERS:
        coarse, other = rows.error("coarse 1/4"), rows.error(name)
        if coarse is not None and other is not None:
            common = coarse.index.intersection(other.index)
            won = (coarse[common] < other[common]).mean()
            yield (
                f"coarse 1/4 beats {name} in relative error on {won:.0%} of {len(common)} cells "
                "(>= 90 %)"
            )
    for name in UNROLLED:
        coarse, other = (rows.error(n, "hard", "sgd") for n in ("coarse 1/4", name))
        if coarse is not None and other is not None:
            common = coarse.index.intersection(other.index)
            won = (coarse[common] < other[common]).mean()
            yield f"where training is hard it beats {name} on {won:.0%} of {len(common)} (>= 90 %)"
    gentle = [rows.error(name, "fine-tuning") for name in ("coarse 1/4", *UNROLLED)]
    if all(part is not None for part in gentle):
        together = pd.concat(gentle, axis=1, keys=["coarse", *UNROLLED]).dropna()
        worse = together["coarse"] - together[list(UNROLLED)].min(axis=1)
        yield (
            f"at fine-tuning rates it is {worse.median():+.2f} worse than the better of the two "
            f"(<= 0.05; at most {worse.max():+.2f})"
        )


def _trust(rows: Rows) -> Iterator[str]:
    adam = rows.of("coarse 1/4", "fine-tuning", "hard")
    if adam is None:
        return
    every = rows.all_coarse()
    called = every[every["reliable"].eq(True)]
    good = ((called["r"] >= 0.9) & (called["relative_error"] <= 0.5)).mean()
    yield (
        f"of {len(called)} estimates called reliable {good:.0%} are (>= 95 %); AdamW cells at 1/4: "
        f"reliable {adam['reliable'].eq(True).mean():.0%} (>= 60 %), refused "
        f"{adam['refused'].mean():.0%} (<= 10 %)"
    )
