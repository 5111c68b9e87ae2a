"""`python -m graft_worker worker | probe`."""

from __future__ import annotations

import argparse
import sys

from graft_scheduler.errors import Conflict, GraftError, StoreError, Unreachable
from graft_scheduler.settings import load_settings


def main() -> int:
    """0 after a clean end; 2 for bad settings, 7 when the name is in use, 8 without Redis or the store."""
    parser = argparse.ArgumentParser(prog="python -m graft_worker")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("probe", help="the device of this machine, as JSON")
    worker = commands.add_parser("worker", help="serve this host's queue")
    worker.add_argument("--name", dest="host_name")
    worker.add_argument("--slots")
    worker.add_argument("--memory", dest="memory_bytes")
    arguments = vars(parser.parse_args())
    if arguments.pop("command") == "probe":
        from graft_worker.probe import print_device

        return print_device()
    return _serve(arguments)


def _serve(flags: dict[str, str | None]) -> int:
    from graft_worker.service import serve

    try:
        return serve(load_settings(flags))
    except GraftError as error:
        print(f"graft worker: {error}", file=sys.stderr)
        return {Unreachable: 8, Conflict: 7, StoreError: 1}.get(type(error), 2)


if __name__ == "__main__":
    sys.exit(main())
