"""From a `store_url` to the store: which kind of place it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from graft_scheduler.errors import InvalidInput
from graft_scheduler.settings import hide_password
from graft_scheduler.store.artifacts import Store
from graft_scheduler.store.depots import Depot
from graft_scheduler.store.folder import FolderDepot

if TYPE_CHECKING:
    from graft_scheduler.store.files import Files

GATEWAY_SCHEMES = {"http", "https"}
REMOTE_SCHEMES = {"s3", "sftp"}
"""Each is a module here and an extra of the package."""


def open_store(url: str, token: str | None = None, cache: Path | None = None) -> Store:
    """The store at `url`, made on first use: a folder; a gateway, which may ask for `token`; a bucket of an
    S3 server; a folder of an SSH server. `cache` is where `Store.cached_folder` keeps what it has brought.

    Raises:
        InvalidInput: no URL of these, or what it needs is not installed.
        NotAllowed: the server refuses the token or the credentials.
        Unreachable: the folder cannot be made or read; the server does not answer.
        StoreError: what is there is no store that we can use.
    """
    return Store(_open_depot(url, token), cache)


def _open_depot(url: str, token: str | None) -> Depot:
    scheme = urlsplit(url).scheme
    if scheme in GATEWAY_SCHEMES:
        from graft_scheduler.store.gateway import GatewayDepot  # here: `graft --help` need not pay for it

        return GatewayDepot.connect(url, token)
    if scheme in REMOTE_SCHEMES:
        from graft_scheduler.store.remote import RemoteDepot

        return RemoteDepot.open(_remote_files(scheme, url))
    return FolderDepot.open(folder_of(url))


def _remote_files(scheme: str, url: str) -> Files:
    try:
        if scheme == "s3":
            from graft_scheduler.store.s3 import S3Files

            return S3Files(url)
        from graft_scheduler.store.sftp import SftpFiles

        return SftpFiles(url)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"`store_url` is {hide_password(url)!r}, which needs {error.name}: "
            f"`pip install 'mlx-graft[{scheme}]'` installs it"
        ) from error


def folder_of(url: str) -> Path:
    """The folder that a `file://` URL names, its `%20` and the like decoded.

    Raises:
        InvalidInput: another scheme, another machine, or a relative path.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise InvalidInput(
            f"`store_url` is {hide_password(url)!r}; it must be a folder, file:///PATH, a gateway, "
            "http://HOST:PORT, s3://BUCKET/PREFIX or sftp://USER@HOST/PATH"
        )
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise InvalidInput(f"`store_url` is {url!r}; it must be file:// and an absolute path: file:///PATH")
    if parts.query or parts.fragment:
        raise InvalidInput(f"`store_url` is {url!r}; write `?` as %3F and `#` as %23 in a path")
    return Path(unquote(parts.path))
