"""How far a 95 % interval reaches, wherever there is one."""

from __future__ import annotations

from typing import overload

import numpy as np

LEVEL = 0.05
"""Share of intervals that may miss, by default: intervals are 95 %."""


@overload
def t_quantile(freedom: float, level: float = ...) -> float: ...
@overload
def t_quantile(freedom: np.ndarray, level: float = ...) -> np.ndarray: ...
def t_quantile(freedom: float | np.ndarray, level: float = LEVEL) -> float | np.ndarray:
    """How many standard errors a two-sided interval reaches to either side: Student's t.

    Args:
        freedom: Degrees of freedom; infinite where the standard error is known.
        level: Share of intervals that may miss.
    """
    from scipy.special import ndtri, stdtrit  # here, because it takes a while

    many = np.isinf(freedom)
    few = stdtrit(np.where(many, 1.0, freedom), 1 - level / 2)
    reach = np.where(many, ndtri(1 - level / 2), few)
    return float(reach) if reach.ndim == 0 else reach
