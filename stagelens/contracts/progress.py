"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[float, str], None]
"""Called with the share done so far, 0 to 1, and what is being done now."""


class Progress:
    """A listener that can be split, so that parts of the work report progress of the whole.

    Args:
        report: The listener; None to drop all reports.
    """

    def __init__(self, report: ProgressCallback | None = None) -> None:
        self._report = report

    def __call__(self, done: float, text: str) -> None:
        """Report the share done so far, 0 to 1, and what is being done now."""
        if self._report is not None:
            self._report(done, text)

    def part(self, start: float, stop: float, prefix: str = "") -> Progress:
        """The listener of a part, whose 0 is ``start`` of the whole and whose 1 is ``stop``.

        Args:
            start: Share of the whole that is done when the part begins.
            stop: Share that is done when it ends.
            prefix: Put before what the part says.
        """

        def tell(done: float, text: str) -> None:
            self((1 - done) * start + done * stop, prefix + text)  # exact at both ends

        return Progress(tell)

    def piece(self, number: int, count: int, prefix: str = "") -> Progress:
        """The listener of one of ``count`` equal parts, numbered from 0."""
        return self.part(number / count, (number + 1) / count, prefix)


no_progress = Progress()
"""A listener that does nothing."""
