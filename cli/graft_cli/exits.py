"""Every exit code, and what leads to it. `docs/cli.md` shows the same table."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graft_scheduler.records import JobRecord


class ExitCode(IntEnum):
    """What `graft` leaves with."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    DOES_NOT_FIT = 5
    NEVER_FITS = 6
    CONFLICT = 7
    UNREACHABLE = 8
    JOB_FAILED = 20
    JOB_CANCELLED = 21
    JOB_OUT_OF_MEMORY = 22
    JOB_LOST = 23
    TIMED_OUT = 24
    DETACHED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.UNEXPECTED: "an unexpected error, or a required check of `graft validate` failed",
    ExitCode.USAGE: "wrong usage, a bad setting or bad data: nothing was queued",
    ExitCode.NOT_FOUND: "no such job, host or file",
    ExitCode.NOT_ALLOWED: "refused by a rule",
    ExitCode.DOES_NOT_FIT: (
        "no host has room now: the job waited for was not placed in time, or a planned one would wait"
    ),
    ExitCode.NEVER_FITS: "no registered host can ever run the job, queued or planned",
    ExitCode.CONFLICT: "the job, host or folder is not in a state that allows this",
    ExitCode.UNREACHABLE: "Redis or the store does not answer",
    ExitCode.JOB_FAILED: ("the job that was waited for failed, or what a host was asked to do with a model"),
    ExitCode.JOB_CANCELLED: "the job that was waited for was cancelled",
    ExitCode.JOB_OUT_OF_MEMORY: "the job that was waited for ran out of memory",
    ExitCode.JOB_LOST: "the job that was waited for lost its hosts too often",
    ExitCode.TIMED_OUT: "the waiting took longer than `--timeout`, or the job longer than its own limit",
    ExitCode.DETACHED: "Ctrl-C; a job that was being followed goes on",
}


def exit_code(error: BaseException) -> ExitCode:
    """The code for an error that reached the boundary."""
    from graft_scheduler import errors

    if isinstance(error, TimeoutError):
        return ExitCode.TIMED_OUT
    table: dict[type[errors.GraftError], ExitCode] = {
        errors.InvalidInput: ExitCode.USAGE,
        errors.NotFound: ExitCode.NOT_FOUND,
        errors.NotAllowed: ExitCode.NOT_ALLOWED,
        errors.NeverFits: ExitCode.NEVER_FITS,
        errors.DoesNotFit: ExitCode.DOES_NOT_FIT,
        errors.Conflict: ExitCode.CONFLICT,
        errors.Fenced: ExitCode.CONFLICT,
        errors.Unreachable: ExitCode.UNREACHABLE,
        errors.JobFailed: ExitCode.JOB_FAILED,
    }
    for kind, code in table.items():
        if isinstance(error, kind):
            return code
    return ExitCode.UNEXPECTED


def outcome_code(record: JobRecord) -> ExitCode:
    """The code for how a job ended, for the commands that wait."""
    from graft_scheduler.states import FailureClass, JobState

    if record.state is JobState.COMPLETED:
        return ExitCode.OK
    if record.state is JobState.CANCELLED:
        return ExitCode.JOB_CANCELLED
    if record.failure is None:
        return ExitCode.JOB_FAILED
    match record.failure.failure:
        case FailureClass.MEMORY:
            return ExitCode.JOB_OUT_OF_MEMORY
        case FailureClass.HOST:
            return ExitCode.JOB_LOST
        case FailureClass.TIMEOUT:
            return ExitCode.TIMED_OUT
        case _:
            return ExitCode.JOB_FAILED


def error_hint(error: BaseException) -> str | None:
    """The next thing to try after an error, where one thing is usual."""
    from graft_scheduler import errors

    match error:
        case errors.DoesNotFit():
            return "`graft hosts` shows who has how much memory"
        case errors.GraftError() | TimeoutError():
            return None
        case _:
            return "GRAFT_DEBUG=1 shows the traceback"
