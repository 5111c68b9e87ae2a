"""The gateway's answers: blobs out of a folder by digest, and into it, from where an upload stopped."""

from __future__ import annotations

import errno
import hmac
import re
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import anyio
from anyio import from_thread, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from graft_scheduler.errors import GraftError, InvalidInput
from graft_scheduler.gateway.quota import NoRoom, Quota
from graft_scheduler.states import Digest
from graft_scheduler.store.depots import CHUNK_BYTES, check_digest
from graft_scheduler.store.folder import FolderDepot
from graft_scheduler.store.partials import Busy, remove

OPEN_PATH = "/healthz"
"""Answered without a token: it tells nothing."""
LISTED = 1000
"""Blobs in one answer."""
SILENT_SECONDS = 20.0
"""An upload that brings nothing for so long has lost its other end."""
MOST_UPLOADS = 64
"""At a time: each has a thread."""
READ_BYTES = 4 << 20
"""Read of a file at a time, for a download."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRITER = re.compile(r"[A-Za-z0-9_-]{1,64}")


def build_app(depot: FolderDepot, tokens: Sequence[str], quota: Quota) -> ASGIApp:
    """The service over one folder; without tokens it asks for none."""
    gateway = Gateway(depot, quota)
    app = Starlette(
        routes=[
            Route(OPEN_PATH, gateway.health),
            Route("/v1/store", gateway.about),
            Route("/v1/blobs", gateway.listing),
            Route("/v1/blobs/{digest}", gateway.put, methods=["PUT"]),
            Route("/v1/blobs/{digest}", gateway.remove, methods=["DELETE"]),
            Route("/v1/blobs/{digest}", gateway.get),
            Route("/v1/blobs/{digest}/renewal", gateway.renew, methods=["POST"]),
            Route("/v1/uploads", gateway.clear_abandoned, methods=["DELETE"]),
            Route("/v1/uploads/{digest}", gateway.upload),
        ],
        exception_handlers={HTTPException: _refused, GraftError: _failed, ClientDisconnect: _gone},
    )
    return _Guard(app, tokens) if tokens else app


class Gateway:
    """One folder over HTTP."""

    def __init__(self, depot: FolderDepot, quota: Quota) -> None:
        self._depot = depot
        self._quota = quota
        self._uploads = anyio.CapacityLimiter(MOST_UPLOADS)
        self._removing = threading.Lock()

    async def health(self, request: Request) -> Response:
        """Whether it lives."""
        return JSONResponse({"ok": True})

    async def about(self, request: Request) -> Response:
        """Which store this is, and how full."""
        figures = {"used_bytes": self._quota.used_bytes, "quota_bytes": self._quota.limit_bytes}
        return JSONResponse({"version": 1, "id": self._depot.id, **figures})

    async def listing(self, request: Request) -> Response:
        """Blobs in the order of their digests, those behind `after`."""
        after = request.query_params.get("after", "")
        most = min(LISTED, _number(request.query_params.get("most", str(LISTED)), "most"))
        found = await to_thread.run_sync(self._depot.listing, after, most)
        blobs = [{"digest": one.digest, "size": one.size, "stored_at": one.stored_at} for one in found]
        return JSONResponse(
            {"blobs": blobs, "after": found[-1].digest if found and len(found) == most else None}
        )

    async def get(self, request: Request) -> Response:
        """A blob, or the ranges of it that are asked for; its size alone for HEAD."""
        digest = _digest(request)
        if await to_thread.run_sync(self._depot.size, digest) is None:
            raise HTTPException(404, f"{digest} is not here")
        headers = {"Cache-Control": "private, immutable, max-age=31536000", "ETag": f'"{digest}"'}
        return _Blob(self._depot.path(digest), media_type="application/octet-stream", headers=headers)

    async def renew(self, request: Request) -> Response:
        """Have a blob count as stored now."""
        digest = _digest(request)
        if await to_thread.run_sync(self._depot.size, digest) is None:
            raise HTTPException(404, f"{digest} is not here")
        await to_thread.run_sync(self._depot.renew, digest)
        return Response(status_code=204)

    async def remove(self, request: Request) -> Response:
        """Remove a blob; the quota has room again."""
        await to_thread.run_sync(self._remove, _digest(request))
        return Response(status_code=204)

    def _remove(self, digest: Digest) -> None:
        with self._removing:  # two at once must not both count it
            size = self._depot.size(digest)
            if size is not None:
                self._depot.remove(digest)
                self._quota.add(-size)

    async def clear_abandoned(self, request: Request) -> Response:
        """Remove what was left half-written and nobody went on with for a day."""
        return JSONResponse({"removed": await to_thread.run_sync(self._depot.clear_abandoned)})

    async def upload(self, request: Request) -> Response:
        """How much of a blob the writer has brought so far; refused where the rest would not fit."""
        brought = await to_thread.run_sync(self._depot.brought, _digest(request), _writer(request))
        self._quota.check(_number(request.query_params.get("size", "0"), "size") - brought)
        return JSONResponse({"offset": brought})

    async def put(self, request: Request) -> Response:
        """Take the rest of a blob, from `Upload-Offset` on; it appears if it is what its digest says."""
        digest, writer = _digest(request), _writer(request)
        offset = _number(request.headers.get("Upload-Offset", "0"), "Upload-Offset")
        if "Content-Length" not in request.headers:
            raise HTTPException(411, "`Content-Length` is missing; say how many bytes will come")
        length = _number(request.headers["Content-Length"], "Content-Length")

        def take() -> Response:
            return self._take(digest, writer, offset, length, _blocking(_in_large_chunks(request.stream())))

        return await to_thread.run_sync(take, limiter=self._uploads)

    def _take(
        self, digest: Digest, writer: str, offset: int, length: int, chunks: Iterator[bytes]
    ) -> Response:
        try:
            with (
                self._quota.reserved(length),
                self._depot.incoming(digest, writer, alone=True) as partial,
            ):
                if offset == 0:
                    partial.restart()
                if partial.size != offset:
                    return _error(409, f"{partial.size} bytes are here, not {offset}", offset=partial.size)
                for chunk in chunks:
                    partial.append(chunk)
                if partial.digest != digest:
                    remove(partial.path)
                    return _error(422, f"the bytes are {partial.digest}, not {digest}")
                with self._removing:
                    is_new = self._depot.size(digest) is None
                    self._depot.publish(partial, digest)
                    self._quota.add(partial.size if is_new else 0)
                return JSONResponse({"digest": digest, "size": partial.size}, 201)
        except Busy:
            brought = self._depot.brought(digest, writer)
            return _error(423, "another upload of it is on its way", offset=brought)


class _Blob(FileResponse):
    chunk_size = READ_BYTES


class _Guard:
    """Nothing is answered without a token."""

    def __init__(self, app: ASGIApp, tokens: Sequence[str]) -> None:
        self._app = app
        self._tokens = [token.encode() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != OPEN_PATH and not self._knows(scope):
            answer = _error(401, "the token is missing or wrong")
            answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        matches = [hmac.compare_digest(token.strip(), one) for one in self._tokens]  # all, whichever is right
        return scheme.lower() == b"bearer" and any(matches)


def _digest(request: Request) -> Digest:
    digest = Digest(request.path_params["digest"])
    check_digest(digest)
    return digest


def _writer(request: Request) -> str:
    """Who uploads: what was left half-written is gone on from by the same one only."""
    writer = request.headers.get("Upload-Writer", "anybody")
    if not _WRITER.fullmatch(writer):
        raise HTTPException(400, "`Upload-Writer` must be 1 to 64 letters, digits, `_` or `-`")
    return writer


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise HTTPException(400, f"`{name}` is {text!r}; it must be a number of bytes")
    return int(text)


async def _in_large_chunks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Joined, as a thread is asked for each of them.

    Raises:
        ClientDisconnect: also when nothing comes any more.
    """
    joined = bytearray()
    while True:
        try:
            with anyio.fail_after(SILENT_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise ClientDisconnect from error
        if chunk is None:
            break
        joined += chunk
        if len(joined) >= CHUNK_BYTES:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


def _blocking(stream: AsyncIterator[bytes]) -> Iterator[bytes]:
    """For a thread of the event loop that `stream` belongs to."""

    async def following() -> bytes | None:
        return await anext(stream, None)

    while (chunk := from_thread.run(following)) is not None:
        yield chunk


def _error(status: int, text: str, **more: int) -> Response:
    return JSONResponse({"error": text, **more}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, InvalidInput):
        return _error(400, str(error))
    is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
    return _error(507 if is_full or isinstance(error, NoRoom) else 500, str(error))


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody hears it."""
    return _error(400, "the upload broke off")
