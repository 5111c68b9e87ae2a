"""Fetches a model from the hub in a process of its own: `python -m graft_worker.hub_command REPO [REVISION]`.

It says in a line of JSON what is to be fetched, waits for a line on stdin, fetches, and says so; or says
what went wrong. It leaves as soon as stdin ends: nobody waits for it then. The files that it brought whole
stay, and the next one fetches the others.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from graft_scheduler.hub import LICENCE_PATTERNS, MODEL_PATTERNS
from graft_worker.cache.disk import is_disk_full
from graft_worker.cached_models import has_weights

TIMEOUT_SECONDS = 15.0
"""Longest wait for an answer of the hub."""
EXIT_ORPHANED = 75
REFUSALS = {401, 403}


def main(repository: str, revision: str | None) -> int:
    """Do it; 0 when everything is there."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        commit, missing, is_known = plan(repository, revision)
        _say(commit=commit, bytes=missing)
        if sys.stdin.readline() == "":
            return EXIT_ORPHANED
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        if not is_known:
            _download(repository, revision, commit)
        _say(done=True)
        return 0
    except Exception as error:  # foreign code: whatever it raises is what went wrong
        _say(error=kind_of(error), text=_first_line(error))
        return 1


def plan(repository: str, revision: str | None) -> tuple[str, int, bool]:
    """The commit, the bytes that are not here yet, and whether there is nothing to ask the hub for.

    A hub that does not answer is not needed where the snapshot is here.
    """
    try:
        return *_ask(repository, revision), False
    except Exception:
        folder = _local(repository, revision)
        if folder is None:
            raise
        return os.path.basename(folder), 0, True


def kind_of(error: BaseException | None) -> str:
    """`full`, `no access`, `gone` (there is no such thing), or `away`."""
    from huggingface_hub import errors

    if is_disk_full(error):
        return "full"
    while error is not None:
        if isinstance(error, errors.GatedRepoError | errors.RepositoryNotFoundError):
            return "no access"
        if isinstance(error, errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError):
            return "gone"
        if isinstance(error, errors.HFValidationError):
            return "gone"
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in REFUSALS:
            return "no access"
        error = error.__cause__
    return "away"


def _ask(repository: str, revision: str | None) -> tuple[str, int]:
    """The commit and the bytes to fetch, as the hub has it, which lets this host have the files."""
    import huggingface_hub as hub

    info = hub.HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    commit = str(info.sha)
    url = hub.hf_hub_url(repository, "config.json", revision=commit)
    hub.get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
    return commit, sum(_missing(repository, commit, info.siblings or []))


def _missing(repository: str, commit: str, files: list[Any]) -> Iterator[int]:
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        is_wanted = any(
            fnmatchcase(file.rfilename, pattern) for pattern in (*MODEL_PATTERNS, *LICENCE_PATTERNS)
        )
        here = try_to_load_from_cache(repository, file.rfilename, revision=commit)
        if is_wanted and not isinstance(here, str):
            yield file.size or 0


def _local(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=list(MODEL_PATTERNS)
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return str(folder) if has_weights(Path(folder)) else None


def _download(repository: str, revision: str | None, commit: str) -> None:
    """The files at this commit; a branch that was asked for is noted, as the hub's library would."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(repository, revision=commit, allow_patterns=list(MODEL_PATTERNS))
    with suppress(Exception):  # the model is whole without them
        snapshot_download(repository, revision=commit, allow_patterns=list(LICENCE_PATTERNS))
    if revision != commit:
        ref = Path(folder).parent.parent / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _leave_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(EXIT_ORPHANED)


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
