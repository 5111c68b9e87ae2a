"""What a handler sees of the outside: where to report, and whether it was asked to stop."""

from __future__ import annotations

from typing import Protocol

from graft_scheduler.messages import RunnerMessage
from graft_scheduler.states import FailureClass, StopReason


class Link(Protocol):
    """A runner's pipe to its supervisor, or a local caller without one."""

    def report(self, message: RunnerMessage) -> None:
        """Tell; never blocks for long and never raises."""

    def stop_reason(self) -> StopReason | None:
        """Why to stop at the next safe point; nothing while the job may go on."""

    def shrink_requested(self) -> bool:
        """Whether to compute less at once from here on; true once for each request."""


class JobError(Exception):
    """A job that cannot go on, with the class that decides what follows."""

    def __init__(self, failure: FailureClass, text: str) -> None:
        super().__init__(failure, text)
        self.failure = failure
        self.text = text

    def __str__(self) -> str:
        return self.text
