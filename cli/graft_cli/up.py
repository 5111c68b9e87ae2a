"""`graft up`: the whole service in one terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft_cli import samples
from graft_cli.amounts import size
from graft_cli.options import DataDir, RedisUrl, StoreUrl
from graft_cli.output import out
from graft_cli.processes import Memory, Slots, WorkerName, flower_url, graft_command

if TYPE_CHECKING:
    from graft_cli.local_service import LocalOptions, LocalService

LONGEST_WIDTH = 8


def up(
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
    data_dir: DataDir = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Any Redis that can be had; nothing is kept.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="So many workers, for trying.")] = 1,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Without Flower.")] = False,
    no_gateway: Annotated[
        bool, typer.Option("--no-gateway", help="Serve the store to no other machine.")
    ] = False,
    name: WorkerName = None,
    slots: Slots = None,
    memory: Memory = None,
) -> None:
    """Start the whole service on this machine.

    Redis, the scheduler, a worker, the gateway and Flower; Ctrl-C stops all of it. What was accepted is
    kept in the data folder, and the next `graft up` goes on with it.
    """
    from graft_cli.local_service import LocalService

    flags = {
        "redis_url": redis_url,
        "store_url": store_url,
        "data_dir": data_dir,
        "host_name": name,
        "slots": slots,
        "memory_bytes": memory,
    }
    options = choose(flags, ephemeral=ephemeral, workers=workers)
    options = replace(options, with_flower=not no_flower, with_gateway=not no_gateway)
    if options.ephemeral and options.own_redis:
        out.warning("--ephemeral: every job is forgotten when this ends")
    out.note("starting...")
    try:
        with LocalService(options, out.note) as service:
            tell(service)
            service.children.wait_for_failure()
    except KeyboardInterrupt:
        out.note("stopped")


def choose(flags: dict[str, Any], *, ephemeral: bool, workers: int) -> LocalOptions:
    """What to start, given the flags and the settings.

    Raises:
        InvalidInput: a bad setting.
    """
    from graft_cli.local_service import LocalOptions
    from graft_scheduler.settings import load_settings, resolve_settings

    origin = resolve_settings(flags)["redis_url"].source
    return LocalOptions(
        settings=load_settings(flags),
        own_redis=origin in {"default", "running `graft up`"},
        ephemeral=ephemeral,
        workers=workers,
    )


def tell(service: LocalService) -> None:
    """Where everything is, and what to do now."""
    from graft_scheduler.settings import hide_password

    settings = service.settings
    out.note()
    out.note("Graft is up on this machine")
    out.note()
    _line("Redis", f"{hide_password(settings.redis_url)}  ({service.redis_kind})")
    _line("Store", hide_password(settings.store_url or settings.own_store_url))
    if service.gateway_url is not None:
        _line("", f"for other machines at {service.gateway_url}")
    for host in service.hosts():
        info = host.info
        _line(
            "Worker", f"{info.name}: {info.device}, {size(info.budget_bytes)} for jobs, {_slots(info.slots)}"
        )
    if service.flower_password is not None:
        tell_flower(service)
    _line("Logs", str(service.log_dir))
    out.note()
    out.note("In another terminal:")
    for line in other_terminal(service):
        out.note(f"  {line}")
    out.note()
    out.note("Ctrl-C stops all of it")


def tell_flower(service: LocalService) -> None:
    """Flower's address and how to get in."""
    settings = service.settings
    _line("Flower", flower_url(settings))
    shown = "the one that is set" if settings.flower_password else service.flower_password
    _line("", f"user {settings.flower_user}, password {shown}")


def other_terminal(service: LocalService) -> list[str]:
    """What to type elsewhere to use this service."""
    from graft_scheduler.settings import load_settings, running_up

    lines = []
    if running_up(load_settings().data_dir).get("redis_url") != service.settings.redis_url:
        lines.append(f"export GRAFT_DATA_DIR={service.settings.data_dir}")
    return [
        *lines,
        f"{graft_command()} ps",
        samples.train_command(str(samples.base_model()), str(samples.data_folder())),
    ]


def _line(name: str, value: str) -> None:
    out.note(f"  {name:<{LONGEST_WIDTH}}{value}")


def _slots(count: int) -> str:
    return "1 job at a time" if count == 1 else f"{count} jobs at a time"
