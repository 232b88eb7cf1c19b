"""Whether a stage ends as its last update left it."""

from __future__ import annotations

from stagelens.contracts import RecordingError
from stagelens.replaying.step import StepRules

from .checked_steps import CheckedSteps
from .no_checks import NoChecks
from .watch import Watch


def check_end(
    name: str, watch: Watch, checked: CheckedSteps | NoChecks, rules: StepRules, at_best: bool
) -> None:
    """Check the last step of a stage, and that nothing came after it.

    Args:
        name: The stage's name.
        watch: Its watch.
        checked: Its steps that are run again.
        rules: Of the stage.
        at_best: Whether the loop went back to its best model after the last step.

    Raises:
        RecordingError: There was no step, one was not noted, or something was changed since.
    """
    if watch.updates > watch.noted:
        raise RecordingError(
            "the last optimizer.step() was not noted; call stage.step(batch, loss) after it"
        )
    if watch.noted == 0:
        raise RecordingError(
            f"stage {name!r} has no step; call stage.step(batch, loss) after every "
            "optimizer.step() of the model and optimiser that the stage was given"
        )
    if not at_best:
        watch.check_now()
    checked.check(rules, not at_best, watch.calls)
