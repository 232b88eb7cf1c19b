"""A stage replayed with some of its training examples left out of the batches that were drawn.

At every step, the rows of these examples leave the recorded micro-batches; no others come in their
place. This is not a new training without them, which would draw other batches. What is left of a
step's loss is told by the *divisor*:

- ``rest``: the mean over what is left. The loss of each micro-batch is the mean over its own rest,
  and the step's the mean over the micro-batches that are left, as the training loop would compute
  it of them. A loss that is divided by a count of the whole step (``num_items_in_batch``) is
  divided by what is left of it, and a plain sum is that of what is left.
- ``kept``: the left-out examples weigh 0, and the divisor stays that of the whole batch. A step's
  gradient is then smaller, by their part.

A step of which nothing is left is not taken: weights, moments, Adam's count of steps and averages
of weights stay as they are, and weights do not decay. Steps after it keep their own learning rates.
Leaving out all examples is therefore the same as removing the stage.

Examples that are left draw the random numbers that they drew (:mod:`.same_draws`). Where they see
those of their batch (BatchNorm), leaving these out changes them too; a loss that compares examples
with one another is refused.

Of rows that several documents are packed into, none leaves: the tokens of those left out lose their
labels, so that they are out of the loss. Whether those that follow in the row read them all the
same is found out by giving them other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagelens.contracts import Progress, ProgressCallback, Refused, Task, no_progress
from stagelens.runs.batches import batch_size
from stagelens.runs.boundaries import check_crossable
from stagelens.runs.run import Run, Stage
from stagelens.runs.states import TrainingState
from stagelens.runs.step_records import StepRecord

from .adding_up import check_adds_up, losses_of
from .batch_parts import Cut, scaled, weighed
from .replay import (
    Replayed,
    StageReplay,
    check_replayable,
    replay_later,
    same_arithmetic,
)
from .training_loss import Passed

Divisor = Literal["rest", "kept"]
"""What the loss of what is left is divided by; see above."""

Places = Mapping[int, Collection[int]]
"""Step to the positions of examples in it, counted from 0 over its micro-batches."""


@dataclass
class LeftOut:
    """What leaving out examples did to a stage.

    Attributes:
        uses: How many uses of examples are gone, of ``all_uses``.
        all_uses: Of the stage.
        changed: How many steps lack an example.
        skipped: How many of them have none left, and are not taken.
        steps: Of the stage.
        other_draws: Operations whose random numbers could not be kept for those that are left.
        normalised: Modules in which the examples of a batch affect one another.
        packed: Whether examples are documents that share rows with others.
        read: Whether documents that are left read those left out, which stay in their rows; None
            where none comes after one in its row.
    """

    uses: int = 0
    all_uses: int = 0
    changed: int = 0
    skipped: int = 0
    steps: int = 0
    other_draws: set[str] = field(default_factory=set)
    normalised: tuple[str, ...] = ()
    packed: bool = False
    read: bool | None = None


@dataclass
class ReplayedWithout(Replayed):
    """The end of a replay with examples left out; see :class:`LeftOut`."""

    left_out: LeftOut = field(default_factory=LeftOut)


class RowsOfStage:
    """A recorded stage that is replayed with any of its examples left out, again and again.

    Args:
        task: Builds the model.
        stage: The stage.
        divisor: What the loss of what is left is divided by.

    Raises:
        Refused: It cannot be replayed. Or its loss compares examples with one another, which is
            known once batches are read.
    """

    def __init__(self, task: Task, stage: Stage, divisor: Divisor = "rest") -> None:
        check_replayable([stage])
        self._task, self._stage, self._divisor = task, stage, divisor
        self._checked = False
        self._read: bool | None = None

    def replay(
        self,
        places: Places,
        progress: ProgressCallback = no_progress,
        state: TrainingState | None = None,
        passed: Passed | None = None,
        order: Sequence[int] | None = None,
        passes: Callable[[int, StepRecord], StepRecord] | None = None,
        weight: float = 0.0,
        between: tuple[int, int] | None = None,
    ) -> ReplayedWithout:
        """The stage's end with these examples left out.

        Args:
            places: Where the examples were used, see :meth:`TrainingRows.places`.
            progress: Called for every step.
            state: Where to start; by default where the recording started.
            passed: See :class:`StageReplay`.
            order: Which recorded step's batches to use at each step; by default as recorded.
            passes: Other random numbers for a step's passes, see :mod:`.draws`.
            weight: What the examples' losses count, from 0 (they are left out) to 1 (as recorded);
                the others count 1 each. In between they have a pass of their own.
            between: Only the steps from the first number to before the second are taken.

        Raises:
            Refused: The loss is not a sum over examples, so that none has a part to leave out. Or
                examples that BatchNorm couples are to be weighed.
        """
        stage, told = self._stage, LeftOut(steps=self._stage.steps)
        begin, end = between or (0, stage.steps)
        examples = 0
        with same_arithmetic(stage):
            replay = StageReplay(self._task, stage, state, passed)
            told.normalised = _normalised(replay.model)
            if told.normalised and 0 < weight < 1:
                raise Refused(
                    f"examples of stage {stage.name!r} can be left out, but not weighed: BatchNorm "
                    f"{told.normalised[0]!r} lets those of a batch affect one another"
                )

            def change(place: int, record: StepRecord) -> StepRecord | None:
                if place < begin:
                    return None
                drawn = record if passes is None else passes(place, record)
                chosen = set(places.get(record.step, ())) if weight < 1 else set()
                return self._rest(replay, drawn, chosen, told, weight)

            try:
                for number, record in enumerate(replay.run(order, change), 1):
                    if number > begin:
                        examples += sum(batch_size(micro.batch) for micro in record.batches or ())
                        progress(
                            (number - begin) / (end - begin),
                            f"stage {stage.name}, step {number} of {stage.steps}",
                        )
                    if number == end:
                        break
            except ValueError as error:
                if told.normalised and "more than 1 value per channel" in str(error):
                    raise Refused(
                        f"a batch of stage {stage.name!r} has one example left, of which "
                        f"BatchNorm {told.normalised[0]!r} cannot compute a variance; leave out "
                        "fewer examples"
                    ) from None
                raise
            told.other_draws |= replay.other_draws
            return ReplayedWithout(replay.state(), examples, None, told)

    def _rest(
        self,
        replay: StageReplay,
        record: StepRecord,
        left_out: set[int],
        told: LeftOut,
        weight: float,
    ) -> StepRecord | None:
        """A step without some of its examples, or with a weight of theirs; None: nothing is left.

        Args:
            replay: Where the stage is.
            record: The step.
            left_out: Positions of the examples.
            told: What is counted.
            weight: Of the examples.
        """
        if record.batches is None:
            return record
        cuts: list[Cut] = []
        first = 0
        for micro in record.batches:
            cut = Cut.of(self._stage, self._task, micro, left_out, first)
            first += cut.count
            cuts.append(cut)
        gone = sum(cut.count - len(cut.kept) for cut in cuts)
        told.all_uses += first
        told.uses += gone
        if not gone:
            return record  # as it is, so that nothing changes by a bit
        told.changed += 1
        if not self._checked:
            found = (check_adds_up(replay, cut) for cut in cuts)
            draws = next((each for each in found if each is not None), None)
            self._checked = draws is not None
            told.other_draws |= draws or set()
        self._look_across(replay, cuts, told)
        kept = self._divisor == "kept"
        if weight:
            batches = weighed(cuts, replay.rules.divisor, kept, weight)
        elif any(cut.left for cut in cuts):
            batches = scaled(cuts, replay.rules.divisor, kept)
        else:
            told.skipped += 1
            return None
        divisors = tuple(micro.divisor for micro in batches)
        return replace(record, batches=batches, divisors=divisors)

    @torch.no_grad()
    def _look_across(self, replay: StageReplay, cuts: Sequence[Cut], told: LeftOut) -> None:
        """Find out, once a stage, whether documents read those before them in their row."""
        told.packed |= any(cut.documents is not None for cut in cuts)
        if self._read is None and (cut := next((c for c in cuts if c.shares_rows), None)):
            micros = (cut.rest(), cut.rest_after_others())
            before = [buffer.clone() for buffer in replay.model.buffers()]
            (one, other), tolerance = losses_of(replay, micros, set())
            for buffer, value in zip(replay.model.buffers(), before, strict=True):
                buffer.copy_(value)
            self._read = abs(one - other) > tolerance * max(abs(one), abs(other))
        told.read = self._read


def _normalised(model: nn.Module) -> tuple[str, ...]:
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    )


def check_without_rows(run: Run, stage: Stage) -> None:
    """Refuse before any work what could not be replayed to the end of the run.

    Raises:
        Refused: Batches of the stage, or of a later one, were not kept; says what to do.
    """
    check_replayable(run.stages[stage.index :])
    for other in run.stages[stage.index + 1 :]:
        check_crossable(other.name, other.facts.boundary)


def replay_without_rows(
    run: Run,
    stage: Stage,
    places: Places,
    divisor: Divisor = "rest",
    progress: ProgressCallback = no_progress,
    rows: RowsOfStage | None = None,
    weight: float = 0.0,
) -> ReplayedWithout:
    """The end of the run with some of a stage's examples left out, later stages as recorded.

    Args:
        run: The run.
        stage: Whose examples.
        places: Where these were used; ``training_rows(run, stage).places(ids)``.
        divisor: What the loss of what is left is divided by.
        progress: Called for every step.
        rows: Of the stage, with this divisor, for many such replays: what is checked once is then
            not checked again.
        weight: See :meth:`RowsOfStage.replay`.

    Raises:
        Refused: A stage cannot be replayed, or the loss is no sum over examples.
    """
    check_without_rows(run, stage)
    rows = rows or RowsOfStage(run.task, stage, divisor)
    after = sum(other.steps for other in run.stages[stage.index + 1 :])
    share = stage.steps / (stage.steps + after)
    overall = Progress(progress)
    own = rows.replay(places, overall.part(0.0, share), weight=weight)
    rest = replay_later(run, stage, own.state, overall.part(share, 1.0)) if after else own
    spent = own.example_gradients + (rest.example_gradients if after else 0)
    return ReplayedWithout(rest.state, spent, None, own.left_out)
