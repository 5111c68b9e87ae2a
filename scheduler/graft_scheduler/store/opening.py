"""From a `store_url` to the store: which kind of place it names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from graft_scheduler.errors import InvalidInput
from graft_scheduler.store.artifacts import Store
from graft_scheduler.store.folder import FolderDepot

GATEWAY_SCHEMES = {"http", "https"}


def open_store(url: str, token: str | None = None, cache: Path | None = None) -> Store:
    """The store at `url`: a folder, made on first use, or a gateway, which may ask for `token`.

    `cache` is where `cached_folder` keeps what it has brought.

    Raises:
        InvalidInput: neither `file://` nor `http://` nor `https://`.
        NotAllowed: the gateway refuses the token.
        Unreachable: the folder cannot be made or read; the gateway does not answer.
    """
    if urlsplit(url).scheme in GATEWAY_SCHEMES:
        from graft_scheduler.store.gateway import GatewayDepot  # here: `graft --help` need not pay for it

        return Store(GatewayDepot.connect(url, token), cache)
    return Store(FolderDepot.open(folder_of(url)), cache)


def folder_of(url: str) -> Path:
    """The folder that a `file://` URL names, its `%20` and the like decoded.

    Raises:
        InvalidInput: another scheme, another machine, or a relative path.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise InvalidInput(
            f"`store_url` is {url!r}; it must be a folder, file:///PATH, or a gateway, http://HOST:PORT"
        )
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise InvalidInput(f"`store_url` is {url!r}; it must be file:// and an absolute path: file:///PATH")
    if parts.query or parts.fragment:
        raise InvalidInput(f"`store_url` is {url!r}; write `?` as %3F and `#` as %23 in a path")
    return Path(unquote(parts.path))
