"""What ``stagelens shares --halves`` adds: the shares where one stage is taken as two halves."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.analyses.shares.halves import changes, half_means, halves_sentence
from stagelens.analyses.shares.orders import MOST_PARTIES
from stagelens.analyses.shares.share_table import Shares
from stagelens.contracts import StageLensError
from stagelens.estimators.halves import halves_of
from stagelens.runs.cutting import Cut
from stagelens.runs.run import Run
from stagelens.wording.numbers import count_text
from stagelens.wording.sentences import slice_parts


def asked_cut(run: Run, text: str | None, together: Sequence[str] | None) -> Cut | None:
    """Where ``--halves STAGE[:STEP]`` takes a stage as two; None without it.

    Raises:
        StageLensError: It names no stage or step, or other options do not go with it.
    """
    if text is None:
        return None
    if together:
        raise StageLensError("--halves counts every other stage by itself; omit --together")
    if len(run.stages) > MOST_PARTIES:
        raise StageLensError(
            f"--halves takes all coalitions, which are computed of up to {MOST_PARTIES} stages; "
            f"this run has {len(run.stages)}"
        )
    name, colon, step = text.partition(":")
    if colon and not step.strip().isdigit():
        raise StageLensError(
            f"--halves {text!r} gives no step after the colon; give a whole number, or the stage "
            "alone for its middle"
        )
    return halves_of(run, name.strip(), int(step) if colon else None)


def cost_text(said: str, between: int, cut: Cut) -> str:
    """The same in words; ``said`` is the cost as it is told of other coalitions."""
    found = f", and {count_text(between, 'step')} to find the state between" if between else ""
    return f"Halves of {cut.stage}, cut after step {cut.step:,}: {said.rstrip('.')}{found}."


def told_halves(found: Shares, cut: Cut) -> str:
    """How shares of one behaviour change, as a sentence."""
    return str(
        halves_sentence(
            changes(found, cut),
            half_means(found, cut),
            cut,
            found.behaviour,
            slice_parts("example"),
        )
    )
