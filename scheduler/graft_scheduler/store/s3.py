"""Files in a bucket of an S3 server, by s3fs.

Credentials, region and endpoint come from the `AWS_...` variables and files that every S3 program reads.
"""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from botocore.exceptions import BotoCoreError, HTTPClientError, NoCredentialsError, PartialCredentialsError
from botocore.exceptions import ConnectionError as NoConnection
from fsspec.exceptions import FSTimeoutError
from s3fs import S3FileSystem

from graft_scheduler.errors import GraftError, InvalidInput, NotAllowed, StoreError, Unreachable
from graft_scheduler.settings import hide_password
from graft_scheduler.store.files import LANES, Entry

CONNECT_SECONDS, READ_SECONDS = 5, 60
LISTED = 1000
"""What S3 names in one answer."""
AGAIN = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "SlowDown",
    "OperationAborted",
    "ConditionalRequestConflict",
}
"""Codes that say: try it once more. So do statuses of 500 and above, but for what the server cannot do."""
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server of your own)"
)


class S3Files:
    """As `Files`: the keys of one bucket below a prefix."""

    def __init__(self, url: str) -> None:
        self._bucket, self._prefix = _parts_of(url)
        self.place = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        self._server = S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            max_concurrency=1,
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"max_attempts": 0},
                "max_pool_connections": 2 * LANES,
                # Servers other than Amazon's know MD5, which we send, better than the newer checksums.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        self._server.retries = 1  # ours is the patience

    @property
    def address(self) -> str:
        """As `Files`."""
        with self._explained():
            return f"{self._server.s3.meta.endpoint_url}/{self._bucket}/{self._prefix}"

    def locate(self, name: str) -> str:
        """As `Files`."""
        return f"{self.place}/{name}"

    def size(self, name: str) -> int | None:
        """As `Files`."""
        try:
            with self._explained():
                return int(self._call("head_object", Key=self._key(name))["ContentLength"])
        except FileNotFoundError:
            return None

    def modified_at(self, name: str) -> float | None:
        """As `Files`."""
        try:
            with self._explained():
                return float(self._call("head_object", Key=self._key(name))["LastModified"].timestamp())
        except FileNotFoundError:
            return None

    def get(self, name: str) -> bytes:
        """As `Files`."""
        with self._explained():
            return bytes(self._server.cat_file(self._path(name)))

    def put(self, name: str, data: bytes) -> None:
        """As `Files`; the server compares the MD5 before the object appears."""
        with self._explained():
            self._server.pipe_file(self._path(name), data, ContentMD5=_md5(data))

    def create(self, name: str, data: bytes) -> None:
        """As `Files`; where the server knows no conditions, the last of two who come at one time wins."""
        with self._explained():
            try:
                self._server.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                pass
            except OSError as error:
                if _code_of(error) != "NotImplemented":
                    raise
                self._server.pipe_file(self._path(name), data)

    def page(self, folder: str, after: str = "") -> list[Entry]:
        """As `Files`."""
        behind = {"StartAfter": self._key(after)} if after else {}
        with self._explained():
            answer = self._call("list_objects_v2", Prefix=f"{self._key(folder)}/", MaxKeys=LISTED, **behind)
        cut = len(self._key(""))
        return [
            Entry(one["Key"][cut:], int(one["Size"]), one["LastModified"].timestamp())
            for one in answer.get("Contents", [])
        ]

    def remove(self, name: str) -> None:
        """As `Files`."""
        with self._explained():
            self._call("delete_object", Key=self._key(name))

    def renew(self, name: str) -> None:
        """As `Files`: copied onto itself, by the server."""
        source = {"Bucket": self._bucket, "Key": self._key(name)}
        with self._explained():
            self._call("copy_object", Key=self._key(name), CopySource=source, MetadataDirective="REPLACE")

    def leftovers(self) -> list[Entry]:
        """As `Files`: an object is there whole or not at all."""
        return []

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _path(self, name: str) -> str:
        return f"{self._bucket}/{self._key(name)}"

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._server.call_s3(method, Bucket=self._bucket, **arguments)
        return answer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors as one line with the store and a remedy."""
        try:
            yield
        except (GraftError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if _code_of(error) == "NoSuchBucket":
                raise StoreError(
                    f"store {self.place}: there is no such bucket; create it, or correct `store_url`"
                ) from error
            raise
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise NotAllowed(f"store {self.place}: {_reason(error)}; {CREDENTIALS}") from error
        except (
            NoConnection,
            HTTPClientError,
            aiohttp.ClientError,
            FSTimeoutError,
            TimeoutError,
            ConnectionError,
        ) as error:
            raise Unreachable(
                f"store {self.place} does not answer ({_reason(error)}); "
                "check AWS_ENDPOINT_URL and the network"
            ) from error
        except PermissionError as error:
            raise NotAllowed(f"store {self.place} refuses this ({_reason(error)}); {CREDENTIALS}") from error
        except OSError as error:
            if _is_passing(error):
                raise Unreachable(f"store {self.place} cannot answer now ({_reason(error)})") from error
            remedy = (
                "set AWS_DEFAULT_REGION to the bucket's" if error.errno == errno.EREMCHG else "check it there"
            )
            raise StoreError(f"store {self.place} answers: {_reason(error)}; {remedy}") from error
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"store {self.place} cannot be used: {_reason(error)}; {CREDENTIALS}") from error


def _parts_of(url: str) -> tuple[str, str]:
    """Bucket and prefix.

    Raises:
        InvalidInput: no bucket, or something else in it.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise InvalidInput(
            f"`store_url` is {hide_password(url)!r}; write s3://BUCKET/PREFIX and {CREDENTIALS}"
        )
    prefix = unquote(parts.path).strip("/")
    if (
        not parts.netloc
        or parts.query
        or parts.fragment
        or any(word in {"", ".", ".."} for word in prefix.split("/") if prefix)
    ):
        raise InvalidInput(f"`store_url` is {url!r}; it must be s3://BUCKET/PREFIX")
    return parts.netloc, prefix


def _answer_of(error: BaseException) -> dict[str, Any]:
    """What the server said."""
    answer = getattr(error.__cause__, "response", None)
    return answer if isinstance(answer, dict) else {}


def _code_of(error: BaseException) -> str:
    return str(_answer_of(error).get("Error", {}).get("Code", ""))


def _is_passing(error: OSError) -> bool:
    status = _answer_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return _code_of(error) in AGAIN or status == 429 or (status >= 500 and status != 501)


def _reason(error: BaseException) -> str:
    """One line, without the end that a sentence has."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
