"""Real servers for stores: an S3 API (moto), SSH with SFTP (paramiko), and hands on their files."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import paramiko
import pytest

from graft_scheduler.store import Store, open_store
from tests.services import eventually, free_port, listens

BUCKET = "lab"
S3_VARIABLES = {
    "AWS_ACCESS_KEY_ID": "of-this-lab",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
S3_COMMAND = (sys.executable, "-c", "from moto.server import main; main()")


class Place(Protocol):
    """A store's root on a server, also from the server's side."""

    port: int
    """The server's."""

    @property
    def url(self) -> str: ...

    def open(self, port: int | None = None) -> Store:
        """The store; perhaps by another port, that leads there."""
        ...

    def names(self) -> dict[str, int]:
        """Files and their sizes."""
        ...

    def overwrite(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


class S3Server:
    """moto, which forgets everything when it ends."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        log = (folder / "moto.log").open("ab")
        self._process = subprocess.Popen([*S3_COMMAND, "-p", str(self.port)], stdout=log, stderr=log)
        log.close()
        eventually(lambda: listens(self.port), what="moto listens")
        self.client = s3_client(self.endpoint)
        self.client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()


def s3_client(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=S3_VARIABLES["AWS_DEFAULT_REGION"],
        aws_access_key_id=S3_VARIABLES["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_VARIABLES["AWS_SECRET_ACCESS_KEY"],
    )


class S3Place:
    """A prefix of its own in the server's bucket."""

    def __init__(self, server: S3Server) -> None:
        self._client, self.port = server.client, server.port
        self._prefix = f"of {uuid4().hex}/store"
        self.url = f"s3://{BUCKET}/{self._prefix.replace(' ', '%20')}"

    def open(self, port: int | None = None) -> Store:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port or self.port}")
            return open_store(self.url)

    def names(self) -> dict[str, int]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self._prefix)
        found = [one for page in pages for one in page.get("Contents", [])]
        return {one["Key"].removeprefix(f"{self._prefix}/"): one["Size"] for one in found}

    def overwrite(self, name: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=f"{self._prefix}/{name}", Body=data)

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=f"{self._prefix}/{name}")


class SftpServer:
    """A server, and a home folder whose `.ssh` knows it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder / "served", folder / "home"
        self.port = free_port()
        self.folder.mkdir()
        (self.home / ".ssh").mkdir(parents=True)
        self._host_key = paramiko.ECDSAKey.generate()
        self._host_key.write_private_key_file(str(folder / "host_key"))
        paramiko.ECDSAKey.generate().write_private_key_file(str(self.home / ".ssh" / "id_ecdsa"))
        keys = (str(folder / "host_key"), str(self.home / ".ssh" / "id_ecdsa"))
        self._command = [sys.executable, "-m", "tests.sftp_server", str(self.folder), str(self.port), *keys]
        self.start()
        self.introduce(self.port)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        eventually(lambda: listens(self.port), what="the SFTP server listens")

    def introduce(self, port: int) -> None:
        """Its key becomes known for another port, that leads there."""
        line = f"[127.0.0.1]:{port} {self._host_key.get_name()} {self._host_key.get_base64()}\n"
        with (self.home / ".ssh" / "known_hosts").open("a") as file:
            file.write(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class SftpPlace:
    """A folder of its own on the server."""

    def __init__(self, server: SftpServer) -> None:
        self.server, self.port = server, server.port
        self._path = f"a folder/{uuid4().hex}"
        self.root = server.folder / self._path
        self.url = self._url(self.port)

    def open(self, port: int | None = None) -> Store:
        if port is not None:
            self.server.introduce(port)
        return open_store(self._url(port or self.port))

    def names(self) -> dict[str, int]:
        found = {}
        for path in self.root.rglob("*"):
            with suppress(FileNotFoundError):  # moved away meanwhile
                if path.is_file():
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def overwrite(self, name: str, data: bytes) -> None:
        (self.root / name).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def _url(self, port: int) -> str:
        return f"sftp://somebody@127.0.0.1:{port}/{self._path.replace(' ', '%20')}"
