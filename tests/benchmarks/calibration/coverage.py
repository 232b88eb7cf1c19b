"""What promises were worth on families that the fitted functions had not seen."""

from __future__ import annotations

import pandas as pd
from scipy.stats import binomtest

from stagelens.trust.coverage import close_enough


def _share(part: int, whole: int) -> str:
    if not whole:
        return "-"
    ends = binomtest(part, whole).proportion_ci(0.95, "wilson")
    return f"{part}/{whole} = {part / whole:.0%} ({ends.low:.0%} to {ends.high:.0%})"


def figures(points: pd.DataFrame) -> dict[str, str]:
    """The figures that matter, with Wilson's 95 % intervals.

    Args:
        points: With ``promised``, ``error``, ``r``, ``reliable``, and ``kept_group`` and
            ``kept_wrong_signs``: whether these promises were kept.
    """
    good, called = close_enough(points).to_numpy(), points["reliable"].to_numpy()
    within = (points["error"] <= points["promised"]).to_numpy()
    return {
        "reliable and right": _share(int((good & called).sum()), int(called.sum())),
        "within the promise": _share(int(within.sum()), len(points)),
        "group means within": _share(int(points["kept_group"].sum()), len(points)),
        "signs within": _share(int(points["kept_wrong_signs"].sum()), len(points)),
        "called reliable of those right": _share(int((good & called).sum()), int(good.sum())),
    }


def text(points: pd.DataFrame) -> str:
    """Tables by kind, by family of coarse replay, and by optimiser of coarse replay."""
    parts = []
    coarse = points[points["kind"].str.startswith("coarse")]
    for title, rows, by in (
        ("by kind", points, "kind"),
        ("coarse replay, by estimate", coarse, "estimator"),
        ("coarse replay, by family", coarse, "family"),
        ("coarse replay, by optimiser", coarse, "optimizer"),
    ):
        table = {str(name): figures(own) for name, own in rows.groupby(by)}
        table["all"] = figures(rows)
        parts.append(f"{title}\n{pd.DataFrame(table).T.to_string()}")
    return "\n\n".join(parts)
