"""`logs` and `wait`, and staying with a job until it ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.exits import ExitCode, outcome_code
from graft_cli.options import AsJson, JobArgument, RedisUrl, Timeout, connect
from graft_cli.output import out
from graft_cli.progress import QuietView, View, progress_view

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.records import JobRecord

EXPLAIN_SECONDS = 5.0
"""A job that waits this long gets its reasons shown."""
TICK_SECONDS = 0.5


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Print a job's log."""
    with connect(redis_url) as client:
        job_id = client.get(job).id
        if follow and as_json:
            refuse_follow_json()
        elif as_json:
            out.json(list(client.log_lines(job_id)))
        elif not follow:
            print_log(client, job_id)
        else:
            follow_log(client, job_id)


def refuse_follow_json() -> None:
    """Raises `InvalidInput`: a document is whole, and a followed log is not."""
    from graft_scheduler.errors import InvalidInput

    raise InvalidInput("`--json` prints the log as one document, so it does not go with `--follow`")


def print_log(client: Client, job_id: str) -> None:
    """What the log holds now."""
    is_empty = True
    for line in client.log_lines(job_id):
        out.data(line)
        is_empty = False
    if is_empty:
        out.note("the log is empty so far")
        out.hint(f"`graft show {job_id}` tells the job's state, `graft logs -f {job_id}` waits for lines")


def follow_log(client: Client, job_id: str) -> None:
    """The log as it grows; leaves with the job."""
    try:
        for line in client.follow_log(job_id):
            out.data(line)
    except KeyboardInterrupt:
        raise detached(job_id) from None
    tell_outcome(client.get(job_id))


def wait(
    job: JobArgument, timeout: Timeout = None, as_json: AsJson = False, redis_url: RedisUrl = None
) -> None:
    """Wait until a job ends; the exit code says how."""
    with connect(redis_url) as client:
        watch_to_exit(client, client.get(job).id, with_progress=False, timeout=timeout, as_json=as_json)


def watch_to_exit(
    client: Client, job_id: str, *, with_progress: bool, timeout: float | None, as_json: bool
) -> None:
    """Stay until the job ends, and leave with the code of its outcome.

    Raises:
        NeverFits: no registered host can ever run it.
        TimeoutError: it took longer than `timeout`.
    """
    try:
        record = watch(client, job_id, progress_view() if with_progress else QuietView(), timeout)
    except KeyboardInterrupt:
        raise detached(job_id) from None
    if as_json:
        out.json(record.as_json())
    tell_outcome(record)
    if code := outcome_code(record):
        raise typer.Exit(code)


def watch(
    client: Client,
    job_id: str,
    view: View,
    timeout: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> JobRecord:
    """Show the job until it ends, and why it waits while it waits; `check` may raise meanwhile."""
    deadline = None if timeout is None else time.monotonic() + timeout
    changes = Changes(client, job_id)
    waiting = Waiting(client, job_id)
    record: JobRecord | None = None
    try:
        while record is None or not record.state.is_terminal:
            check()
            if deadline is not None and time.monotonic() > deadline:
                raise timed_out(client, job_id, timeout or 0)
            record = changes.take(TICK_SECONDS) or record
            if record is not None and not record.state.is_terminal:
                view.show(title_of(record), record.progress if record.state == "running" else None)
                waiting.look(record, view)
    finally:
        view.close()
    return record


class Changes:
    """The records of a job as they change, read by a thread, so that waiting can be interrupted."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._queue: queue.Queue[JobRecord | Exception] = queue.Queue()
        threading.Thread(target=self._read, args=(client, job_id), daemon=True).start()

    def _read(self, client: Client, job_id: str) -> None:
        try:
            for record in client.follow(job_id):
                self._queue.put(record)
        except Exception as error:  # raised again by `take`, where it can be handled
            self._queue.put(error)

    def take(self, timeout_seconds: float) -> JobRecord | None:
        """The next record, or nothing when none came in time."""
        try:
            one = self._queue.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if isinstance(one, Exception):
            raise one
        return one


class Waiting:
    """Explains a queued job: at once if it can never run, else once in a while when the reason is new."""

    def __init__(self, client: Client, job_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._job_id, self._clock = client, job_id, clock
        self._since = clock()
        self._next_look = 0.0
        self._said = ""

    def look(self, record: JobRecord, view: View) -> None:
        """Say what there is to say about a job that waits.

        Raises:
            NeverFits: no registered host can ever run it.
        """
        now = self._clock()
        if record.state.shown != "queued":
            self._since = now
            return
        if now < self._next_look:
            return
        self._next_look = now + EXPLAIN_SECONDS
        explanation = self._client.why(self._job_id)
        if explanation.never_fits:
            raise never_fits(self._job_id, [f"{one.host_name}: {one.reason}" for one in explanation.hosts])
        if now - self._since >= EXPLAIN_SECONDS and explanation.summary != self._said:
            self._said = explanation.summary
            view.say(f"waiting: {explanation.summary}")


def timed_out(client: Client, job_id: str, timeout: float) -> Exception:
    """The error for a job that did not end in time: it still waits for memory or a slot, or it runs."""
    from graft_scheduler.errors import DoesNotFit

    explanation = client.why(job_id)
    reasons = [f"{one.host_name}: {one.reason}" for one in explanation.hosts if one.is_full]
    if reasons and len(reasons) == len(explanation.hosts):
        return DoesNotFit(
            f"job {job_id} found no room within {timeout:g} s and waits on; {'; '.join(reasons)}"
        )
    return TimeoutError(f"job {job_id} did not end within {timeout:g} s; it goes on")


def never_fits(job_id: str, reasons: list[str]) -> Exception:
    """The error for a job that no registered host can ever run."""
    from graft_scheduler.errors import NeverFits

    listed = "".join(f"\n  {reason}" for reason in reasons)
    return NeverFits(
        f"no registered host can ever run job {job_id}; it stays queued for one that can{listed}\n"
        f"  `graft cancel {job_id}` takes it back"
    )


def detached(job_id: str) -> typer.Exit:
    """Ctrl-C: say that only the watching ended."""
    out.note()
    out.note(f"detached; job {job_id} goes on")
    out.hint(f"`graft logs -f {job_id}` follows it again, `graft cancel {job_id}` stops it")
    return typer.Exit(ExitCode.DETACHED)


def title_of(record: JobRecord) -> str:
    """What the job does while it has no progress to show."""
    if record.state == "running":
        return f"starting on {record.host_name}"
    return f"{record.state.shown}"


def tell_outcome(record: JobRecord) -> None:
    """How it ended, and what one may do next, on stderr."""
    from graft_cli.failures import remedy
    from graft_cli.train import summary

    match record.state.value:
        case "completed":
            out.note(f"job {record.id} completed" + (f": {summary(record.result)}" if record.result else ""))
            if record.adapter:
                out.hint(f"`graft pull {record.id}` brings the adapter")
        case "cancelled":
            out.note(f"job {record.id} was cancelled")
            if record.resume:
                out.hint(f"`graft retry {record.id}` goes on from its last checkpoint")
        case "failed" if record.failure:
            out.error(f"job {record.id} failed ({record.failure.failure}): {record.failure.text}")
            out.hint(remedy(record))
        case _:
            out.note(f"job {record.id} is {record.state.shown}")
