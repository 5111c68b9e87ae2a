"""`python -m graft_scheduler.flower_command`: Flower for the fleet, read-only, behind a password.

Flower's own defaults would listen on every interface and let anybody who reaches it stop workers
and send tasks, even with a password; here neither is possible.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from graft_scheduler.addresses import is_loopback
from graft_scheduler.broker import make_app
from graft_scheduler.errors import GraftError, NotAllowed, Unreachable
from graft_scheduler.redis_connection import connect, reachable
from graft_scheduler.settings import Settings, load_settings

INSPECT_MS = 10_000
"""How long Flower waits for workers to answer."""
MAX_TASKS = 100_000
"""Attempts that Flower remembers."""
OFFLINE_SECONDS = 86_400
"""How long Flower lists a worker that has left; one without a heartbeat, which is none, not at all."""


def main() -> int:
    """Serve until told to stop; 2 for bad settings, 4 for an address open to others, 8 without Redis."""
    try:
        settings = load_settings()
        password = check_password(settings)
        with reachable(settings.redis_url), connect(settings.redis_url) as redis:
            redis.ping()
    except GraftError as error:
        print(f"graft flower: {error}", file=sys.stderr)
        return {NotAllowed: 4, Unreachable: 8}.get(type(error), 2)
    if settings.flower_password is None:
        print(f"Flower: user {settings.flower_user}, password {password}", file=sys.stderr)
    serve(settings, password)
    return 0


def check_password(settings: Settings) -> str:
    """The password in force.

    Raises:
        NotAllowed: others could reach the address, and no password was chosen.
    """
    if settings.flower_password:
        return settings.flower_password
    if not is_loopback(settings.flower_address):
        raise NotAllowed(
            f"`flower_address` is {settings.flower_address}, which others can reach; "
            "set GRAFT_FLOWER_PASSWORD first"
        )
    return secrets.token_urlsafe(12)


def serve(settings: Settings, password: str) -> None:
    """Run Flower in this process. The password is set here, as arguments show in `ps`."""
    import flower.options  # noqa: F401  # defines the options
    from tornado.options import options

    folder = settings.data_dir / "flower"
    folder.mkdir(parents=True, exist_ok=True)
    options.basic_auth = [f"{settings.flower_user}:{password}"]
    make_app(settings.redis_url).start(argv=["flower", *arguments(settings, folder)])


def arguments(settings: Settings, folder: Path) -> list[str]:
    """Flower's own command line."""
    return [
        f"--address={settings.flower_address}",
        f"--port={settings.flower_port}",
        "--read_only=True",
        "--persistent=True",
        f"--db={folder / 'flower'}",
        "--state_save_interval=60000",
        f"--inspect_timeout={INSPECT_MS}",
        f"--max_tasks={MAX_TASKS}",
        f"--purge_offline_workers={OFFLINE_SECONDS}",
        "--tasks_columns=name,uuid,state,args,received,started,runtime,worker",
        "--logging=warning",
    ]


if __name__ == "__main__":
    sys.exit(main())
