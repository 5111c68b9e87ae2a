"""`graft compare`: one fine-tune in several variants, side by side, and which of them to take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.compare_report import print_comparison
from graft_cli.exits import ExitCode, outcome_code
from graft_cli.job_options import takes_job_unless
from graft_cli.options import AsJson, RedisUrl, Timeout, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.client import Client
    from graft_scheduler.comparison import ComparisonHandle
    from graft_scheduler.jobs import TrainJob


@takes_job_unless("show")
def compare(
    job: TrainJob | None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="VARIANT",
            help="A method, settings, or both, such as qlora, dora,rank=16 or 'small: lora,rank=4'; "
            "repeatable; default: every method.",
        ),
    ] = None,
    show: Annotated[
        str | None, typer.Option("--show", metavar="NAME", help="Show a comparison that is there instead.")
    ] = None,
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="Stay until all jobs have ended; default: not with --show."),
    ] = None,
    timeout: Timeout = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it as a picture too, a PNG (needs matplotlib)."),
    ] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Compare methods: the same data and budget by each, as jobs across the fleet."""
    stays = wait if wait is not None else show is None
    check_options(variant, show, plot, stays=stays)
    with connect(redis_url) as client:
        if show is not None:
            handle = client.comparison(show)
        else:
            assert job is not None  # there is one wherever `--show` is not given
            handle = submit(client, job, variant or [])
        if stays:
            watch_to_exit(handle, timeout, plot, as_json=as_json)
        elif show is not None:
            print_comparison(handle.look(), plot, as_json=as_json)
        else:
            tell_submitted(handle, as_json=as_json)


def check_options(variants: list[str] | None, show: str | None, plot: Path | None, *, stays: bool) -> None:
    """Refuse what does not go together, and a picture that could not be drawn, before anything is queued.

    Raises:
        InvalidInput: names the option.
    """
    from graft_cli.comparison_plot import check_drawable
    from graft_scheduler.errors import InvalidInput

    if show is not None and variants:
        raise InvalidInput("`--variant` is for a new comparison, and `--show` is about one that is there")
    if plot is None:
        return
    if show is None and not stays:
        raise InvalidInput("`--plot` has nothing to draw with `--no-wait`; it goes with `--show` later")
    check_drawable(plot)


def submit(client: Client, job: TrainJob, variants: list[str]) -> ComparisonHandle:
    """Queue the jobs, and say what they are."""
    handle = client.compare(job, variants)
    for note in handle.notes:
        out.note(note)
    jobs = ", ".join(f"{row.variant} {row.job}" for row in handle.rows())
    out.note(f"comparison {handle.name}: {len(handle.jobs)} jobs: {jobs}")
    return handle


def tell_submitted(handle: ComparisonHandle, *, as_json: bool) -> None:
    """Its name on stdout, and how to see more of it."""
    if as_json:
        out.json(handle.look().as_json())
    else:
        out.data(handle.name)
    out.hint(f"`graft compare --show {handle.name}` shows what there is; with `--wait` it stays to the end")


def watch_to_exit(
    handle: ComparisonHandle, timeout: float | None, plot: Path | None, *, as_json: bool
) -> None:
    """Stay until every job has ended, print what came of them, and leave with the code of their outcome.

    Raises:
        TimeoutError: one took longer than `timeout`; what there is was printed.
    """
    from graft_cli.compare_watching import watch

    try:
        stuck = watch(handle, timeout)
    except KeyboardInterrupt:
        raise detached(handle.name) from None
    except TimeoutError:
        print_comparison(handle.look(), plot, as_json=as_json)
        raise
    print_comparison(handle.look(), plot, as_json=as_json)
    if code := code_of(handle, is_stuck=bool(stuck)):
        raise typer.Exit(code)


def code_of(handle: ComparisonHandle, *, is_stuck: bool) -> ExitCode:
    """That of the first job that did not complete; a job that can never run has code 6."""
    from graft_scheduler.states import JobState

    for record in handle.records():
        if record.state.is_terminal and record.state is not JobState.COMPLETED:
            return outcome_code(record)
    return ExitCode.NEVER_FITS if is_stuck else ExitCode.OK


def detached(name: str) -> typer.Exit:
    """Ctrl-C: say that only the watching ended."""
    out.note()
    out.note(f"detached; the jobs of comparison {name} go on")
    out.hint(f"`graft compare --show {name} --wait` watches them again, `graft cancel JOB` stops one")
    return typer.Exit(ExitCode.DETACHED)
