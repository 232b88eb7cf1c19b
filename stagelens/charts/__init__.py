"""Plain functions from tables to plotly figures, every colour and every range explicit.

Each returns a :class:`Chart`: the figure and its takeaway as one sentence, for ``alt=``. Credit is
blue and solid, blame is vermilion and hatched; both stand on fixed sides of zero as well, so
colour never says anything alone. Names come from data: they are escaped before plotly sees them.
"""

from .bars import credit_and_blame, example_effects
from .paths import boundary_path
from .stages import time_line
from .style import (
    BLAME,
    CREDIT,
    DARK,
    EITHER,
    EITHER_STYLE,
    LIGHT,
    TRUST_MARKS,
    Chart,
    Palette,
    stage_color,
)

__all__ = [
    "BLAME",
    "CREDIT",
    "DARK",
    "EITHER",
    "EITHER_STYLE",
    "LIGHT",
    "TRUST_MARKS",
    "Chart",
    "Palette",
    "boundary_path",
    "credit_and_blame",
    "example_effects",
    "stage_color",
    "time_line",
]
