"""`ps`, `show` and `why`: what runs, what waits, and what is known of one job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.amounts import age
from graft_cli.options import AsJson, JobArgument, Png, RedisUrl, connect
from graft_cli.output import out
from graft_cli.progress import position

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.reader import Explanation
    from graft_scheduler.records import JobRecord

HEADER = ("JOB", "NAME", "STATE", "HOST", "PROGRESS", "WHO", "SUBMITTED")
NAME, HOST, PROGRESS, WHO = 1, 3, 4, 5
MOST_REASONS = 5
"""Reasons are worked out for at most this many waiting jobs of a list."""


def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Ended jobs too, without a limit.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    mine: Annotated[bool, typer.Option("--mine", help="Only my own.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Only jobs that have not ended.")] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """List the jobs: live ones first, then the newest that ended."""
    with connect(redis_url) as client:
        records = client.jobs(
            live_only=live, submitter=_myself() if mine else None, limit=1_000_000 if everything else limit
        )
        if as_json:
            out.json([record.as_json() for record in records])
            return
        reasons = _reasons(client, records)
    if records:
        rows = [_row(record, reasons.get(record.id, "")) for record in records]
        out.table(HEADER, rows, shrink=(NAME, HOST, PROGRESS, WHO))
    else:
        out.note("no jobs")
        out.hint("`graft train --model ... --data ...` submits one")


def show(
    job: JobArgument,
    memory: Annotated[
        bool, typer.Option("--memory", help="Its memory instead: predicted, measured, and over time.")
    ] = False,
    png: Png = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Print everything known of a job."""
    from graft_cli.description import describe
    from graft_cli.memory_report import report_memory

    if png is not None and not memory:
        refuse_png()
    with connect(redis_url) as client:
        record = client.get(job)
        events = client.events(record.id)
        names = client.adapters.names_of(record.id)
    if memory:
        report_memory(record, events, png, as_json=as_json)
    elif as_json:
        from dataclasses import asdict

        tags = [tag.model_dump(mode="json") for tag in names]
        out.json({**record.as_json(), "tags": tags, "events": [asdict(event) for event in events]})
    else:
        describe(record, events, names)


def refuse_png() -> None:
    """Raises `InvalidInput`: there is a picture of memory only."""
    from graft_scheduler.errors import InvalidInput

    raise InvalidInput("`--png` goes with `--memory`, of which it is a picture")


def why(job: JobArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Say what a job waits for, host by host."""
    with connect(redis_url) as client:
        record = client.get(job)
        explanation = client.why(record.id)
    if as_json:
        hosts = [
            {"host": one.host_name, "reason": one.reason, "fits_ever": one.fits_ever}
            for one in explanation.hosts
        ]
        out.json(
            {
                "job": record.id,
                "summary": explanation.summary,
                "never_fits": explanation.never_fits,
                "scheduler_alive": explanation.scheduler_alive,
                "hosts": hosts,
            }
        )
        return
    out.data(explanation.summary)
    if explanation.hosts:
        out.table(("HOST", "REASON"), [(one.host_name, one.reason) for one in explanation.hosts])
    if not explanation.scheduler_alive:
        out.hint("no scheduler runs; `graft scheduler` or `graft up` starts one")
    elif explanation.never_fits:
        out.hint(f"`graft cancel {record.id}` takes it back")


def progress_of(record: JobRecord) -> str:
    """How far a job is, or how it ended, in a few words."""
    if record.failure and record.state == "failed":
        return f"{record.failure.failure}: {record.failure.text}"
    if record.result and record.result.final_loss is not None:
        return f"loss {record.result.final_loss:.3f}"
    if record.progress is None:
        return ""
    loss = f"loss {record.progress.loss:.3f}" if record.progress.loss is not None else ""
    return " ".join(part for part in (position(record.progress).removeprefix("step "), loss) if part)


def _row(record: JobRecord, reason: str) -> tuple[str, ...]:
    return (
        record.id,
        record.spec.name or record.spec.kind,
        record.state.shown,
        record.host_name or "-",
        reason or progress_of(record) or "-",
        record.spec.submitter,
        age(time.time() - record.submitted_at),
    )


def _reasons(client: Client, records: list[JobRecord]) -> dict[str, str]:
    waiting = [record.id for record in records if record.state == "queued"]
    return {job_id: _short_reason(client.why(job_id)) for job_id in waiting[:MOST_REASONS]}


def _short_reason(explanation: Explanation) -> str:
    """With a single host, what it lacks says more than the summary."""
    if explanation.scheduler_alive and len(explanation.hosts) == 1:
        return f"{explanation.hosts[0].host_name}: {explanation.hosts[0].reason}"
    return explanation.summary


def _myself() -> str:
    from graft_scheduler.jobs import current_user

    return current_user()
