"""`worker`, `scheduler` and `flower`: this process becomes the service, with its settings resolved."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from graft_cli.options import DataDir, RedisUrl, StoreUrl
from graft_cli.output import out

if TYPE_CHECKING:
    from graft_scheduler.settings import Settings

WORKER = ("-m", "graft_worker", "worker")
SCHEDULER = ("-m", "graft_scheduler")
GATEWAY = ("-m", "graft_scheduler.gateway")
FLOWER = ("-m", "graft_scheduler.flower_command")

WorkerName = Annotated[str | None, typer.Option("--name", help="Name of this host; default: the machine's.")]
Slots = Annotated[int | None, typer.Option("--slots", min=1, help="Jobs that may run at once here.")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="What jobs may use here, such as 12GB; default: the device's."
    ),
]


def worker(
    name: WorkerName = None,
    slots: Slots = None,
    memory: Memory = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Make this machine a host that trains jobs."""
    become(
        WORKER,
        {
            "host_name": name,
            "slots": slots,
            "memory_bytes": memory,
            "data_dir": data_dir,
            "redis_url": redis_url,
            "store_url": store_url,
        },
    )


def scheduler(data_dir: DataDir = None, redis_url: RedisUrl = None, store_url: StoreUrl = None) -> None:
    """Run the scheduler; of several, one leads."""
    become(SCHEDULER, {"data_dir": data_dir, "redis_url": redis_url, "store_url": store_url})


def flower(
    address: Annotated[
        str | None, typer.Option(help="Address to listen on; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show the queue in a browser, read-only, with a password."""
    flags = {"flower_address": address, "flower_port": port, "data_dir": data_dir, "redis_url": redis_url}
    settings = checked(flags)
    password = flower_password(settings)
    shown = "the one that is set" if settings.flower_password else password
    out.note(f"Flower: {flower_url(settings)}  user {settings.flower_user}  password {shown}")
    become(FLOWER, {**flags, "flower_password": password})


def gateway(
    folder: Annotated[
        Path | None, typer.Option(help="What it serves; default: `store` in the data folder.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address to listen on; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    quota: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What it may hold, such as 500GB; default: the disk.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Serve the store to machines without a shared disk; GRAFT_STORE_TOKEN is what it asks for."""
    from graft_scheduler.addresses import http_url
    from graft_scheduler.gateway.serving import check_tokens, served_folder

    flags = {
        "gateway_folder": folder,
        "gateway_address": address,
        "gateway_port": port,
        "gateway_quota_bytes": quota,
        "data_dir": data_dir,
    }
    settings = checked(flags)
    asks = "asks for the token" if check_tokens(settings) else "asks for no token"
    url = http_url(settings.gateway_address, settings.gateway_port)
    out.note(f"Gateway: {url} serves {served_folder(settings)} and {asks}")
    become(GATEWAY, flags)


def become(command: tuple[str, ...], flags: Mapping[str, Any]) -> NoReturn:
    """Replace this process by `python COMMAND`, with the flags in its environment.

    Raises:
        InvalidInput: a bad setting.
    """
    checked(flags)
    variables = {**os.environ, **environment(flags)}
    os.execve(sys.executable, [sys.executable, *command], variables)  # noqa: S606 - no shell is what we want


def checked(flags: Mapping[str, Any]) -> Settings:
    """The settings in force with these flags.

    Raises:
        InvalidInput: a bad setting.
    """
    from graft_scheduler.settings import load_settings

    return load_settings(flags)


def environment(flags: Mapping[str, Any]) -> dict[str, str]:
    """The flags that were given, as environment variables of a child."""
    from graft_scheduler.settings import ENVIRONMENT_PREFIX

    return {
        ENVIRONMENT_PREFIX + name.upper(): str(value) for name, value in flags.items() if value is not None
    }


def flower_password(settings: Settings) -> str:
    """The password that is set, or a new one where only this machine can ask for it.

    Raises:
        NotAllowed: Flower would listen to other machines with no password set.
    """
    from graft_scheduler.flower_command import check_password

    return check_password(settings)


def flower_url(settings: Settings) -> str:
    """Where a browser finds it."""
    from graft_scheduler.addresses import http_url

    return http_url(settings.flower_address, settings.flower_port)


def graft_command() -> str:
    """What to type for `graft` in another terminal: its path, where the shell would not find it."""
    import shutil

    return "graft" if shutil.which("graft") else str(Path(sys.argv[0]).absolute())
