"""Who writes: what a user has left half-written from a machine is theirs to go on with."""

from __future__ import annotations

import getpass
import hashlib
import socket
from contextlib import suppress
from uuid import uuid4


def writer_here() -> str:
    """The same for every process of this user on this machine."""
    with suppress(OSError, KeyError):
        return hashlib.sha256(f"{getpass.getuser()}@{socket.gethostname()}".encode()).hexdigest()[:16]
    return uuid4().hex[:16]


WRITER = writer_here()
