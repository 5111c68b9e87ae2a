"""A Redis in memory, in Python: `python -m graft_cli.fake_redis PORT`. For trials without a server.

It knows no INFO and no CONFIG, manages some ten jobs a second, and forgets everything at its end.
"""

from __future__ import annotations

import sys

SPOKEN_VERSION = (7, 0)


def main() -> None:
    """Serve on the loopback address until killed."""
    from fakeredis import TcpFakeServer

    port = int(sys.argv[1])
    server = TcpFakeServer(("127.0.0.1", port), server_type="redis", server_version=SPOKEN_VERSION)
    server.serve_forever()


if __name__ == "__main__":
    main()
