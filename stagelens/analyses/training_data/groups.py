"""Groups of a stage's training examples, and what each contributed together."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stagelens.analyses.contributions.contribution_table import Stored
from stagelens.analyses.contributions.parts_of_the_set import Parts
from stagelens.effects.contrasts import Spread, mean_spread
from stagelens.runs.run import Run
from stagelens.runs.training_rows import load_training_rows

from .marks import LEAK, SUSPECT
from .tables import TrainingData

CONTRIBUTION = "contribution"
LENGTH = "length"
NONE = "none"
"""The group of examples without a value."""

MOST = 200
"""Most groups that a column may have; a column of names or numbers says nothing of groups."""
_BINS = 4
"""Groups of about the same size that texts are put into by length."""


def with_contributions(
    run: Run, frame: pd.DataFrame, found: Stored, stage: str, shown: bool
) -> pd.DataFrame:
    """The examples with a column :data:`CONTRIBUTION`, in the behaviour's unit.

    Args:
        run: The run.
        frame: Of :class:`~.tables.TrainingData`.
        found: An answer of ``stagelens contributions`` whose sweep reaches the stage.
        stage: Whose examples these are.
        shown: Whether the task shows them. Where it does not, contributions are of single uses,
            which are added up here.
    """
    own = found.part("example", stage)[["step", "position", "value"]]
    own = own.astype({"step": "int64", "position": "int64"})
    if shown:
        joined = frame.merge(own, on=["step", "position"], how="left", validate="1:1")
        return joined.rename(columns={"value": CONTRIBUTION})
    listed = load_training_rows(run, run.stage(stage))
    if listed is None:
        return frame.assign(**{CONTRIBUTION: np.nan})
    every = listed.table[["example_id", "steps", "positions"]].explode(["steps", "positions"])
    every = every.rename(columns={"steps": "step", "positions": "position"})
    every = every.astype({"step": "int64", "position": "int64"})
    values = every.merge(own, on=["step", "position"]).groupby("example_id")["value"].sum()
    return frame.assign(**{CONTRIBUTION: frame["example_id"].map(values).astype(float)})


def groupings(data: TrainingData, frame: pd.DataFrame) -> dict[str, pd.Series]:
    """What the examples can be grouped by: its name, and the group of each example.

    Args:
        data: Of the stage.
        frame: Of :func:`~.marks.marked`.
    """
    found: dict[str, pd.Series] = {}
    given = [name for name in data.columns if 1 < frame[name].nunique(dropna=False) <= MOST]
    for name in [*given, "label"]:
        if frame[name].notna().any() and frame[name].nunique(dropna=False) > 1:
            found[name] = frame[name].astype("string").fillna(NONE)
    if LENGTH in frame and frame[LENGTH].nunique() > _BINS:
        found[LENGTH] = _by_length(frame[LENGTH])
    for name in (SUSPECT, LEAK):
        if name in frame and frame[name].nunique(dropna=False) > 1:
            named = frame[name].map({True: "yes", False: "no"}) if name == LEAK else frame[name]
            found[name] = named.astype("string").fillna(NONE)
    if 1 < frame["uses"].nunique() <= MOST:
        found["uses"] = frame["uses"].astype("string")
    return found


def _by_length(lengths: pd.Series) -> pd.Series:
    bins = pd.qcut(lengths.astype("float64"), _BINS, duplicates="drop")
    names = {
        each: f"{int(np.floor(each.left)) + 1:,} to {int(np.floor(each.right)):,} characters"
        for each in bins.cat.categories
    }
    return bins.map(names).astype("string").fillna(NONE)


def group_table(
    frame: pd.DataFrame,
    groups: pd.Series,
    parts: Parts | None = None,
    without: pd.Series | None = None,
) -> pd.DataFrame:
    """What every group added and what it does to leave it out, the largest amount first.

    The order is that of leaving groups out where this is known of all of them, which predicts
    replays; else that of contributions, which are not meant to (docs/fidelity.md).

    An interval says how far the sum might be off had other training examples of the group been
    drawn, as many of them; and, with ``parts``, other evaluation examples as well: the variances of
    the two are added, which is no less than that of both together (A. B. Owen, The pigeonhole
    bootstrap, Ann. Appl. Statist. 1, 2007). It says nothing of what first order leaves out, which
    grows with the group.

    Args:
        frame: With a column :data:`CONTRIBUTION`; examples without one are left out.
        groups: The group of each row.
        parts: Contributions to parts of the evaluation examples; None where these are not known,
            or where a single one is asked about.
        without: By id, each example's part of leaving its group out to first order, as
            ``first_order_of_groups`` has it; None where that is not known.

    Returns:
        Columns ``group``, ``examples``, ``uses``, ``contribution`` (the sum), ``low``, ``high``,
        ``mean``, the standard errors of the sum over training examples (``training_error``)
        and over evaluation examples (``evaluation_error``, NaN without ``parts``), and ``without``
        (final - without the group, to first order; NaN where not known of all its examples) with
        its interval over training examples, ``without_low`` and ``without_high``, in the
        behaviour's unit; ends and errors over training examples are NaN of a single example.
    """
    rows = []
    known = frame[frame[CONTRIBUTION].notna()]
    for name, own in known.groupby(groups.loc[known.index], sort=True):
        values, count = own[CONTRIBUTION].to_numpy(float), len(own)
        spread = mean_spread(values)
        of_training, freedom = count * spread.error, spread.freedom
        of_evaluation = float("nan")
        if parts is not None:
            of_evaluation, other = parts.error(own["example_id"].tolist())
            freedom = _together(of_training, freedom, of_evaluation, other)
        total = count * spread.value
        error = float(np.hypot(of_training, 0.0 if parts is None else of_evaluation))
        low, high = Spread(total, error, freedom).ends()
        leaving, ends = np.full(count, np.nan), (float("nan"), float("nan"))
        if without is not None:
            leaving = without.reindex(own["example_id"]).to_numpy(float)
        if np.isfinite(leaving).all():
            apart = mean_spread(leaving)
            ends = Spread(count * apart.value, count * apart.error, apart.freedom).ends()
        rows.append(
            {
                "group": str(name),
                "examples": count,
                "uses": int(own["uses"].sum()),
                "contribution": float(values.sum()),
                "low": low,
                "high": high,
                "mean": float(values.mean()),
                "training_error": of_training,
                "evaluation_error": of_evaluation,
                "without": float(leaving.sum()),
                "without_low": ends[0],
                "without_high": ends[1],
            }
        )
    names = ["group", "examples", "uses", "contribution", "low", "high", "mean"]
    names += ["training_error", "evaluation_error", "without", "without_low", "without_high"]
    table = pd.DataFrame(rows, columns=names)
    by = "without" if table["without"].notna().all() else "contribution"
    return table.sort_values(by, key=abs, ascending=False, kind="stable", ignore_index=True)


def _together(one: float, its: float, other: float, others: float) -> float:
    """Degrees of freedom of two standard errors whose squares are added (Satterthwaite's)."""
    squares = one**4 / its + other**4 / others
    return (one**2 + other**2) ** 2 / squares if squares else its
