"""Which models the hub did not let this host have, until there is reason to try again."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

RETRY_SECONDS = 3600.0
"""Somebody may have accepted the terms for this host's token meanwhile."""


class Access:
    """What this host was refused; forgotten when its token changes, after an hour, and with its worker."""

    def __init__(
        self,
        *,
        read_sign: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_sign = read_sign or token_sign
        self._clock = clock
        self._lock = threading.Lock()
        self._refused: dict[str, tuple[float, str]] = {}

    def note_refused(self, repository: str) -> None:
        """The hub refused it to the token that this host has now."""
        with self._lock:
            self._refused[repository] = (self._clock() + RETRY_SECONDS, self._read_sign())

    def note_allowed(self, repository: str) -> None:
        """It was fetched."""
        with self._lock:
            self._refused.pop(repository, None)

    def refused(self) -> tuple[str, ...]:
        """Hub ids that need not be tried."""
        with self._lock:
            if not self._refused:
                return ()
            now, sign = self._clock(), self._read_sign()
            self._refused = {
                name: (until, seen)
                for name, (until, seen) in self._refused.items()
                if now < until and seen == sign
            }
            return tuple(sorted(self._refused))


def token_sign(environment: Mapping[str, str] = os.environ) -> str:
    """Tells tokens apart without telling them: a digest of what the hub's library would read."""
    home = Path(
        environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    path = Path(environment.get("HF_TOKEN_PATH") or home / "token").expanduser()
    sha = hashlib.sha256()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        sha.update(environment.get(name, "").encode() + b"\0")
    with suppress(OSError):
        sha.update(path.read_bytes())
    return sha.hexdigest()
