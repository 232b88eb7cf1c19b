"""Small effect tables, made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stagelens.effects.results import EFFECT_COLUMNS


def effect_table(
    effects: dict[str, list[float]],
    behaviour: str = "loss",
    labels: list[str | None] | None = None,
    predictions: list[str] | None = None,
    without: dict[str, list[str]] | None = None,
    groups: list[str] | None = None,
) -> pd.DataFrame:
    """A small effect table; every example's final value is 1."""
    count = len(next(iter(effects.values())))
    blocks = [
        pd.DataFrame(
            {
                "set": "test",
                "example_id": [f"e{i}" for i in range(count)],
                "stage": stage,
                "behaviour": behaviour,
                "final": 1.0,
                "without": 1.0 - np.asarray(values),
                "effect": values,
                "estimator": "replay",
                "prediction": predictions or ["a"] * count,
                "prediction_without": (without or {}).get(stage, ["a"] * count),
                "confidence": 0.9,
                "confidence_without": 0.8,
                "within_noise": pd.array([None] * count, dtype="boolean"),
                "label": labels or ["a"] * count,
                "group": groups or ["g"] * count,
            }
        )
        for stage, values in effects.items()
    ]
    table = pd.concat(blocks, ignore_index=True)
    assert list(table.columns[: len(EFFECT_COLUMNS)]) == list(EFFECT_COLUMNS)
    return table


def other_orders(effects: dict[str, list[list[float]]], behaviour: str = "loss") -> pd.DataFrame:
    """Stage to its effects per order of the batches, as ``noise.load_orders`` gives them."""
    return pd.DataFrame(
        [
            {
                "stage": stage,
                "behaviour": behaviour,
                "order": order,
                "example_id": f"e{number}",
                "effect": effect,
            }
            for stage, orders in effects.items()
            for order, values in enumerate(orders)
            for number, effect in enumerate(values)
        ]
    )
