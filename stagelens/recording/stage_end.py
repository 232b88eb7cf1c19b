"""Whether a stage ends as its last update left it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stagelens.contracts import RecordingError
from stagelens.replaying.step import StepRules

from .best_model import Best
from .checked_steps import CheckedSteps
from .no_checks import NoChecks
from .watch import Watch


@dataclass
class Ending:
    """How a stage ends, where that is not as its last update left the model.

    Attributes:
        best: The best state that was kept.
        at_best: Whether the loop went back to it.
        averaged: The average that the stage ends with.
        steps: How many steps there were when that was said.
    """

    best: Best | None = None
    at_best: bool = False
    averaged: nn.Module | None = None
    steps: int = 0

    def check_average(self, updates: int) -> None:
        """Refuse an average that is not how the stage ended.

        Raises:
            RecordingError: More was done after it was said.
        """
        if self.at_best:
            raise RecordingError(
                "the stage ends with an average, stage.ends_with(averaged), and goes back to its "
                "best model as well; end it with one of them"
            )
        if updates > self.steps:
            raise RecordingError(
                f"steps were made after stage.ends_with(averaged) was called at step {self.steps}; "
                "call it after the last step of the stage"
            )


def check_end(
    name: str, watch: Watch, checked: CheckedSteps | NoChecks, rules: StepRules, ending: Ending
) -> None:
    """Check the last step of a stage, and that nothing came after it.

    Args:
        name: The stage's name.
        watch: Its watch.
        checked: Its steps that are run again.
        rules: Of the stage.
        ending: How the stage ends.

    Raises:
        RecordingError: There was no step, one was not noted, or something was changed since.
    """
    if ending.averaged is not None:  # it was checked when that was said
        ending.check_average(watch.updates)
        return
    if watch.updates > watch.noted:
        raise RecordingError(
            "the last optimizer.step() was not noted; call stage.step(batch, loss) after it"
        )
    if watch.noted == 0:
        raise RecordingError(
            f"stage {name!r} has no step; call stage.step(batch, loss) after every "
            "optimizer.step() of the model and optimiser that the stage was given"
        )
    if not ending.at_best:
        watch.check_now()
    checked.check(rules, not ending.at_best, watch.calls)
