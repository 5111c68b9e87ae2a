"""`graft train`: build a TrainJob and submit it, or run it right here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft_cli.exits import ExitCode
from graft_cli.options import AsJson, RedisUrl, Timeout, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.jobs import TrainJob
    from graft_scheduler.messages import TrainResult


def train(
    model: Annotated[
        str | None, typer.Option("--model", "-m", "--model-path", help="Base model: a folder or a hub id.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A JSONL file, or a folder with train.jsonl.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="How to adapt the base: lora, qlora, dora or full; default: lora.")
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Rank of the adapters, or auto to find it; default: 8."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Adapter strength as alpha / rank.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", "--learning-rate", help="Peak learning rate; default: 1e-4.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; default: 1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step; default: 8.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest row in tokens; default: 2048.")] = None,
    layers: Annotated[int | None, typer.Option(help="Adapt only the last N blocks.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random; default: 0.")] = None,
    grad_checkpoint: Annotated[
        bool | None, typer.Option("--grad-checkpoint", help="Less memory for more time.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 (most urgent) to 9; default: 5.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of a job, such as optimizer.name=sgd."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Settings in TOML, JSON or YAML, Graft's or mlx-lm's."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code says which.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait, with a progress bar.")] = False,
    timeout: Timeout = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this terminal, without a queue.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where --local puts the adapter.")
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Fine-tune a model: submit a job, and print its id."""
    from graft_cli.train_settings import build_job, parse_labels, parse_rank

    flags = {
        "model": model,
        "data": data,
        "method": method,
        "adapter.rank": parse_rank(rank),
        "adapter.alpha": alpha,
        "adapter.layers": layers,
        "optimizer.learning_rate": learning_rate,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "max_length": max_length,
        "seed": seed,
        "gradient_checkpointing": grad_checkpoint,
        "name": name,
        "priority": priority,
        "labels": parse_labels(label or ()),
    }
    job = build_job(config, flags, settings or ())
    if local:
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
        job_id = client.submit(job).id
        if as_json:
            out.json(client.get(job_id).as_json())
        else:
            out.data(job_id)
    out.hint(f"`graft logs -f {job_id}` follows it, `graft why {job_id}` says what it waits for")


def submit_and_watch(
    job: TrainJob, redis_url: str | None, *, with_progress: bool, timeout: float | None, as_json: bool
) -> None:
    """Queue the job, stay until it ends, and leave with the code of its outcome."""
    from graft_cli.watching import watch_to_exit

    with connect(redis_url) as client:
        job_id = client.submit(job).id
        if not as_json:
            out.data(job_id)
        watch_to_exit(client, job_id, with_progress=with_progress, timeout=timeout, as_json=as_json)


def train_locally(job: TrainJob, output: Path | None, *, as_json: bool) -> None:
    """Train on this machine, in the foreground, with no service at all."""
    from graft_cli.progress import LocalProgress
    from graft_scheduler.local import run_locally

    destination = output or Path("graft-local")
    try:
        with LocalProgress(title=job.name or "training here") as progress:
            result = run_locally(job, destination, progress.take)
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
