"""An SFTP server over one folder, for tests: `python -m tests.sftp_server FOLDER PORT HOST_KEY USER_KEY`.

It lets in whoever holds the user's key, and shows the folder as `/`. As OpenSSH's it refuses to rename a file
onto another, but for the extension `posix-rename`, and its files appear as they are written.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import paramiko
from paramiko import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_SUCCEEDED,
    SFTP_OK,
    SFTPAttributes,
    SFTPHandle,
    SFTPServer,
    SFTPServerInterface,
)


class Door(paramiko.ServerInterface):  # type: ignore[misc]
    def __init__(self, key: paramiko.PKey) -> None:
        self._key = key

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return int(AUTH_SUCCESSFUL if key == self._key else AUTH_FAILED)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(OPEN_SUCCEEDED)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"


class Handle(SFTPHandle):  # type: ignore[misc]
    def stat(self) -> SFTPAttributes:
        return SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class Folder(SFTPServerInterface):  # type: ignore[misc]
    root = Path()

    def list_folder(self, path: str) -> list[SFTPAttributes] | int:
        try:
            return [
                SFTPAttributes.from_stat(one.stat(), filename=one.name) for one in self._real(path).iterdir()
            ]
        except OSError as error:
            return self._told(error)

    def stat(self, path: str) -> SFTPAttributes | int:
        try:
            return SFTPAttributes.from_stat(self._real(path).stat())
        except OSError as error:
            return self._told(error)

    lstat = stat

    def open(self, path: str, flags: int, attr: SFTPAttributes) -> SFTPHandle | int:
        try:
            descriptor = os.open(self._real(path), flags, 0o644)
        except OSError as error:
            return self._told(error)
        file = os.fdopen(descriptor, "wb" if flags & os.O_WRONLY else "rb", buffering=0)
        handle = Handle(flags)
        handle.readfile = handle.writefile = file
        return handle

    def remove(self, path: str) -> int:
        return self._do(self._real(path).unlink)

    def rename(self, oldpath: str, newpath: str) -> int:
        def move() -> None:
            os.link(self._real(oldpath), self._real(newpath))
            os.unlink(self._real(oldpath))

        return self._do(move)

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return self._do(lambda: os.replace(self._real(oldpath), self._real(newpath)))

    def mkdir(self, path: str, attr: SFTPAttributes) -> int:
        return self._do(self._real(path).mkdir)

    def rmdir(self, path: str) -> int:
        return self._do(self._real(path).rmdir)

    def chattr(self, path: str, attr: SFTPAttributes) -> int:
        return self._do(lambda: SFTPServer.set_file_attr(str(self._real(path)), attr))

    def _real(self, path: str) -> Path:
        return self.root / str(self.canonicalize(path)).lstrip("/")

    def _do(self, call: object) -> int:
        assert callable(call)
        try:
            call()
        except OSError as error:
            return self._told(error)
        return int(SFTP_OK)

    def _told(self, error: OSError) -> int:
        return int(SFTPServer.convert_errno(error.errno or 0))


def serve(connection: socket.socket, host_key: paramiko.PKey, user_key: paramiko.PKey) -> None:
    transport = paramiko.Transport(connection)
    transport.add_server_key(host_key)
    transport.set_subsystem_handler("sftp", SFTPServer, Folder)
    with suppress(paramiko.SSHException, EOFError, OSError):
        transport.start_server(server=Door(user_key))


def main() -> None:
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    folder, port, host_key, user_key = sys.argv[1:]
    Folder.root = Path(folder)
    keys = [paramiko.ECDSAKey.from_private_key_file(path) for path in (host_key, user_key)]
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, *keys), daemon=True).start()


if __name__ == "__main__":
    main()
