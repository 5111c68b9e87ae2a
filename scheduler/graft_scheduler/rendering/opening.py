"""Finds the tokenizer of a model: in a folder here, or on the hub."""

from __future__ import annotations

from pathlib import Path

from graft_scheduler.errors import NoTokenizer
from graft_scheduler.hub import HUB_TIMEOUT_SECONDS
from graft_scheduler.rendering.chat_tokenizer import ChatTokenizer, build
from graft_scheduler.rendering.folders import TOKENIZER_PATTERNS, read_folder


def open_tokenizer(folder: Path) -> ChatTokenizer:
    """The tokenizer of the model in `folder`, as a host would open it.

    Raises:
        NoTokenizer: it cannot be had here; says why, and what would help.
    """
    return build(read_folder(folder))


def fetch_tokenizer(repo_id: str, revision: str | None = None) -> ChatTokenizer:
    """The tokenizer of a model on the hub: its few small files are fetched, or taken from the cache.

    Raises:
        NoTokenizer: it cannot be had here; says why, and what would help.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise NoTokenizer(
            "the package `huggingface_hub` is not installed; `pip install 'mlx-graft[data]'` fetches the "
            f"tokenizer of {repo_id}"
        ) from error
    try:
        folder = hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(TOKENIZER_PATTERNS),
            etag_timeout=HUB_TIMEOUT_SECONDS,
        )
    except Exception as error:  # offline, gated, no such model: the HTTP library's errors change by version
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NoTokenizer(f"the tokenizer of {repo_id} cannot be fetched: {lines[0]}") from error
    return open_tokenizer(Path(folder))
