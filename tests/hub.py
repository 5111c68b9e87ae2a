"""A hub on this machine that speaks as much of the Hugging Face API as `huggingface_hub` needs to describe
and fetch models: set `HF_ENDPOINT` to its `url`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
CHUNK_BYTES = 1 << 16


@dataclass
class Repository:
    """A model: one commit, which `main` is."""

    files: dict[str, bytes]
    tokens: frozenset[str] | None = None
    """Who may have the files; absent: everybody."""
    is_private: bool = False
    """Others are not even told that it exists."""

    @property
    def commit(self) -> str:
        sha = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(self.files.items()):
            sha.update(name.encode() + content)
        return sha.hexdigest()


@dataclass
class Hub:
    """What the hub has, and what was asked of it."""

    url: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Methods and paths, in order."""
    sent_bytes: int = 0
    cut_after: int | None = None
    """The next connection that sends more than this breaks off there, once."""
    rests_after: int | None = None
    """A connection that sends more than this sends nothing more after it, until the hub ends."""
    rests: bool = False
    """One does."""
    is_over: threading.Event = field(default_factory=threading.Event)
    is_away: bool = False
    """It answers 503 to everything."""

    def add(self, name: str, folder: Path, **settings: Any) -> Repository:
        """Serve the files of a folder as a model."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        self.models[name] = Repository(files, **settings)
        return self.models[name]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without models yet."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nothing: what was asked is in `asked`."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.asked.append((self.command, path))
        if self.served.is_away:
            self._refuse(503, "", "the hub rests")
        elif found := TREE.fullmatch(path):
            self._tree(found[1], found[2])
        elif found := INFO.fullmatch(path):
            self._info(found[1], found[2])
        elif found := FILE.fullmatch(path):
            self._file(*found.groups())
        else:
            self._refuse(404, "", "no such page")

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        """The model, if it may be known of; otherwise the refusal is sent."""
        found = self.served.models.get(name)
        if found is None or (found.is_private and not self._may_have(found)):
            self._refuse(401 if not self._token() else 404, "RepoNotFound", "no such repository")
            return None
        if revision not in (None, "main", found.commit):
            self._refuse(404, "RevisionNotFound", "no such revision")
            return None
        return found

    def _info(self, name: str, revision: str | None) -> None:
        if (found := self._repository(name, revision)) is not None:
            siblings = [
                {"rfilename": file, "size": len(content), "blobId": _etag(content)}
                for file, content in sorted(found.files.items())
            ]
            gated = "manual" if found.tokens is not None and not found.is_private else False
            self._send_json({"id": name, "sha": found.commit, "siblings": siblings, "gated": gated})

    def _tree(self, name: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is not None:
            self._send_json(
                [
                    {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
                    for file, content in sorted(found.files.items())
                ]
            )

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self._repository(name, revision)
        if found is None:
            return
        if not self._may_have(found):
            self._refuse(403 if self._token() else 401, "GatedRepo", f"Access to {name} is restricted")
        elif file not in found.files:
            self._refuse(404, "EntryNotFound", "no such file")
        else:
            self._send_file(found, found.files[file])

    def _send_file(self, found: Repository, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        body = content[start : int(asked[2]) + 1 if asked and asked[2] else None]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", found.commit)
        self.end_headers()
        if self.command == "GET":
            self._send_body(body)

    def _send_body(self, body: bytes) -> None:
        hub = self.served
        most = len(body)
        if hub.cut_after is not None and most > hub.cut_after:
            most, hub.cut_after = hub.cut_after, None
            self.close_connection = True
        for start in range(0, most, CHUNK_BYTES):
            if hub.rests_after is not None and start > hub.rests_after:
                hub.rests = True
                hub.is_over.wait()
            self.wfile.write(body[start : min(start + CHUNK_BYTES, most)])
        hub.sent_bytes += most

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, text: str) -> None:
        body = json.dumps({"error": text}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_have(self, found: Repository) -> bool:
        return found.tokens is None or self._token() in found.tokens


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
