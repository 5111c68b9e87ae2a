"""Blobs behind a gateway (`graft gateway`), over HTTP, gone on with where a connection broke."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from graft_scheduler.errors import GraftError, InvalidInput, NotAllowed, StoreError, Unreachable
from graft_scheduler.settings import hide_password
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import CHUNK_BYTES, Blob, Source, absent, check_digest
from graft_scheduler.store.writers import WRITER

CONNECT_PATIENCE_SECONDS, PATIENCE_SECONDS = 3.0, 30.0
"""How long nothing may come through before the gateway counts as away: at first, and in the midst of work."""
PAUSE_SECONDS = 0.25
"""Between the first two tries; each next one waits twice as long."""
CONNECT_SECONDS, READ_SECONDS = 5.0, 120.0
"""A gateway that goes on with 20 GB first reads them, and says nothing meanwhile."""
OFFSET, WRITER_HEADER = "Upload-Offset", "Upload-Writer"

T = TypeVar("T")


class GatewayDepot:
    """The blobs of one gateway."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._pool = urllib3.PoolManager(headers=headers, timeout=timeout, retries=False, maxsize=4)
        self.place = url.rstrip("/")
        self.id = ""

    @classmethod
    def connect(cls, url: str, token: str | None = None) -> GatewayDepot:
        """The gateway at `url`; a token in the URL (`http://:TOKEN@HOST`) counts where none is given.

        Raises:
            InvalidInput: no host in it.
            NotAllowed: it refuses the token.
            Unreachable: it does not answer.
            StoreError: what answers is no gateway.
        """
        parts = urlsplit(url)
        if not parts.hostname:
            raise InvalidInput(f"`store_url` is {hide_password(url)!r}; a gateway is http://HOST:PORT")
        place = parts.netloc.rpartition("@")[2]
        depot = cls(f"{parts.scheme}://{place}{parts.path}", token or unquote(parts.password or ""))
        progress = _Progress(CONNECT_PATIENCE_SECONDS)
        answer = depot._patiently(lambda: depot._json("GET", "/v1/store"), progress)
        if not isinstance(answer.get("id"), str) or answer.get("version") != 1:
            raise StoreError(f"what answers at {depot.place} is no gateway of a version this Graft knows")
        depot.id = answer["id"]
        return depot

    def size(self, digest: Digest) -> int | None:
        """As `Depot`."""
        return self._patiently(lambda: self._ask_size(_path(digest)))

    def write(self, source: Source) -> None:
        """As `Depot`; from where the gateway says that this user's last upload from here stopped."""
        progress = _Progress()
        self._patiently(lambda: self._upload(source, progress), progress)

    def read(self, digest: Digest, start: int = 0) -> Iterator[bytes]:
        """As `Depot`; over as many connections as it takes."""
        path, progress = _path(digest), _Progress()
        place = start
        while True:
            answer = self._patiently(partial(self._get, path, digest, place), progress)
            if answer is None:
                return
            try:
                for chunk in answer.stream(CHUNK_BYTES):
                    progress.note()
                    place += len(chunk)
                    yield chunk
                answer.release_conn()
                return
            except HTTPError as error:
                progress.wait(self._away(error))
            finally:
                answer.close()  # unless it was released, whole, for the next request

    def locate(self, digest: Digest) -> str:
        """The blob's address."""
        return f"{self.place}{_path(digest)}"

    def listing(self, after: str = "", most: int | None = None) -> list[Blob]:
        """As `Depot`; page by page."""
        found: list[Blob] = []
        next_after: str | None = after
        while next_after is not None and (most is None or len(found) < most):
            query = f"/v1/blobs?after={next_after}" + ("" if most is None else f"&most={most - len(found)}")
            page = self._patiently(partial(self._json, "GET", query))
            found += [Blob(Digest(one["digest"]), one["size"], one["stored_at"]) for one in page["blobs"]]
            next_after = page["after"]
        return found if most is None else found[:most]

    def renew(self, digest: Digest) -> None:
        """As `Depot`."""
        answer = self._patiently(lambda: self._ask("POST", f"{_path(digest)}/renewal"))
        if answer.status == 404:
            raise absent(digest, self.place)

    def remove(self, digest: Digest) -> None:
        """As `Depot`."""
        self._patiently(lambda: self._ask("DELETE", _path(digest)))

    def clear_abandoned(self) -> int:
        """As `Depot`."""
        return int(self._patiently(lambda: self._json("DELETE", "/v1/uploads"))["removed"])

    def _ask(self, method: str, path: str) -> BaseHTTPResponse:
        """An answer in which a blob that is not there is none to complain of."""
        answer = self._request(method, path)
        if answer.status != 404:
            self._check(answer)
        return answer

    def _upload(self, source: Source, progress: _Progress) -> None:
        path, writer = _path(source.digest), {WRITER_HEADER: WRITER}
        if progress.failures and self._ask_size(path) == source.size:
            return  # by another process meanwhile, or by the try whose answer was lost
        query = f"/v1/uploads/{source.digest}?size={source.size}"
        offset = min(source.size, int(self._json("GET", query, writer)["offset"]))

        def chunks() -> Iterator[bytes]:
            left = source.size - offset
            for chunk in source.read(offset):
                left -= len(chunk)
                if left < 0:
                    break
                progress.note()
                yield chunk
            if left:  # it is longer or shorter than it was
                raise source.changed()

        headers = {**writer, OFFSET: str(offset), "Content-Length": str(source.size - offset)}
        answer = self._request("PUT", path, headers, chunks())
        if answer.status == 422:
            raise source.changed()
        if answer.status == 423:
            progress.note_other(answer.json().get("offset"))
        self._check(answer)

    def _ask_size(self, path: str) -> int | None:
        answer = self._request("HEAD", path)
        if answer.status == 404:
            return None
        self._check(answer)
        return int(answer.headers["Content-Length"])

    def _get(self, path: str, digest: Digest, start: int) -> BaseHTTPResponse | None:
        """The answer whose body begins at `start`; nothing where that is the end."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._request("GET", path, headers, stream=True)
        if answer.status == 416:
            answer.drain_conn()
            return None
        if answer.status == 404:
            answer.drain_conn()
            raise absent(digest, self.place)
        self._check(answer)
        return answer

    def _json(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        answer = self._request(method, path, headers)
        self._check(answer)
        try:
            document = json.loads(answer.data)
        except ValueError as error:
            raise StoreError(f"what answers at {self.place} is no gateway; check `store_url`") from error
        return document if isinstance(document, dict) else {}

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Iterator[bytes] | None = None,
        *,
        stream: bool = False,
    ) -> BaseHTTPResponse:
        merged = {**self._pool.headers, **(headers or {})}
        return self._pool.request(
            method,
            f"{self.place}{path}",
            headers=merged,
            body=body,
            preload_content=not stream,
            redirect=False,
        )

    def _check(self, answer: BaseHTTPResponse) -> None:
        """Raise what an answer other than a good one means."""
        if answer.status < 300:
            return
        told = _told(answer)
        if answer.status in {401, 403}:
            raise NotAllowed(f"the gateway {self.place} refuses the token; set GRAFT_STORE_TOKEN to its own")
        if answer.status in {408, 409, 423, 425, 429, 500, 502, 503, 504}:
            raise _Again(told)
        raise StoreError(f"the gateway {self.place} answers {answer.status}: {told}")

    def _patiently(self, call: Callable[[], T], progress: _Progress | None = None) -> T:
        """The call's answer; after a broken connection once more, until nothing came through for long."""
        progress = progress or _Progress()
        while True:
            try:
                return call()
            except (HTTPError, _Again) as error:
                progress.wait(self._away(error))

    def _away(self, error: Exception) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(
            f"the gateway {self.place} does not answer ({reason}); is `graft gateway` running there?"
        )


class _Again(GraftError):
    """The gateway cannot now."""


class _Progress:
    """When something last came through, and how long to wait after a failure."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience = patience_seconds
        self._of_other: object = None
        self.failures = 0
        self.note()

    def note(self) -> None:
        """Something came through."""
        self._at, self._pause = time.monotonic(), PAUSE_SECONDS

    def note_other(self, offset: object) -> None:
        """Another process brings the same, and is so far."""
        if offset != self._of_other:
            self._of_other, self._at = offset, time.monotonic()

    def wait(self, failure: Unreachable) -> None:
        """Before the next try.

        Raises:
            Unreachable: `failure`, when it has been long enough.
        """
        if time.monotonic() + self._pause - self._at > self._patience:
            raise failure
        self.failures += 1
        time.sleep(self._pause)
        self._pause *= 2


def _path(digest: Digest) -> str:
    return f"/v1/blobs/sha256:{check_digest(digest)}"


def _told(answer: BaseHTTPResponse) -> str:
    """The error that the gateway put into words, or the status."""
    try:
        return str(json.loads(answer.data)["error"])
    except (ValueError, KeyError, TypeError, HTTPError):
        return answer.reason or "no reason given"
