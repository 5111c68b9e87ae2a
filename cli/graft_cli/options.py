"""Options that several commands share, and how a command reaches the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from graft_scheduler.client import Client

RedisUrl = Annotated[str | None, typer.Option("--redis-url", metavar="URL", help="The Redis of the service.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store-url", metavar="URL", help="Where data, models and adapters are kept.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", "--data", metavar="DIR", help="This machine's own files.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="A job's id; the first characters are enough when no other has them."),
]
AdapterArgument = Annotated[
    str, typer.Argument(metavar="NAME|JOB", help="The name of an adapter, or the id of the job that made it.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="best|last|STEP", help="A checkpoint of the job, not its adapter."),
]
Png = Annotated[
    Path | None,
    typer.Option("--png", metavar="FILE", help="Draw the memory as a picture too (needs matplotlib)."),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0, help="Stop waiting after this; the job goes on."),
]


def connect(redis_url: str | None, **flags: Any) -> Client:
    """A client of the service that the flags and the settings name.

    Raises:
        InvalidInput: a bad setting.
    """
    from graft_scheduler.client import Client
    from graft_scheduler.settings import load_settings

    return Client(load_settings({"redis_url": redis_url, **flags}))
