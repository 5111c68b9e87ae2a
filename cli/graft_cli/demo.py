"""`graft demo`: one real fine-tune through the whole service, with every step explained."""

from __future__ import annotations

import math
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli import samples
from graft_cli.exits import ExitCode, outcome_code
from graft_cli.output import cut, out

if TYPE_CHECKING:
    from graft_cli.local_service import LocalOptions, LocalService
    from graft_scheduler.jobs import TrainJob
    from graft_scheduler.records import JobRecord

STEPS = 6
ANSWER_TOKENS = 40
ANSWER_SECONDS = 120.0
LOG_LINES = 15
QUOTE_WIDTH = 58
SHOWN_LETTERS = 240


def demo(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another base: a folder or a hub id.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Train for so many steps.")] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Work in DIR and leave everything there.")
    ] = None,
) -> None:
    """Show the service at work: one fine-tune, step by step.

    It runs on this machine alone, needs no network, and takes about two minutes.
    """
    from graft_cli.generate import require_mlx

    require_mlx()
    job = demo_job(model or str(samples.base_model()), steps)
    try:
        with work_folder(keep) as folder:
            run(job, folder)
    except KeyboardInterrupt:
        out.note("stopped before its end")
        raise typer.Exit(ExitCode.DETACHED) from None
    out.note()
    out.hint("`graft up` starts a service that stays; README.md goes on from there")


def run(job: TrainJob, folder: Path) -> None:
    """The steps, one after another."""
    from graft_cli.local_service import LocalService

    out.note("Graft demo: one LoRA fine-tune through the whole service, on this machine")
    step(1, "Start Redis, the scheduler, a worker and Flower, as `graft up` does")
    with LocalService(options(folder), say) as service:
        tell_places(service)
        record = submit_and_follow(service, job)
        tell_losses(record)
        adapter = fetch(service, record)
        compare(job, adapter)
        say()
        say("Stopping everything")


def demo_job(base: str, steps: int | None) -> TrainJob:
    """The job that the demo submits.

    Raises:
        InvalidInput: a value that cannot work.
    """
    from graft_scheduler.job_settings import build_train_job

    data = str(samples.data_folder())
    settings = {**samples.SETTINGS, **({"steps": steps} if steps else {})}
    return build_train_job({"model": base, "data": data, "name": "demo", **settings})


def options(folder: Path) -> LocalOptions:
    """A service of its own: nothing of the person's settings may lead it elsewhere."""
    from graft_cli.local_service import LocalOptions
    from graft_scheduler.settings import load_settings

    flags = {
        "data_dir": folder,
        "store_url": (folder / "store").as_uri(),
        "host_name": "demo-worker",
        "flower_address": "127.0.0.1",
    }
    return LocalOptions(load_settings(flags), ephemeral=True, with_gateway=False)


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    """The demo's own data folder, removed at the end unless somebody wants it."""
    if keep is not None:
        yield keep.expanduser().absolute()
        return
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="graft-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tell_places(service: LocalService) -> None:
    """Where to look on while it runs."""
    from graft_cli.processes import flower_url, graft_command

    say(f"Redis:  {service.settings.redis_url} ({service.redis_kind})")
    say(f"Flower: {flower_url(service.settings)}")
    say(f"        user {service.settings.flower_user}, password {service.flower_password}")
    say("To look on from a second terminal:")
    say(f"    export GRAFT_DATA_DIR={service.settings.data_dir}")
    say(f"    {graft_command()} ps")


def submit_and_follow(service: LocalService, job: TrainJob) -> JobRecord:
    """Queue the job and watch it end; leaves when it did not complete."""
    from graft_cli.progress import progress_view
    from graft_cli.watching import tell_outcome, watch

    step(2, f"Submit a LoRA job of rank {job.adapter.rank} to the queue")
    say(f"base model: {job.model.source}")
    say(f"data:       {job.data.source}")
    with service.client() as client:
        job_id = client.submit(job).id
        say(f"job:        {job_id}")
        step(3, "The scheduler places it, the worker trains it in a process of its own")
        record = watch(client, job_id, progress_view(), check=service.children.check)
        if code := outcome_code(record):
            tell_outcome(record)
            for line in deque(client.log_lines(job_id), LOG_LINES):
                say(line)
            raise typer.Exit(code)
    return record


def tell_losses(record: JobRecord) -> None:
    """What training did to the loss on rows that it never saw."""
    from graft_cli.amounts import duration

    step(4, "Compare the loss on held-out rows")
    result = record.result
    if result is None or result.initial_loss is None or result.final_loss is None:
        say("the job left no validation losses")
        return
    say(f"trained {result.steps} steps in {duration(result.training_seconds)}")
    before, after = math.exp(result.initial_loss), math.exp(result.final_loss)
    say(f"validation perplexity: {before:.2f} before, {after:.2f} after (1 would be certainty)")


def fetch(service: LocalService, record: JobRecord) -> Path:
    """Bring the adapter out of the store."""
    from graft_cli.amounts import size

    with service.client() as client:
        adapter = client.pull(record.id, service.settings.data_dir / "adapters" / record.id)
    files = sorted(adapter.iterdir())
    step(5, "Fetch the adapter from the store, as `graft pull` does")
    for file in files:
        say(f"{file.name:<22} {size(file.stat().st_size)}")
    return adapter


def compare(job: TrainJob, adapter: Path) -> None:
    """One question that was held out, answered without and with the adapter."""
    question = samples.SHOWCASE
    base, adapted = answers(job.model.source, question.prompt, adapter)
    step(6, "Ask both the same held-out question, as `graft generate` does")
    quote("question", question.prompt)
    quote("base alone", base)
    quote("with adapter", adapted)
    quote("right answer", question.expected)


def answers(model: str, prompt: str, adapter: Path) -> tuple[str, str]:
    """The base's answer and the adapter's, worked out side by side."""
    from graft_cli.generate import generate_command

    running = [
        subprocess.Popen(
            generate_command(model, prompt, folder, max_tokens=ANSWER_TOKENS, temperature=0.0, seed=0),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in (None, adapter)
    ]
    base, adapted = (_answer(process) for process in running)
    return base, adapted


def step(number: int, title: str) -> None:
    """The heading of a step."""
    out.note()
    out.note(f"[{number}/{STEPS}] {title}")


def say(text: str = "") -> None:
    """A line under a heading."""
    out.note(f"      {text}" if text else "")


def quote(who: str, text: str) -> None:
    """What somebody said, folded, with its name before it."""
    import textwrap

    shown = cut(" ".join(text.split()), SHOWN_LETTERS)
    first, *more = textwrap.wrap(shown, QUOTE_WIDTH) or ["(nothing)"]
    say(f"{who + ':':<14}{first}")
    for line in more:
        say(f"{'':<14}{line}")


def _answer(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=ANSWER_SECONDS)
    if process.returncode:
        lines = stderr.strip().splitlines() or ["no reason given"]
        return f"(failed: {lines[-1]})"
    return stdout
