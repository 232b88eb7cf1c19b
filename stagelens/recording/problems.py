"""Whatever goes wrong with the recording of a stage: told once, while the training goes on."""

from __future__ import annotations

import warnings

from stagelens.compute import memory
from stagelens.contracts import RecordingError, RecordingWarning, StageLensError
from stagelens.runs.files import cannot_write


class Problems:
    """What is wrong with a stage: raised, or told in one warning.

    Args:
        stage: The stage's name.
        raises: Whether problems are raised (``on_problem="raise"``).

    Attributes:
        problem: Why the stage cannot be replayed; None if it can, as far as is known.
        lost: Why the stage has no boundaries either; None if it has.
        advice: Follows in messages of problems.
    """

    def __init__(self, stage: str, raises: bool) -> None:
        self.problem: str | None = None
        self.lost: str | None = None
        self.advice = ""
        self._stage, self._raises = stage, raises

    def costs_replay(self, error: Exception) -> bool:
        """Take what costs the stage its replay; whether that is news, to be told by :meth:`warn`.

        Raises:
            Exception: With ``on_problem="raise"``; and a warning that the user made an error.
        """
        self._raise(error)
        if self.problem is not None or self.lost is not None:
            return False
        self.problem = self._in_words(error)
        return True

    def costs_stage(self, error: Exception, what: str) -> bool:
        """Take what costs the stage its boundaries; whether that is news.

        Args:
            error: As it came.
            what: What became of the stage, "is not recorded".

        Raises:
            Exception: As :meth:`costs_replay`.
        """
        self._raise(error)
        if self.lost is not None:
            return False
        self.lost = f"stage {self._stage!r} {what}: {self._in_words(error)}"
        return True

    def warn(self) -> None:
        """Tell the newest of them."""
        if self.lost is not None:
            said = f"{self.lost}. The training goes on"
        else:
            said = (
                f"stage {self._stage!r} cannot be replayed: {self.problem}. The training goes on, "
                "and the stage keeps its boundaries, losses and learning rates"
            )
        warnings.warn(
            f'{said}; to stop here instead, record with on_problem="raise"',
            RecordingWarning,
            stacklevel=4,
        )

    def _raise(self, error: Exception) -> None:
        if isinstance(error, RecordingWarning):
            raise error
        if self._raises:
            raise self._with_advice(error) from error.__cause__

    def _with_advice(self, error: Exception) -> Exception:
        if self.advice and type(error) is RecordingError:
            return RecordingError(f"{error}. {self.advice}")
        return error

    def _in_words(self, error: Exception) -> str:
        return in_words(self._with_advice(error))


def in_words(error: Exception) -> str:
    """What is wrong, by name, and what to do about it.

    Args:
        error: Raised by StageLens, by code of the user's that it called, or by the system.
    """
    if isinstance(error, StageLensError):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if memory.ran_out(error):
        return (
            f"there was not enough memory to record it ({said}); keep fewer batches "
            '(keep_batches="none") or write them sooner (a smaller flush_every)'
        )
    if isinstance(error, OSError):
        return cannot_write(error.filename or "the run folder", error)
    return (
        f"StageLens failed while it recorded ({said}); the whole error is shown with "
        'on_problem="raise"'
    )
