"""What there is left to replay, in which order, and what it takes. Nothing here imports torch."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from stagelens.effects.results import ResultFacts, stored_results
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.counterfactual_cache import is_cached
from stagelens.estimators.durations import Paces, check_seconds, paces, without_seconds
from stagelens.estimators.stage_trust import REPLAY, StageTrust, is_ground_truth
from stagelens.runs.run import Run, Stage
from stagelens.wording.numbers import predicted_time

from .estimates import best_trust

_UNKNOWN = 1.0
"""Relative error that is feared where nothing is known of it: as large as the effect itself."""
TIMED = 0.1
"""Share of the progress of ``settling.settle`` that is done when steps have been timed."""
STORING = 0.1
"""Seconds for writing a model and a table."""


@dataclass(frozen=True)
class Candidate:
    """A stage whose numbers are not settled yet.

    Attributes:
        stage: Its name.
        size: Root mean square of its effect as far as it is known; infinite where it is not.
        doubt: Relative error that its numbers may have; see :func:`doubt`.
        seconds: Predicted for replaying the later stages without it; None where not known.
        checks: Later stages that have yet to be replayed as recorded, with the seconds of each:
            shared with other candidates that need them.
    """

    stage: str
    size: float
    doubt: float
    seconds: float | None
    checks: Mapping[str, float] = field(default_factory=dict)

    @property
    def fear(self) -> float:
        """How far off its numbers may be: what replaying it would put right."""
        return self.size * self.doubt

    def price(self, done: Collection[str] = ()) -> float | None:
        """Seconds, where the checks named in ``done`` need not be done again."""
        if self.seconds is None:
            return None
        return self.seconds + sum(s for name, s in self.checks.items() if name not in done)


def planned(
    candidates: Sequence[Candidate], limit: float, alone: float | None = None
) -> list[Candidate]:
    """Which stages to replay, in this order: the most feared first, as far as they fit.

    Args:
        candidates: Stages that are not settled, in training order.
        limit: Seconds for all of them together.
        alone: Seconds for any one of them; less than ``limit`` where several processes share them.
    """
    chosen: list[Candidate] = []
    checked: set[str] = set()
    # Sorting is stable: of equals the earlier stage comes first.
    for one in sorted(candidates, key=lambda each: -each.fear):
        price = one.price(checked)
        if price is None or price > limit or (alone is not None and price > alone):
            continue
        limit -= price
        checked |= one.checks.keys()
        chosen.append(one)
    return chosen


def doubt(trust: StageTrust | None) -> float:
    """The relative error that a stage's numbers may have, by what is known of them."""
    if trust is None or trust.trust == "refused":
        return _UNKNOWN
    if is_ground_truth(trust):
        return 0.0
    if (agreement := trust.agreement()) is not None:
        return agreement.relative_error
    return _UNKNOWN if trust.expected_error is None else trust.expected_error


@dataclass(frozen=True)
class Left:
    """A stage that did not fit into the limit.

    Attributes:
        stage: Its name.
        seconds: Predicted for its replay on this machine; None where not known.
    """

    stage: str
    seconds: float | None

    @property
    def said(self) -> str:
        """Its price: ``exact in about 3 hours on this machine``."""
        if self.seconds is None:
            return "exact by replay, whose time is not known"
        return f"exact in {predicted_time(self.seconds)} on this machine"


def replay_command(path: str, set_name: str, stage: str, leaf: str = "") -> str:
    """What somebody types to have a stage replayed."""
    run, of, named = (shlex.quote(each) for each in (path, set_name, stage))
    run += f" --leaf {shlex.quote(leaf)}" if leaf else ""
    return f"stagelens attribute {run} --set {of} --estimator {REPLAY} --stage {named}"


def replayable(run: Run, stage: Stage) -> bool:
    """Whether all stages after one can be replayed."""
    return not any(later.no_replay for later in run.stages[stage.index + 1 :])


def open_stages(run: Run, set_name: str) -> list[Stage]:
    """Stages that are neither settled nor replayed yet, on an evaluation set."""
    known = best_trust(run, set_name)
    stored = [trust for facts in _tables(run, set_name, REPLAY) for trust in facts.stages]
    replayed = {trust.stage for trust in stored if trust.trust != "refused"}
    return [
        stage
        for stage in run.stages
        if stage.name not in replayed
        and not (stage.name in known and is_ground_truth(known[stage.name]))
    ]


def estimated(run: Run, set_name: str) -> set[str]:
    """Names of the stages of which coarse replay holds something, whatever its budget."""
    return {t.stage for f in _tables(run, set_name, CoarseReplay.name) for t in f.stages}


def left_out(run: Run, set_name: str, stages: Sequence[Stage] | None = None) -> list[Left]:
    """Stages that could be replayed and are not yet, with the seconds that this should take.

    They are those of this machine as busy as it is now.

    Args:
        run: The run.
        set_name: One of its evaluation sets.
        stages: What :func:`open_stages` gives, where that is known.
    """
    known, count = paces(run), run.evaluation_set(set_name).count
    left = []
    for stage in open_stages(run, set_name) if stages is None else stages:
        if replayable(run, stage):
            seconds, checks = price(run, known, stage, count)
            total = None if seconds is None else seconds + sum(checks.values())
            present = None if total is None else known.at_present(total)
            left.append(Left(stage.name, present))
    return left


def _tables(run: Run, set_name: str, estimator: str) -> list[ResultFacts]:
    return [facts for facts in stored_results(run, set_name) if facts.estimator == estimator]


def price(
    run: Run, known: Paces, stage: Stage, count: int
) -> tuple[float | None, dict[str, float]]:
    """Seconds for the replay without a stage and for measuring it, and those of its checks."""
    measuring = STORING + 3 * count * (known.example or 0.0)  # final, without, and once repeated
    if is_cached(run, stage, REPLAY):
        return measuring, {}
    seconds = without_seconds(known.stages, stage.index)
    return (
        None if seconds is None else seconds + measuring,
        check_seconds(known.stages, stage.index),
    )
