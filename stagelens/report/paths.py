"""Paths in a report: what was learned, forgotten or flipped from boundary to boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stagelens.analyses.paths.answers import paths
from stagelens.analyses.paths.chance import MISFIT, fits, lost_words, without_lucky_guesses
from stagelens.charts.alluvial import MOST_BOUNDARIES, alluvial
from stagelens.charts.style import EITHER
from stagelens.contracts import ACCURACY, BASE
from stagelens.effects.results import FIRST, load_result
from stagelens.runs.run import Run
from stagelens.runs.sets.clusters import with_sources
from stagelens.runs.sets.evaluation_set import EvaluationSet

from .finding import Finding
from .provenance import RECORDED

ABOUT = (
    "The answers after every boundary: learned (wrong, then right), forgotten (right, then wrong), "
    "or flipped: changed more than once."
)

ONE_PATH = (
    "A dot counts one path alone, of several that can be of one kind. Dots of one kind are told "
    "apart by their answers, ✓ right or ✗ wrong at each boundary."
)
"""What numbers beside dots are, which differ from those of kinds."""


def path_findings(
    run: Run,
    examples: EvaluationSet,
    stages: Sequence[str],
    chart: Callable[..., Finding],
) -> list[Finding]:
    """The paths of a set's examples; none where answers cannot be compared, or are too many.

    Args:
        run: The run.
        examples: The set.
        stages: In training order.
        chart: Makes a finding of a chart.
    """
    measured = load_result(run, examples.name, "boundaries", behaviour=FIRST)
    if measured is None:
        return []
    found = paths([measured.table], with_sources(examples), (BASE, *stages))
    if found is None or len(found.boundaries) > MOST_BOUNDARIES:
        return []
    drawn = alluvial(found.counts(), found.boundaries, examples.kind, EITHER)
    said = [drawn.alt, ONE_PATH, lost_words(found, examples.kind)]
    said += [] if fits(without_lucky_guesses(found)) else [MISFIT]
    made = chart(
        drawn,
        title="Answers from boundary to boundary",
        behaviour=ACCURACY.name,
        observed=RECORDED,
    )
    return [made.model_copy(update={"seen": made.seen.model_copy(update={"said": " ".join(said)})})]
