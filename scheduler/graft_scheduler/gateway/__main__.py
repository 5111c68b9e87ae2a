"""`python -m graft_scheduler.gateway`: the store of a fleet, out of one folder on this machine."""

from __future__ import annotations

import sys

from graft_scheduler.errors import Conflict, GraftError, NotAllowed, Unreachable
from graft_scheduler.gateway.serving import check_tokens, serve
from graft_scheduler.settings import load_settings


def main() -> int:
    """Serve until told to stop; 2 for bad settings, 4 for an address open to others, 7 for a port in use,
    8 without the folder.
    """
    try:
        settings = load_settings()
        tokens = check_tokens(settings)
        serve(settings, tokens)
    except GraftError as error:
        print(f"graft gateway: {error}", file=sys.stderr)
        return {NotAllowed: 4, Conflict: 7, Unreachable: 8}.get(type(error), 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
