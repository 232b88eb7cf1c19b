"""One of every kind of chart, drawn from made-up numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from stagelens import charts
from stagelens.analyses.contributions.horizon_table import HorizonFacts, Horizons
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.share_table import SHARE, shares_of
from stagelens.charts.alluvial import alluvial
from stagelens.charts.calibration import OwnEstimate, calibration_plot
from stagelens.charts.comparison import effect_against_effect
from stagelens.charts.expected_errors import expected_error_curve
from stagelens.charts.groups import class_errors, group_gaps
from stagelens.charts.places import patch_map
from stagelens.charts.removal import (
    calibration_curve,
    confusion_map,
    group_accuracy,
    layer_strengths,
)
from stagelens.charts.saliency import pixel_maps
from stagelens.charts.selection import horizon_curve, trained_bars
from stagelens.charts.steps import observed_path, step_contributions
from stagelens.charts.style import EITHER, Chart
from stagelens.charts.trust import agreement
from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.groups import group_metrics
from stagelens.effects.results import BehaviourFacts
from stagelens.effects.summary import stage_summary
from stagelens.trust.comparing import Side, compare_effects
from tests.support.calibration_bench import bench_points
from tests.support.coalitions import made
from tests.support.effect_tables import effect_table
from tests.support.saliency_maps import image_map
from tests.support.stage_trust import EXACT

LOSS = Behaviour("loss", "lower")
MARGIN = Behaviour("margin", "higher")
STAGES = ("pretrain", "shortcut")
TRUST = {stage: EXACT for stage in STAGES}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAA"
    "AgABSK+kcQAAAABJRU5ErkJggg=="
)


def _means() -> pd.DataFrame:
    return stage_summary(effect_table({"pretrain": [0.5, 2], "shortcut": [-1, 0]}), LOSS, STAGES)


def _rates() -> pd.DataFrame:
    steps = np.tile(np.arange(40), 2)
    named = np.repeat(STAGES, 40)
    return pd.DataFrame({"stage": named, "step": steps, "lr": 0.1 * np.cos(steps / 26)})


def _shares():
    worth = {0: 0.0, 1: 2.0, 2: -0.5, 3: 1.0}
    return shares_of(made({mask: np.full(60, v) for mask, v in worth.items()}, STAGES), "score")


def _waterfall() -> Chart:
    found = _shares()
    ends = found.level(0), found.level(found.full)
    return charts.waterfall(found.means(SHARE), *ends, found.behaviour, EITHER)


def _gaps() -> Chart:
    def table(right: int) -> pd.DataFrame:
        return pd.DataFrame(
            {"group": ["a"] * 60 + ["b"] * 60, "label": "x", "margin": 0.0,
             "prediction": ["x"] * 50 + ["y"] * 10 + ["x"] * right + ["y"] * (60 - right),
             "example_id": [str(n) for n in range(120)]}
        )  # fmt: skip

    metrics = group_metrics({"final model": table(20), "without shortcut": table(49)}, ["group"])
    return group_gaps(metrics, ACCURACY, {}, EITHER)


def _classes() -> Chart:
    rows = pd.DataFrame(
        {"model": "m", "group": ["g", "g"], "label": ["a", "b"], "missed": [0.1, 0.9],
         "false": 0.0, "n": 9, "others": 9}
    )  # fmt: skip
    return class_errors(rows, "m", "missed", EITHER)


def _accuracy() -> Chart:
    rows = pd.DataFrame(
        [
            {"model": m, "group": g, "n": 9, "accuracy": 0.9, "accuracy_low": 0.85,
             "accuracy_high": 0.95} for m in ("final model", "edited") for g in ("x", "y")
        ]
    )  # fmt: skip
    return group_accuracy(rows, palette=EITHER)


def _patches() -> Chart:
    rows = pd.DataFrame(
        {"top": [0], "left": [0], "height": [2], "width": [2], "mean_with": [1.0], "support": [9]}
    )
    return patch_map(rows, (4, 4), MARGIN, "shortcut", EITHER)


def _agreement() -> Chart:
    rows = pd.DataFrame(
        {
            "example_id": ["a", "b"],
            "estimate": [1.0, -2],
            "replay": [1.5, -1],
            "within_noise": pd.NA,
        }
    )
    return agreement(rows, MARGIN, "shortcut", "task-vector", 1.0, palette=EITHER)


def _comparison() -> Chart:
    rows = pd.DataFrame(
        {"example_id": [f"e{i}" for i in range(40)], "effect": np.tile([1.0, -2], 20)}
    )
    sides = (Side(name, MARGIN, rows, EXACT) for name in ("one", "two"))
    return effect_against_effect(compare_effects(*sides), "shortcut", EITHER)


def _observed() -> Chart:
    rows = pd.DataFrame(
        {"stage": ["pretrain", "pretrain", "shortcut"], "step": [0, 40, 20], "value": [0.1, 2, 1]}
    )
    return observed_path(rows, MARGIN, {"pretrain": 40, "shortcut": 40}, EITHER)


def _steps() -> Chart:
    rows = pd.DataFrame({"step": range(20), "value": np.linspace(-1, 2, 20)})
    rates = _rates().head(20)
    return step_contributions(rows, rates, MARGIN, "pretrain", 9.0, "#56B4E9", EITHER)


def _effects() -> pd.DataFrame:
    return pd.DataFrame({"stage": STAGES, "effect": [1.0, -2.0]})


def _confusion() -> Chart:
    counts = pd.DataFrame([[3, 1], [0, 4]], index=["a", "b"], columns=["a", "b"])
    return confusion_map(counts, "edited model", EITHER)


def _curve() -> Chart:
    bins = pd.DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.4, 1.0], "n": [10, 40]})
    return calibration_curve({"final model": bins, "edited": bins}, EITHER)


def _calibration() -> Chart:
    own = [OwnEstimate("shortcut", 0.2, 0.31, "verified"), OwnEstimate("adapt", 0.5, np.nan, "")]
    return calibration_plot(bench_points(), own, EITHER)


def _trained() -> Chart:
    rows = pd.DataFrame(
        {"trained_on": ["all 20", "the chosen 10", "random 10"], "mean": [0.3, 0.2, 0.28],
         "low": [0.25, 0.18, np.nan], "high": [0.35, 0.22, np.nan], "chosen": [False, True, False]}
    )  # fmt: skip
    return trained_bars(rows, LOSS, EITHER)


def _horizons() -> Chart:
    rows = pd.DataFrame(
        {"horizon": [4, 4, 40, 40], "draw": [0, 1] * 2, "value": [0.2, 0.3, 0.4, 0.5]}
    )
    return horizon_curve(rows, 4, LOSS, EITHER)


def _expected_errors() -> Chart:
    facts = HorizonFacts(
        run_digest="", set_digest="", stage="shortcut", count=3, behaviour=BehaviourFacts.of(LOSS),
        share=0.1, left_out=20, steps=40, later=15, seconds=1.0,
    )  # fmt: skip
    rows = pd.DataFrame(
        {"horizon": pd.array([1, 4, 13, 40, None], dtype="Int64"), "windows": 1,
         "first_order": 0.1, "neglected": 0.01, "expected_error": [0.02, 0.1, 0.4, 0.7, 20.0],
         "gradients": 10.0}
    )  # fmt: skip
    return expected_error_curve(Horizons(facts, rows), EITHER)


EVERY: dict[str, Callable[[], Chart]] = {
    "agreement": _agreement,
    "alluvial": lambda: alluvial(
        {"WRR": 5, "RWW": 2, "WRW": 3, "RRR": 9, "WWW": 4}, ("base", *STAGES), "image", EITHER
    ),
    "calibration_curve": _curve,
    "calibration_plot": _calibration,
    "class_errors": _classes,
    "confusion_map": _confusion,
    "credit_and_blame": lambda: charts.credit_and_blame(_means(), LOSS, TRUST, EITHER),
    "effect_against_effect": _comparison,
    "example_effects": lambda: charts.example_effects(_effects(), MARGIN, TRUST, EITHER),
    "expected_error_curve": _expected_errors,
    "group_accuracy": _accuracy,
    "group_gaps": _gaps,
    "horizon_curve": _horizons,
    "layer_strengths": lambda: layer_strengths(
        {"pretrain": {"body": 0.5}, "shortcut": {"body": 1.0, "head": 0.2}},
        ["#56B4E9", "#E69F00"],
        EITHER,
    ),
    "observed_path": _observed,
    "pair_matrix": lambda: charts.pair_matrix(
        pairs_of(_shares()), _shares().behaviour, EITHER, "all images"
    ),
    "patch_map": _patches,
    "pixel_maps": lambda: pixel_maps(image_map(), PIXEL, MARGIN, "shortcut", EITHER),
    "step_contributions": _steps,
    "time_line": lambda: charts.time_line(
        dict.fromkeys(STAGES, 40), _rates(), None, MARGIN, EITHER
    ),
    "trained_bars": _trained,
    "waterfall": _waterfall,
}
"""Function to one of its charts, in the colours that pages and reports use."""
