"""Staying with a study until it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from graft_cli.exits import ExitCode
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.studies.record import StudyRecord

POLL_SECONDS = 1.0


def watch_to_exit(
    client: Client, name: str, *, tells_trials: bool, timeout: float | None, as_json: bool
) -> None:
    """Wait for the study's end, and leave with the code of its outcome; Ctrl-C leaves it to itself.

    Raises:
        TimeoutError: it has not ended in time; it goes on.
    """
    try:
        record = _watch(client, name, tells_trials=tells_trials, timeout=timeout)
    except KeyboardInterrupt:
        out.note(f"study {name} goes on; `graft study wait {name}` comes back to it")
        raise typer.Exit(ExitCode.DETACHED) from None
    if as_json:
        out.json(record.as_json())
    else:
        _tell_end(client, record)
    raise typer.Exit(code_of(record))


def code_of(record: StudyRecord) -> ExitCode:
    """The exit code for how a study ended."""
    from graft_scheduler.studies.record import StudyState

    codes = {StudyState.FINISHED: ExitCode.OK, StudyState.STOPPED: ExitCode.JOB_CANCELLED}
    return codes.get(record.state, ExitCode.JOB_FAILED)


def _watch(client: Client, name: str, *, tells_trials: bool, timeout: float | None) -> StudyRecord:
    from graft_cli.study_view import settings_text, trial_state, value_text, why_text
    from graft_scheduler.errors import Unreachable

    studies, told = client.studies, set[int]()
    deadline = None if timeout is None else time.monotonic() + timeout
    record = studies.get(name)
    while True:
        try:
            record, trials = studies.get(name), studies.trials(record)
        except Unreachable as error:
            out.warning(str(error))
            trials = []
        for trial in trials if tells_trials else []:
            if trial.state.is_finished() and trial.number not in told:
                told.add(trial.number)
                parts = (f"trial {trial.number} {trial_state(trial)}", value_text(trial))
                line = "  ".join([*parts, settings_text(trial, record), why_text(trial)])
                out.note(line.rstrip())
        if not record.state.is_at_work:
            return record
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"study {name} is still {record.state.value} after {timeout:g} s; it goes on")
        time.sleep(POLL_SECONDS)


def _tell_end(client: Client, record: StudyRecord) -> None:
    from graft_cli.study_view import count_text, settings_text, value_text

    studies = client.studies
    out.note(f"study {record.name} {record.state.value}: {count_text(studies.trials(record), record)}")
    if record.why:
        out.note(record.why)
    best = studies.best(record)
    if best is not None:
        out.note(f"best: trial {best.number}, {value_text(best)}, {settings_text(best, record)}")
        out.hint(
            f"`graft study best {record.name}` prints its settings, `graft study export` draws the study"
        )
