"""Whether a stage ends as its last update left it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stagelens.compute import memory
from stagelens.contracts import RecordingError
from stagelens.replaying.step import StepRules
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.data_rows import DataRows, StageRows
from stagelens.runs.saved_states import load_state
from stagelens.runs.schema import StageFile
from stagelens.runs.steps import RecordedSteps

from .best_model import Best
from .carried_state import kept_at_end
from .checked_steps import CheckedSteps
from .no_checks import Checks, NoChecks
from .stage_files import StageFiles
from .stage_states import StageStates
from .step_comparison import check_lengths
from .step_writer import StepWriter
from .update_count import UpdateCount
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


def check_first_step(
    checked: Checks,
    root: Path,
    facts: StageFile,
    parts: dict[str, Any],
    data: DataRows | None,
    tell: Callable[[Exception], None],
) -> None:
    """Run the first step of a stage again that several processes trained together.

    Args:
        checked: In the main process.
        root: The run folder.
        facts: Of the stage.
        parts: What all processes wrote, as its facts are going to say.
        data: Its data set, if any.
        tell: Called where it does not give the gradient that the optimiser received.
    """
    if isinstance(checked, NoChecks):
        return
    files, facts = CheckedFiles(root), facts.model_copy(update=parts)
    try:
        rows = StageRows(facts.name, facts.rows, data)
        step = RecordedSteps(files, facts.parts_of_each, rows=rows)[0]
        start = load_state(files, facts.start)
        if checked.first_norms and step.batches is not None:
            rules = StepRules.of(facts)
            own = checked.norms(step, start.model, rules)
            check_lengths(own, checked.first_norms, rules)
    except Exception as error:
        if not memory.ran_out(error):
            tell(error)


def complete(
    files: StageFiles,
    writer: StepWriter,
    ending: Ending,
    states: StageStates,
    watch: Watch | UpdateCount,
    asked: bool,
    began: float,
    told: dict[str, Any],
) -> None:
    """Write the end of a stage.

    Args:
        files: Of the stage.
        writer: Has written its steps.
        ending: How it ends.
        states: Takes the training state as it is.
        watch: Has counted its updates.
        asked: Whether the optimiser's state is to stay at its end.
        began: When, as ``time.monotonic`` tells it.
        told: What stage.json says of it besides.
    """
    told = {**told, "seconds": time.monotonic() - began}
    optimizer, at = files.facts.optimizer, f"step {watch.noted}"
    keep = kept_at_end(optimizer, asked)
    with states.due(at):
        if ending.best is not None and ending.at_best:
            known, parallel = files.facts.checkpoints, told.pop("parallel")
            best = ending.best.ending(known, writer.parts, parallel, keep)
            files.announce(status="complete", **told, **best)
            files.tidy("*")
            return
        end, apart = states.take_end(at, optimizer, keep, ending.averaged)
    files.announce(
        status="complete",
        end=files.save("end", end),
        end_optimizer=apart,
        parts=list(writer.parts),
        steps=writer.steps,
        end_calls=watch.calls,
        # Where not all of them could be written.
        updates=watch.noted if watch.noted > writer.steps else None,
        **told,
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
