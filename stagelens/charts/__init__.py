"""Plain functions from tables to plotly figures and to markup, every colour and range explicit.

Each returns a :class:`Chart` or :class:`Markup`, with its takeaway as one sentence for ``alt=``.
Credit is blue and solid, blame is vermilion and hatched or wavy; in charts each also has a
fixed side of zero, so nothing is said by colour alone. What is not to be relied on is drawn
faintly. Names come from data: they are escaped before plotly or a browser sees them.
"""

from stagelens.charts.bars import credit_and_blame, example_effects, rest_text, shown_stages
from stagelens.charts.effect_bars import effect_bars
from stagelens.charts.pair_matrix import pair_matrix
from stagelens.charts.stages import time_line
from stagelens.charts.style import (
    BLAME,
    CREDIT,
    DARK,
    EITHER,
    EITHER_STYLE,
    LIGHT,
    Chart,
    Palette,
    stage_color,
)
from stagelens.charts.tokens import Markup, largest_effect, shaded_tokens, visible
from stagelens.charts.waterfall import waterfall
from stagelens.wording.signs import marked

__all__ = [
    "BLAME",
    "CREDIT",
    "DARK",
    "EITHER",
    "EITHER_STYLE",
    "LIGHT",
    "Chart",
    "Markup",
    "Palette",
    "credit_and_blame",
    "effect_bars",
    "example_effects",
    "largest_effect",
    "marked",
    "pair_matrix",
    "rest_text",
    "shaded_tokens",
    "shown_stages",
    "stage_color",
    "time_line",
    "visible",
    "waterfall",
]
