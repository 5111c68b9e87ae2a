"""Files in a folder of an SSH server, by fsspec's SFTP over paramiko.

The way there comes from the URL, from `~/.ssh` (`config`, `known_hosts`, keys) and from the agent.
"""

from __future__ import annotations

import getpass
import logging
import posixpath
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from stat import S_IROTH, S_IRWXG, S_IRWXU, S_IXOTH
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import uuid4

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    SSHException,
)

from graft_scheduler.errors import GraftError, InvalidInput, NotAllowed, StoreError, Unreachable
from graft_scheduler.settings import hide_password
from graft_scheduler.store.files import Entry
from graft_scheduler.store.folder import INCOMING

CONNECT_SECONDS, ANSWER_SECONDS, ALIVE_SECONDS = 5.0, 60.0, 15
"""Until a connection is there; until an answer is; between two signs of life."""
PARTS = "parts/"
FORM = "sftp://USER@HOST/PATH"

T = TypeVar("T")

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs tracebacks of what it also raises


class _UnknownHost(SSHException):  # type: ignore[misc]
    """Its key is not in `known_hosts`."""


class _Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    def missing_host_key(self, client: object, hostname: str, key: object) -> None:
        raise _UnknownHost(hostname)


class _Server(SFTPFileSystem):  # type: ignore[misc]
    """A connection to a server whose key is known: fsspec's own would trust any."""

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()
        self.client.load_system_host_keys()
        self.client.set_missing_host_key_policy(_Refuse())
        self.client.connect(self.host, **self.ssh_kwargs)
        transport = self.client.get_transport()
        assert transport is not None
        transport.set_keepalive(ALIVE_SECONDS)
        self.ftp = self.client.open_sftp()
        channel = self.ftp.get_channel()
        assert channel is not None
        channel.settimeout(ANSWER_SECONDS)


