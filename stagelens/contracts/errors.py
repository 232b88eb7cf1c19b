"""Errors and warnings that people can act on."""

from __future__ import annotations


class StageLensError(Exception):
    """An error that the user can fix. The message names the cause and what to do next."""


class RunError(StageLensError):
    """A run folder, or a file of it, is damaged, foreign or incomplete."""


class RecordingError(StageLensError):
    """A training loop does something that replay could not reproduce."""


class RecordingWarning(UserWarning):
    """A stage that is being recorded cannot be replayed; the message names the cause."""


class SetError(StageLensError):
    """An evaluation set cannot be read, or does not fit the run's task."""


class TaskError(StageLensError):
    """A task is not installed, or does not fit the model."""


class Refused(StageLensError):
    """An estimator declines to give a number that could not be trusted."""


class NotSeparable(Refused):
    """A loss that is no sum over examples; its steps still have contributions."""
