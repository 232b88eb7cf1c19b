"""A small table of promises and what came of them, as ``calibration.points`` gives it."""

from __future__ import annotations

import numpy as np
import pandas as pd


def bench_points(families: int = 4, each: int = 10, seed: int = 0) -> pd.DataFrame:
    """Estimates of which the first two in each family are reliable; the last family's are off."""
    random = np.random.default_rng(seed)
    rows = []
    for family in range(families):
        for number in range(each):
            reliable = number < 2
            promised = 0.2 if reliable else float(random.uniform(0.4, 2.0))
            off = reliable and family == families - 1
            error = 0.9 if off else promised * float(random.uniform(0.2, 0.9))
            rows.append(
                {
                    **{"family": f"family {family}", "recording": f"seed {number}"},
                    **{"stage": "middle", "estimator": "coarse-replay 1/4"},
                    **{"promised": promised, "error": error, "r": 0.5 if off else 0.95},
                    "reliable": reliable,
                }
            )
    return pd.DataFrame(rows)