class SftpFiles:
    """As `Files`: one folder, over one connection, which is made anew when it broke."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError as error:
            raise InvalidInput(
                f"`store_url` is {hide_password(url)!r}: {error}; it must be {FORM}"
            ) from error
        path = posixpath.normpath(unquote(parts.path))
        if not parts.hostname or not path.startswith("/") or parts.query or parts.fragment:
            raise InvalidInput(
                f"`store_url` is {hide_password(url)!r}; it must be {FORM}, PATH from the root on"
            )
        self._root = "/" + path.strip("/")
        self._host, self._options = _ways_in(parts)
        self.place = f"sftp://{self._options['username']}@{parts.hostname}{port}{self._root}"
        self.address = f"sftp://{self._host}:{self._options['port']}{self._root}"
        self._lock = threading.RLock()
        self._server: _Server | None = None

    def locate(self, name: str) -> str:
        """As `Files`."""
        return f"{self.place}/{name}"

    def size(self, name: str) -> int | None:
        """As `Files`."""
        with self._connected() as server, suppress(FileNotFoundError):
            return int(server.info(self._path(name))["size"])
        return None

    def modified_at(self, name: str) -> float | None:
        """As `Files`."""
        with self._connected() as server, suppress(FileNotFoundError):
            return float(server.ftp.stat(self._path(name)).st_mtime or 0)
        return None

    def get(self, name: str) -> bytes:
        """As `Files`."""
        with self._connected() as server, server.open(self._path(name), "rb") as file:
            file.prefetch()
            return bytes(file.read())

    def put(self, name: str, data: bytes) -> None:
        """As `Files`: written beside and moved."""
        with self._connected() as server:
            partial = self._write_beside(server, data)
            self._in_folder(server, name, lambda: server.mv(partial, self._path(name)))

    def create(self, name: str, data: bytes) -> None:
        """As `Files`: SFTP's own rename replaces no file."""
        with self._connected() as server:
            partial = self._write_beside(server, data)
            try:
                self._in_folder(server, name, lambda: server.ftp.rename(partial, self._path(name)))
            except OSError:
                if not server.exists(self._path(name)):
                    raise
                server.ftp.remove(partial)

    def page(self, folder: str, after: str = "") -> list[Entry]:
        """As `Files`: what lies together in one folder."""
        with self._connected() as server:
            return self._first_below(server, self._path(folder), self._path(after) if after else "")

    def remove(self, name: str) -> None:
        """As `Files`; of parts their folder too, with the last one."""
        with self._connected() as server, suppress(FileNotFoundError):
            server.ftp.remove(self._path(name))
            if name.startswith(PARTS):
                with suppress(OSError):
                    server.ftp.rmdir(posixpath.dirname(self._path(name)))

    def renew(self, name: str) -> None:
        """As `Files`."""
        with self._connected() as server:
            server.ftp.utime(self._path(name), None)

    def leftovers(self) -> list[Entry]:
        """As `Files`."""
        return self.page(INCOMING)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _write_beside(self, server: _Server, data: bytes) -> str:
        """The data in a file that no name leads to yet."""
        name = f"{INCOMING}/{uuid4().hex}"
        with self._in_folder(server, name, lambda: server.open(self._path(name), "wb")) as file:
            file.set_pipelined(True)
            file.write(data)
        if (size := int(server.info(self._path(name))["size"])) != len(data):
            server.ftp.remove(self._path(name))
            raise StoreError(
                f"cannot write store {self.place} (of {len(data)} bytes {size} came to lie there); "
                "check free space"
            )
        return self._path(name)

    def _in_folder(self, server: _Server, name: str, call: Callable[[], T]) -> T:
        """The call's answer, for which the folder around a file is made if there is none."""
        with suppress(FileNotFoundError):
            return call()
        folder = posixpath.dirname(self._path(name))
        for around in (*reversed(PurePosixPath(folder).parents), folder):
            with suppress(OSError):  # it is there; or the call fails once more, and says why
                server.ftp.mkdir(str(around))
                server.ftp.chmod(str(around), S_IRWXU | S_IRWXG | S_IROTH | S_IXOTH)
        try:
            return call()
        except FileNotFoundError as error:
            raise NotAllowed(
                f"store {self.place}: {folder} is not there and cannot be made; make {self._root} there, for "
                f"{self._options['username']} to write in"
            ) from error

    def _first_below(self, server: _Server, folder: str, after: str) -> list[Entry]:
        try:
            found = server.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        entries: list[Entry] = []
        for one in sorted(found, key=lambda one: str(one["name"])):
            if one["type"] == "directory":
                if f"{one['name']}/~" > after and (below := self._first_below(server, one["name"], after)):
                    return entries + below
            elif one["name"] > after:
                name = posixpath.relpath(one["name"], self._root)
                entries.append(Entry(name, one["size"], one["mtime"].timestamp()))
        return entries

    @contextmanager
    def _connected(self) -> Iterator[_Server]:
        """The connection, for one thread at a time; errors as one line with the store and a remedy."""
        with self._lock:
            server = self._server if self._server and _lives(self._server) else self._connect()
            self._server = server
            try:
                yield server
            except (GraftError, FileNotFoundError):
                raise
            except PermissionError as error:
                raise NotAllowed(
                    f"store {self.place}: the server refuses this ({_reason(error)}); "
                    f"check who may write {self._root} there"
                ) from error
            except (SSHException, EOFError, OSError) as error:
                if not _lives(server) or not isinstance(error, OSError) or isinstance(error, TimeoutError):
                    server.client.close()
                    raise self._away(error) from error
                raise StoreError(
                    f"store {self.place} answers: {_reason(error)}; check free space and permissions there"
                ) from error

    def _connect(self) -> _Server:
        try:
            return _Server(self._host, skip_instance_cache=True, **self._options)
        except (_UnknownHost, BadHostKeyException) as error:
            kind = "is not in" if isinstance(error, _UnknownHost) else "is another than in"
            raise NotAllowed(
                f"store {self.place}: the server's key {kind} ~/.ssh/known_hosts; "
                f"see that it is the right one, and log in once with `ssh`"
            ) from error
        except AuthenticationException as error:
            raise NotAllowed(
                f"store {self.place}: the server refuses {self._options['username']} ({_reason(error)}); "
                "add your key there (`ssh-copy-id`) and to the agent here (`ssh-add`)"
            ) from error
        except (SSHException, EOFError, OSError) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> Unreachable:
        return Unreachable(f"store {self.place} does not answer ({_reason(error)}); does `ssh` get there?")


def _ways_in(parts: SplitResult) -> tuple[str, dict[str, Any]]:
    """The host, and paramiko's options: from the URL, else as `ssh` would find them.

    Raises:
        InvalidInput: `~/.ssh/config` cannot be read.
    """
    path = Path("~/.ssh/config").expanduser()
    try:
        found = paramiko.SSHConfig.from_path(str(path)).lookup(parts.hostname or "") if path.exists() else {}
    except (SSHException, OSError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    options = {
        "port": parts.port or int(found.get("port", paramiko.config.SSH_PORT)),
        "username": unquote(parts.username) if parts.username else found.get("user", getpass.getuser()),
        "password": unquote(parts.password) if parts.password else None,
        "key_filename": [file for file in found.get("identityfile", []) if Path(file).exists()] or None,
        "timeout": CONNECT_SECONDS,
        "banner_timeout": CONNECT_SECONDS,
        "auth_timeout": ANSWER_SECONDS,
    }
    return str(found.get("hostname", parts.hostname)), options


def _lives(server: _Server) -> bool:
    transport = server.client.get_transport()
    return transport is not None and transport.is_active() and not server.ftp.get_channel().closed


def _reason(error: BaseException) -> str:
    """One line, without the end that a sentence has."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
