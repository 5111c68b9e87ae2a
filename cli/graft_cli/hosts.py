"""`graft hosts`: who may run jobs, and taking a host out or back in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from graft_cli.amounts import age, size
from graft_cli.asking import confirmed
from graft_cli.models import short
from graft_cli.options import AsJson, RedisUrl, connect
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.records import HostRecord

app = typer.Typer(help="List the hosts, or take one out of service.", rich_markup_mode=None)

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="The host's name or id.")]
EVENT_PARTS = ("action", "model", "text")
HEADER = ("NAME", "STATE", "DEVICE", "MEMORY", "SLOTS", "JOBS", "SEEN")


@app.callback(invoke_without_command=True)
def hosts(context: typer.Context, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List the hosts: memory promised to jobs and in all, slots, jobs, state."""
    if context.invoked_subcommand is not None:
        return
    with connect(redis_url) as client:
        records = client.hosts()
    if as_json:
        out.json([record.as_json() for record in records])
    elif records:
        out.table(HEADER, [_row(record) for record in records], shrink=(0, 2, 5))
    else:
        out.note("no host has registered yet")
        out.hint("`graft worker` on a machine makes it a host; `graft up` starts everything on this one")


@app.command()
def drain(host: HostArgument, redis_url: RedisUrl = None) -> None:
    """Let a host finish what it runs, and give it nothing new."""
    with connect(redis_url) as client:
        record = client.set_draining(host, True)
    out.note(f"{record.info.name} gets no new jobs; it still has {len(record.jobs)}")
    out.hint(f"`graft hosts undrain {record.info.name}` takes it back in")


@app.command()
def undrain(host: HostArgument, redis_url: RedisUrl = None) -> None:
    """Give a drained host jobs again."""
    with connect(redis_url) as client:
        record = client.set_draining(host, False)
    out.note(f"{record.info.name} gets jobs again")


@app.command()
def uncordon(host: HostArgument, redis_url: RedisUrl = None) -> None:
    """Trust a host again that failed too many jobs."""
    with connect(redis_url) as client:
        client.uncordon(host)
    out.note(f"{host} gets jobs again")


@app.command()
def forget(
    host: HostArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    redis_url: RedisUrl = None,
) -> None:
    """Remove a host that will not come back."""
    if not yes and not confirmed(f"Forget host {host}?"):
        raise typer.Exit
    with connect(redis_url) as client:
        client.forget_host(host)
    out.note(f"{host} is forgotten; a worker that starts there registers again")


@app.command()
def events(host: HostArgument, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Say what became of a host's models: asked for, fetched, removed, failed."""
    with connect(redis_url) as client:
        found = client.models.events(host)
    if as_json:
        out.json([{"at": one.at, "name": one.name, **one.data} for one in found])
        return
    rows = [
        (age(time.time() - one.at), one.name, action, short(model), text)
        for one in found
        for action, model, text in [[str(one.data.get(part, "")) for part in EVENT_PARTS]]
    ]
    out.table(("AT", "EVENT", "ORDER", "MODEL", "DETAIL"), rows, shrink=(3, 4))


def state_of(record: HostRecord) -> str:
    """One word for what a host may do."""
    if not record.is_alive:
        return "away"
    if record.is_cordoned:
        return "cordoned"
    return "draining" if record.is_draining else "alive"


def _row(record: HostRecord) -> tuple[str, ...]:
    return (
        record.info.name,
        state_of(record),
        record.info.device,
        f"{size(record.committed_bytes)} / {size(record.info.budget_bytes)}",
        str(record.info.slots),
        ", ".join(record.jobs) or "-",
        age(time.time() - record.seen_at),
    )
