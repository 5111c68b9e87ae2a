"""What commands have brought here from the store: a folder of their own, apart from what a worker keeps.

Nothing bounds it but age: what no command has used for a month goes when something is added.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from graft_scheduler.states import Digest
from graft_scheduler.store.depots import check_digest

KEPT_SECONDS = 30 * 86_400
"""Since its last use. Long beyond any command that could still read it."""


def bring(root: Path, kind: str, digest: Digest, fetch: Callable[[Path], None]) -> Path:
    """The folder of `digest` below `root`; `fetch` brings it, and passes over what is there already."""
    dest = root / kind / check_digest(digest)
    if dest.is_dir():
        os.utime(dest)  # before anything else, so that no other command takes it for forgotten
    else:
        forget_unused(root)
    fetch(dest)
    os.utime(dest)
    return dest


def forget_unused(root: Path) -> None:
    """Remove what was not used for `KEPT_SECONDS`, and what an interrupted command left that long ago."""
    oldest = time.time() - KEPT_SECONDS
    for path in root.glob("*/*"):
        if path.is_dir() and path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)
