"""`graft dashboard`: Optuna's own dashboard on the studies of the fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from graft_cli.options import RedisUrl, connect
from graft_cli.output import out

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8080,
    host: Annotated[str, typer.Option(help="Loopback only: it asks nobody for a password.")] = "127.0.0.1",
    redis_url: RedisUrl = None,
) -> None:
    """Serve optuna-dashboard on the fleet's studies until Ctrl-C."""
    from graft_scheduler.errors import InvalidInput

    if host not in LOOPBACK:
        raise InvalidInput(
            f"`--host` is {host}: optuna-dashboard has no password, and whoever reaches it can delete "
            "studies; serve it on 127.0.0.1 and reach it through ssh -L"
        )
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise InvalidInput(
            "optuna-dashboard is not installed; `pip install 'mlx-graft[dashboard]'` brings it"
        ) from None
    with connect(redis_url) as client:
        client.ping()
        storage = client.studies.storage
        out.note(f"optuna-dashboard on http://{host}:{port}, until Ctrl-C")
        run_server(storage, host=host, port=port)
