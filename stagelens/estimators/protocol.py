"""What an estimator is and what it returns. Nothing here imports torch: pages list estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stagelens.contracts import ProgressCallback
from stagelens.runs.run import Run, Stage

from .durations import Pace, seconds_without_each
from .stage_trust import StageTrust
from .travel import Travel

if TYPE_CHECKING:
    from stagelens.runs.states import Weights

METHOD = 9
"""Part of every result's key; raised when what all of them rest on changes."""


@dataclass(frozen=True)
class PartialReplay:
    """The model without a stage where the first of the later stages end, replayed exactly and not.

    Attributes:
        stage: The last of the stages that were replayed exactly.
        exact: The model at its end, by replay.
        cheap: The model at its end as it would have been estimated.
        error: Relative error of ``cheap`` in weights: its distance from ``exact``, over the
            distance of the recorded model from ``exact``.
    """

    stage: str
    exact: Weights
    cheap: Weights
    error: float


@dataclass(frozen=True)
class Twins:
    """Two cheap models whose difference sharpens an effect.

    Attributes:
        factual: Trained cheaply with the stage.
        counterfactual: Trained in the same cheap way without it.
        sampling: Relative error to expect from their small batches alone.
        travels: Their way through each later stage that was not replayed exactly, in training
            order.
        partial: Where the first of the later stages were replayed exactly, and cheaply as well.
    """

    factual: Weights
    counterfactual: Weights
    sampling: float = 0.0
    travels: tuple[Travel, ...] = ()
    partial: PartialReplay | None = None


@dataclass(frozen=True)
class Counterfactual:
    """The model as it would be without one stage.

    Attributes:
        stage: The stage that is left out.
        weights: The model, None where the estimator refused.
        trust: What is known of it, and what it cost.
        twins: Where the estimator has them.
        repeated: The final model that the same work gives with the stage, where this differs from
            the recorded one although it should not; None where it is the same bit for bit.
        derived_from: Recorded states that ``weights`` are computed from each time they are read,
            so caching them would only take room; empty where the estimator computed
            the weights itself.
        corrected: The model with what first order neglects put back, to second order; where the
            estimator knows it.
        part: Whether only some of the stage's training examples are left out, of which the
            calibration bench says nothing.
    """

    stage: str
    weights: Weights | None
    trust: StageTrust
    twins: Twins | None = None
    repeated: Weights | None = None
    derived_from: tuple[Weights, ...] = ()
    part: bool = False
    corrected: Weights | None = None


@dataclass(frozen=True)
class CoalitionModel:
    """The model in which only a coalition's stages happened.

    Attributes:
        mask: The coalition.
        stages: The same over single stages of the run.
        weights: The model, None where it was refused.
        trust: What is known of it; ``stage`` is the coalition in words.
        passes: Stages that were trained for it and for no coalition before it.
        twins: Where the estimator has them.
        repeated: As of a :class:`Counterfactual`.
    """

    mask: int
    stages: int
    weights: Weights | None
    trust: StageTrust
    passes: int = 0
    twins: Twins | None = None
    repeated: Weights | None = None


class Estimator(ABC):
    """A way to obtain counterfactuals: one file of this room, and one line in ``registry.py``.

    The class attributes are all that pages, the command line and verification know about it. They
    read them in processes that must not load torch, so an estimator's file imports torch, and the
    rooms that need it, only inside ``counterfactuals``.

    Attributes:
        name: As used in tables and on the command line.
        title: As used at the beginning of sentences.
        note: In brackets after the name in help texts; empty for none.
        preference: The higher, the better its numbers: of several tables the one with the highest
            is shown.
        free: Whether its counterfactuals cost next to nothing. Every process then
            computes them itself, where others are shared out over the processes of a job.
        helped: Whether its counterfactuals take long enough to be shared out over helper processes
            that a command starts by itself.
        automatic: Whether it may be chosen by default, where no estimator is named.
        proposed: Whether a verification includes it by default.
        budgets: Shares of the cost of replay that pages offer, by label; empty where it takes no
            budget.
        default_budget: The budget used by default; None where it takes none.
        revision: Raised when its numbers change, or what it promises of them: its stored results
            are then computed again, and those of other estimators are not.
        warns_cheaper: Whether its refusal of a stage casts doubt on cheaper estimates too.
        settings: Plain JSON that the counterfactuals depend on; part of the cache key.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str] = ""
    preference: ClassVar[int]
    free: ClassVar[bool] = False
    helped: bool = False
    automatic: ClassVar[bool] = False
    proposed: ClassVar[bool] = False
    budgets: ClassVar[Mapping[str, float]] = {}
    default_budget: ClassVar[float | None] = None
    revision: ClassVar[int] = 0
    warns_cheaper: ClassVar[bool] = False
    settings: Mapping[str, Any] = {}

    @property
    def in_step(self) -> bool:
        """Whether all processes of the job work on each counterfactual together."""
        return False

    def accepts(self, trust: StageTrust) -> bool:
        """Whether a stored counterfactual of this estimator does, by what is known of it."""
        return True

    @classmethod
    def default_settings(cls) -> dict[str, Any]:
        """The settings used where none are chosen."""
        return {} if cls.default_budget is None else {"budget": cls.default_budget}

    @classmethod
    def possible(cls, run: Run) -> bool:
        """Whether the recording allows it; reads no weights."""
        return True

    @classmethod
    def seconds(cls, stages: Sequence[Pace], settings: Mapping[str, Any]) -> float | None:
        """Expected seconds for the counterfactuals of all stages; by default as long as replay.

        This predicts the sum of ``StageTrust.seconds``, meant to be right within a factor of 1.5
        where steps were timed on this machine.

        Args:
            stages: What each stage of the run takes, in training order.
            settings: Its settings.

        Returns:
            Seconds; None where nothing says how long a stage takes.
        """
        return seconds_without_each(stages)

    @classmethod
    def memory(cls, later: Sequence[Stage]) -> int:
        """Bytes of memory that it takes at least; by default as much as replay.

        A replay holds a model and its optimiser's state while training, and returns copies of both.

        Args:
            later: The stages that are trained again.
        """
        return max((2 * stage.facts.end_bytes for stage in later), default=0)

    def prepare(  # noqa: B027 - most have nothing to prepare
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> None:
        """Do the work that counterfactuals share, before they are shared out over processes."""

    def unprepared(self, run: Run, stages: Sequence[Stage]) -> list[Stage]:
        """The stages whose part of :meth:`prepare` is still to be done, each by itself."""
        return []

    def prepare_stage(  # noqa: B027 - most have nothing to prepare
        self, run: Run, stage: Stage, progress: ProgressCallback
    ) -> None:
        """Do the part of :meth:`prepare` that is of one stage."""

    @abstractmethod
    def counterfactuals(
        self, run: Run, stages: Sequence[Stage], progress: ProgressCallback
    ) -> Iterator[Counterfactual]:
        """The models without each of ``stages``, in any order; the last stage is never requested.

        Several stages are requested at once, so that they can share work.

        Raises:
            Refused: None of them can be computed; says why and what to use instead.
        """
