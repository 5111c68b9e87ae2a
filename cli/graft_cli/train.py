"""`graft train`: build a TrainJob and submit it, or run it right here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft_cli.exits import ExitCode
from graft_cli.job_options import takes_job
from graft_cli.options import AsJson, RedisUrl, Timeout, connect
from graft_cli.output import out
from graft_cli.plan import tell_plan

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.jobs import TrainJob
    from graft_scheduler.messages import TrainResult


@takes_job
def train(
    job: TrainJob,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code says which.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait, with a progress bar.")] = False,
    timeout: Timeout = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Train in this terminal, without a queue.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where --local puts the adapter.")
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Fine-tune a model: submit a job, and print its id."""
    if dry_run:
        tell_plan(job, redis_url, as_json=as_json)
    elif local:
        train_locally(job, output, as_json=as_json)
    elif output is not None:
        refuse_output()
    elif wait or follow:
        submit_and_watch(job, redis_url, with_progress=follow, timeout=timeout, as_json=as_json)
    else:
        submit(job, redis_url, as_json=as_json)


def submit(job: TrainJob, redis_url: str | None, *, as_json: bool) -> None:
    """Queue the job and say how to see more of it."""
    with connect(redis_url) as client:
        job_id = submitted(client, job)
        if as_json:
            out.json(client.get(job_id).as_json())
        else:
            out.data(job_id)
    out.hint(f"`graft logs -f {job_id}` follows it, `graft why {job_id}` says what it waits for")


def submitted(client: Client, job: TrainJob) -> str:
    """Queue the job, and say what its submitter should know; its id."""
    handle = client.submit(job)
    for note in handle.notes:
        out.warning(note)
    return handle.id


def submit_and_watch(
    job: TrainJob, redis_url: str | None, *, with_progress: bool, timeout: float | None, as_json: bool
) -> None:
    """Queue the job, stay until it ends, and leave with the code of its outcome."""
    from graft_cli.watching import watch_to_exit

    with connect(redis_url) as client:
        job_id = submitted(client, job)
        if not as_json:
            out.data(job_id)
        watch_to_exit(client, job_id, with_progress=with_progress, timeout=timeout, as_json=as_json)


def train_locally(job: TrainJob, output: Path | None, *, as_json: bool) -> None:
    """Train on this machine, in the foreground, with no service at all."""
    from graft_cli.interrupts import interrupts_noted
    from graft_cli.progress import LocalProgress
    from graft_scheduler.local import run_locally

    destination = output or Path("graft-local")
    try:
        with interrupts_noted() as came, LocalProgress(title=job.name or "training here") as progress:
            result = run_locally(job, destination, progress.take, came)
    except KeyboardInterrupt:
        has_checkpoint = any((destination.expanduser() / "checkpoints").glob("step-*"))
        goes_on = f"from the checkpoint in {destination}" if has_checkpoint else "from the start"
        out.note(f"stopped; the same command goes on {goes_on}")
        raise typer.Exit(ExitCode.DETACHED) from None
    out.note(summary(result))
    adapter = destination.expanduser().absolute() / "adapter"
    if as_json:
        out.json({"adapter": str(adapter), "result": result.model_dump(mode="json")})
    else:
        out.data(str(adapter))
    out.hint(f"graft generate -m {job.model.source} -a {adapter} -p 'your prompt'")


def refuse_output() -> None:
    """Raises `InvalidInput`: a queued job leaves its adapter in the store."""
    from graft_scheduler.errors import InvalidInput

    raise InvalidInput("`--output` goes with `--local`; `graft pull JOB` brings a queued job's adapter")


def summary(result: TrainResult) -> str:
    """What came of it, in one line."""
    from graft_cli.amounts import duration, perplexity, size

    parts: list[Any] = [f"trained {result.steps} steps in {duration(result.training_seconds)}"]
    if result.initial_loss is not None and result.final_loss is not None:
        parts.append(f"validation loss {result.initial_loss:.3f} → {result.final_loss:.3f}")
        parts.append(f"perplexity {perplexity(result.initial_loss)} → {perplexity(result.final_loss)}")
    if result.peak_memory_bytes:
        parts.append(f"peak memory {size(result.peak_memory_bytes)}")
    return "; ".join(parts)
