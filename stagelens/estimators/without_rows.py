"""The model without some training examples of a stage, by replay or, more cheaply, coarse replay.

The stage itself is always replayed step by step: its examples are what is asked about. Later stages
follow as recorded, or by the paired cheap replays of ``coarse-replay``. What leaving out means is
said in :mod:`stagelens.replaying.left_out`.

Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from stagelens.contracts import Progress, ProgressCallback, Refused, no_progress
from stagelens.runs.run import Run, Stage
from stagelens.runs.schema import digest
from stagelens.runs.training_rows import example_key, rest_key, training_rows

from .coarse_replay import CoarseReplay
from .protocol import Counterfactual, Estimator
from .replay import Replay, trust_in_replay
from .stage_trust import REPLAY, StageTrust

if TYPE_CHECKING:
    from stagelens.replaying.left_out import LeftOut

ESTIMATORS = (REPLAY, CoarseReplay.name)
"""What the model without training examples can be obtained by."""

_TWINS_SHARE = 0.5
"""Weight of the twins in effects by coarse replay: the mean of both read-outs was better than
either in most settings of whole stages."""


@dataclass(frozen=True)
class LeftOutRows:
    """Which training examples of a stage are left out, and how.

    Attributes:
        stage: Its name.
        ids: Of its examples, see :mod:`stagelens.runs.training_rows`.
        divisor: What the loss of what is left is divided by: ``rest`` or ``kept``.
    """

    stage: str
    ids: tuple[str, ...]
    divisor: Literal["rest", "kept"] = "rest"

    def settings_in(self, run: Run) -> dict[str, Any]:
        """What sets its counterfactual apart; the same in whatever order ids are given."""
        of = "".join((*example_key(run, self.stage), *rest_key(run, self.stage)))
        own = {"left_out": digest(sorted(self.ids)), "divisor": self.divisor}
        return {**own, "of": of} if of else own


def _estimator(run: Run, rows: LeftOutRows, name: str, settings: Mapping[str, Any]) -> Estimator:
    if name == REPLAY:
        if settings:
            raise Refused(f"replay does not take the setting {min(settings)}; omit it")
        return _ReplayWithout(rows, rows.settings_in(run))
    if name == CoarseReplay.name:
        return _CoarseWithout(rows, rows.settings_in(run), **settings)
    raise Refused(
        f"the model without some examples is obtained by {' or '.join(ESTIMATORS)}, and not by "
        f"{name}; to rank examples at no such cost, see stagelens contributions"
    )


class _ReplayWithout(Replay):
    def __init__(self, rows: LeftOutRows, settings: dict[str, Any]) -> None:
        super().__init__()
        self._left_out = rows
        self.settings = settings

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        from stagelens.replaying.left_out import check_without_rows, replay_without_rows

        (stage,) = stages
        check_without_rows(run, stage)
        trained = run.stages[stage.index :]
        overall = Progress(progress)
        listing, checking, replaying = (
            overall.part(*ends) for ends in ((0, 0.1), (0.1, 0.5), (0.5, 1))
        )
        places = _places(run, self._left_out, listing)
        checks = _checks(run, trained, checking)
        began = time.perf_counter()
        found = replay_without_rows(run, stage, places, self._left_out.divisor, replaying)
        trust, repeats = trust_in_replay(stage.name, trained, run.stages[stage.index + 1 :], checks)
        repeated = None
        if repeats:
            repeated = replay_without_rows(run, stage, {}, progress=replaying).state.model
        trust = _told(trust, stage, found.left_out)
        trust = trust.model_copy(update={"seconds": time.perf_counter() - began})
        yield Counterfactual(stage.name, found.state.model, trust, repeated=repeated, part=True)


class _CoarseWithout(CoarseReplay):
    def __init__(self, rows: LeftOutRows, own: dict[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._left_out = rows
        self._own = own
        self.settings = {**self.settings, **own}

    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        from stagelens.replaying.left_out import RowsOfStage

        from .coarse_twins import paired_replays

        (stage,) = stages
        if stage is run.last:
            # There is nothing that could be had more cheaply.
            for found in _ReplayWithout(self._left_out, self._own).counterfactuals(
                run, stages, progress
            ):
                told = {"estimator": self.name}
                yield replace(found, trust=found.trust.model_copy(update=told))
            return
        self.check(run, stages)
        overall = Progress(progress)
        listing, own, later = (overall.part(*ends) for ends in ((0, 0.1), (0.1, 0.6), (0.6, 1)))
        places = _places(run, self._left_out, listing)
        began = time.perf_counter()
        ended = RowsOfStage(run.task, stage, self._left_out.divisor).replay(places, own)
        taken = time.perf_counter() - began
        ends = {stage.name: ended.state}
        given = (run, [stage], self.budget, self.name, later, self.exact_stages)
        for found in paired_replays(*given, ends=ends):
            trust = found.trust
            if found.weights is not None:
                reason = (
                    f"The stage is replayed, and the later ones coarsely ({trust.reason} Of such "
                    "estimates for some examples of a stage no error is known)."
                )
                more: dict[str, Any] = {"reason": reason, "twins_share": _TWINS_SHARE}
                trust = _told(trust.model_copy(update=more), stage, ended.left_out)
            trust = trust.model_copy(update={"seconds": (trust.seconds or 0.0) + taken})
            yield replace(found, trust=trust, part=True)


def _places(run: Run, rows: LeftOutRows, progress: ProgressCallback) -> dict[int, set[int]]:
    return training_rows(run, run.stage(rows.stage), progress).places(rows.ids)


def _checks(run: Run, stages: Sequence[Stage], progress: ProgressCallback) -> dict[str, Any]:
    from .replay_check import check_replay

    overall = Progress(progress)
    return {
        stage.name: check_replay(run, stage, overall.piece(number, len(stages)))
        for number, stage in enumerate(stages)
    }


def _told(trust: StageTrust, stage: Stage, left_out: LeftOut) -> StageTrust:
    """The trust, with what leaving examples out did to those that are left."""
    said = []
    if left_out.normalised:
        said.append(
            f"BatchNorm ({left_out.normalised[0]}) computed with those of a batch that are left, "
            "so that these changed too."
        )
    if left_out.packed:
        said.append(_ACROSS[left_out.read])
    if left_out.other_draws:
        names = ", ".join(sorted(left_out.other_draws))
        said.append(
            f"Random numbers of those that are left are others than recorded ({names}), so part of "
            "the effect is chance."
        )
        trust = trust.model_copy(update={"trust": "estimated", "expected_error": None})
    objective = stage.facts.objective
    if objective is not None and objective.on_samples:
        said.append("Answers that were sampled, and what they earned, stayed as recorded.")
        trust = trust.model_copy(update={"on_samples": (stage.name, *trust.on_samples)})
    return trust.model_copy(update={"reason": " ".join([trust.reason, *said])})


_ACROSS = {
    None: "Documents share rows, and none that is left comes after one that is left out.",
    False: "Documents share rows and do not read one another, so that this is as if those left "
    "out had not been in them.",
    True: "Documents share rows: those left out stay there, out of the loss alone, and those that "
    "follow read them as they did.",
}
"""Whether documents that are left read those that are left out, in words."""


def without_rows(
    run: Run,
    rows: LeftOutRows,
    estimator: str = REPLAY,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressCallback = no_progress,
) -> Counterfactual:
    """The final model without some training examples of a stage; from disk where it was made.

    Args:
        run: The run.
        rows: Which.
        estimator: One of :data:`ESTIMATORS`.
        settings: Of the estimator, such as ``{"budget": 0.25}``.
        progress: Called for the work.

    Raises:
        Refused: It cannot be had; says why, and what to do.
        RunError: There is no such stage or example.
    """
    from stagelens.compute import devices, memory  # torch

    from .counterfactuals import check_final, told_of_samples
    from .replay_check import check_given
    from .stored_counterfactuals import keep, load

    stage = run.stage(rows.stage)
    training_rows(run, stage)  # what an example is there, is part of the key
    made = _estimator(run, rows, estimator, settings or {})
    stored = load(run, stage, made)
    if stored is not None:
        return told_of_samples(run, replace(stored, part=True))
    check_final(run)
    if devices.computing().type == "cpu":
        memory.check(made.memory(run.stages[stage.index :]), made.title)
    check_given(run)
    (found,) = made.counterfactuals(run, [stage], progress)
    return told_of_samples(run, replace(keep(run, stage, made, found), part=True))
