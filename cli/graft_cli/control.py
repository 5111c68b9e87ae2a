"""`cancel`, `pause`, `resume`, `retry` and `pull`: what a person does to a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.adapter import which_of
from graft_cli.options import (
    AdapterArgument,
    AsJson,
    CheckpointOption,
    JobArgument,
    RedisUrl,
    StoreUrl,
    connect,
)
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
    job: AdapterArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: adapters/NAME.")
    ] = None,
    checkpoint: CheckpointOption = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="All of a checkpoint: also what is for going on from it.")
    ] = False,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Bring an adapter here, and print its folder.

    With `--checkpoint` also that of a job that still runs, failed or was cancelled.
    """
    which = which_of(checkpoint)
    with connect(redis_url, store_url=store_url) as client:
        found = client.adapters.find(job, which)
        name = job if job in found.tags else found.job
        folder = output or Path("adapters") / (name if which is None else f"{name}-step-{found.step}")
        client.pull(job, folder, found.step if which is not None else None, whole=whole)
        base = client.adapters.base_of(found)
    if as_json:
        out.json({"job": found.job, "adapter": str(folder), "what": found.what, "step": found.step})
    else:
        out.data(str(folder))
    if base:
        out.hint(f"graft generate -m {base} -a {folder} -p 'your prompt'")


def tell_job(record: JobRecord, *, as_json: bool) -> None:
    """The job on stdout: its id, or its record."""
    if as_json:
        out.json(record.as_json())
    else:
        out.data(record.id)
