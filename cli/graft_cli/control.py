"""`cancel`, `pause`, `resume`, `retry` and `pull`: what a person does to a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.options import AsJson, JobArgument, RedisUrl, StoreUrl, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.records import JobRecord


def cancel(job: JobArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Cancel a job; a running one saves a checkpoint first."""
    with connect(redis_url) as client:
        record = client.cancel(job)
    tell_job(record, as_json=as_json)
    if record.state.is_terminal:
        out.note(f"job {record.id} is {record.state.shown}")
    else:
        out.note(f"job {record.id} stops at its next step, with a checkpoint")
    out.hint(f"`graft retry {record.id}` goes on with it later")


def pause(job: JobArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Take a job out of the queue; a running one saves a checkpoint and gives its host back."""
    from graft_scheduler.states import JobState

    with connect(redis_url) as client:
        record = client.pause(job)
    tell_job(record, as_json=as_json)
    if record.state is JobState.PAUSED:
        out.note(f"job {record.id} is paused")
    else:
        out.note(f"job {record.id} pauses at its next step, with a checkpoint")
    out.hint(f"`graft resume {record.id}` lets it go on")


def resume(job: JobArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Queue a paused job again.

    It goes on from its last checkpoint.
    """
    with connect(redis_url) as client:
        record = client.resume(job)
    tell_job(record, as_json=as_json)
    out.hint(f"`graft logs -f {record.id}` follows it")


def retry(job: JobArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Queue a failed or cancelled job again.

    It goes on from its last checkpoint.
    """
    with connect(redis_url) as client:
        record = client.retry(job)
    tell_job(record, as_json=as_json)
    out.hint(f"`graft logs -f {record.id}` follows it")


def pull(
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: adapters/JOB.")
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Bring a completed job's adapter here, and print its folder."""
    with connect(redis_url, store_url=store_url) as client:
        record = client.get(job)
        folder = client.pull(record.id, output or Path("adapters") / record.id)
    if as_json:
        out.json({"job": record.id, "adapter": str(folder)})
    else:
        out.data(str(folder))
    if record.spec.kind == "train":
        out.hint(f"graft generate -m {record.spec.model.source} -a {folder} -p 'your prompt'")


def tell_job(record: JobRecord, *, as_json: bool) -> None:
    """The job on stdout: its id, or its record."""
    if as_json:
        out.json(record.as_json())
    else:
        out.data(record.id)
