"""The `graft` command: which verbs there are, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from graft_cli import (
    adapter,
    collecting,
    compare,
    control,
    dashboard,
    data,
    demo,
    export,
    fuse,
    generate,
    hosts,
    installation,
    listing,
    models,
    plan,
    processes,
    profile,
    push_hub,
    study,
    train,
    tune,
    up,
    validate,
    watching,
)
from graft_cli.exits import error_hint, exit_code
from graft_cli.output import out

app = typer.Typer(
    name="graft",
    help="Fine-tune language models on the Macs of a team: jobs wait in Redis and run where they fit.",
    epilog="docs/cli.md lists every command and exit code. Start with `graft demo` or `graft up`.",
    # Rich help costs twice the CPU time of plain help.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(train.train)
app.command()(plan.plan)
app.command()(compare.compare)
app.command("ps")(listing.ps)
app.command()(listing.show)
app.command()(listing.why)
app.command()(watching.logs)
app.command()(watching.wait)
app.command()(control.cancel)
app.command()(control.pause)
app.command()(control.resume)
app.command()(control.retry)
app.command()(control.pull)
app.add_typer(adapter.app, name="adapter")
app.command()(generate.generate)
app.command()(fuse.fuse)
app.command()(export.export)
app.command("push-hub")(push_hub.push_hub)
app.command()(profile.profile)
app.command()(tune.tune)
app.add_typer(study.app, name="study")
app.command()(dashboard.dashboard)
app.add_typer(data.app, name="data")
app.add_typer(hosts.app, name="hosts")
app.add_typer(models.app, name="model")
app.command()(demo.demo)
app.command()(up.up)
app.command()(processes.worker)
app.command()(processes.scheduler)
app.command()(processes.flower)
app.command()(processes.gateway)
app.command()(collecting.gc)
app.command()(validate.validate)
app.command()(installation.info)
app.command()(installation.config)
app.command()(installation.version)


@app.callback(invoke_without_command=True)
def graft(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        installation.version(as_json=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.data(context.get_help())


def run() -> None:
    """Run the command line; errors become one line, a hint and an exit code."""
    try:
        app(prog_name="graft")
    except Exception as error:
        sys.exit(report(error))


def report(error: Exception) -> int:
    """Say what went wrong, for a person, and return the exit code."""
    if os.environ.get("GRAFT_DEBUG"):
        import traceback

        traceback.print_exception(error)
    from graft_cli.children import ServiceFailed
    from graft_scheduler.errors import GraftError

    expected = isinstance(error, GraftError | TimeoutError | ServiceFailed)
    out.error(str(error) if expected else f"{type(error).__name__}: {error}")
    if hint := error_hint(error):
        out.hint(hint)
    return exit_code(error)
