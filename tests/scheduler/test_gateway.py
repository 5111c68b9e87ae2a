"""The gateway: blobs go through it whole and right, whatever breaks, and to nobody without a token."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import urllib3

from graft_scheduler.errors import InvalidInput, NotAllowed, StoreError, Unreachable
from graft_scheduler.states import Digest
from graft_scheduler.store import Store, gateway, open_store
from graft_scheduler.store.depots import Source
from graft_scheduler.store.folder import FolderDepot
from graft_scheduler.store.gateway import GatewayDepot
from graft_scheduler.store.writers import WRITER
from tests.cutter import Cutter
from tests.scheduler.depot_laws import ABSENT, check_clearing, check_housekeeping
from tests.services import eventually, free_port, listens

pytestmark = pytest.mark.processes
TOKEN = "open sesame"
MIB = 1 << 20


class Gateway:
    """A real `python -m graft_scheduler.gateway` over a folder."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = {"GRAFT_STORE_TOKEN": TOKEN, **settings}
        self.start()

    def start(self) -> None:
        variables = {
            "GRAFT_GATEWAY_FOLDER": str(self.folder),
            "GRAFT_GATEWAY_PORT": str(self.port),
            "GRAFT_DATA_DIR": str(self.folder.parent / "data"),
            **self._settings,
        }
        command = [sys.executable, "-m", "graft_scheduler.gateway"]
        self.process = subprocess.Popen(command, env={**os.environ, **variables})
        eventually(self.answers, 20, "it answers")

    def answers(self) -> bool:
        assert self.process.poll() is None, "it has ended"
        with suppress(urllib3.exceptions.HTTPError):
            return self.ask("GET", "/healthz").status == 200
        return False

    def ask(
        self, method: str, path: str, token: str | None = TOKEN, **more: object
    ) -> urllib3.BaseHTTPResponse:
        headers = dict(more.pop("headers", {}))  # type: ignore[call-overload]
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return urllib3.request(method, f"{self.url}{path}", headers=headers, retries=False, **more)  # type: ignore[arg-type]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def depot(self) -> FolderDepot:
        return FolderDepot.open(self.folder)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One for all tests of a process: what they put is named by what it is."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway") / "served")
    yield gateway
    gateway.kill()


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Gateway]:
    """One for a test that counts what is there, or harms it."""
    gateway = Gateway(tmp_path / "served")
    yield gateway
    gateway.kill()


@pytest.fixture
def store(service: Gateway) -> Store:
    return open_store(service.url, TOKEN)


def make_file(path: Path, size: int) -> Path:
    """Like no other: the service, which the tests share, has not got it yet."""
    path.write_bytes(os.urandom(size))
    return path


def digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def soon(probe: Callable[[], bool], what: str) -> None:
    """As `eventually`, but noticed within a millisecond."""
    deadline = time.monotonic() + 30
    while not probe():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.001)


# --- round trips


def test_files_and_folders_come_back_through_it(service: Gateway, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    make_file(folder / "large", 3 * MIB + 7)
    (folder / "sub" / "empty").write_bytes(b"")

    digest = store.put_folder(folder)
    store.get_folder(digest, tmp_path / "out")

    assert (tmp_path / "out" / "large").read_bytes() == (folder / "large").read_bytes()
    assert (tmp_path / "out" / "sub" / "empty").read_bytes() == b""
    assert store.has(digest)
    assert open_store(service.folder.as_uri()).id == store.id


def test_a_range_is_what_was_asked_for(service: Gateway, store: Store) -> None:
    digest = store.put_bytes(b"0123456789")

    part = service.ask("GET", f"/v1/blobs/{digest}", headers={"Range": "bytes=2-4"})
    rest = service.ask("GET", f"/v1/blobs/{digest}", headers={"Range": "bytes=7-"})
    beyond = service.ask("GET", f"/v1/blobs/{digest}", headers={"Range": "bytes=10-"})
    head = service.ask("HEAD", f"/v1/blobs/{digest}")

    assert (part.status, part.data) == (206, b"234")
    assert (rest.status, rest.data) == (206, b"789")
    assert beyond.status == 416
    assert (head.status, head.headers["Content-Length"], head.data) == (200, "10", b"")


def test_it_lists_what_it_has(own_service: Gateway) -> None:
    store = open_store(own_service.url, TOKEN)
    digests = sorted(store.put_bytes(text) for text in (b"a", b"bb", b"ccc"))

    answer = own_service.ask("GET", "/v1/blobs").json()
    behind = own_service.ask("GET", f"/v1/blobs?after={digests[0]}").json()

    assert [one["digest"] for one in answer["blobs"]] == digests
    assert sum(one["size"] for one in answer["blobs"]) == 6
    assert [one["digest"] for one in behind["blobs"]] == digests[1:]
    assert own_service.ask("GET", "/v1/store").json()["used_bytes"] == 6


# --- refusals


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/store"), ("PUT", "/v1/blobs/x"), ("GET", "/nothing")]
)
def test_nothing_is_answered_without_the_token(
    service: Gateway, token: str | None, method: str, path: str
) -> None:
    answer = service.ask(method, path, token)

    assert answer.status == 401
    assert "token" in answer.json()["error"]


def test_a_wrong_token_is_one_line_that_names_the_setting(service: Gateway) -> None:
    with pytest.raises(NotAllowed, match=r"refuses the token; set GRAFT_STORE_TOKEN"):
        open_store(service.url, "wrong")


def test_a_token_may_stand_in_the_url(service: Gateway) -> None:
    url = service.url.replace("://", f"://:{TOKEN.replace(' ', '%20')}@")

    assert open_store(url).id == open_store(service.url, TOKEN).id


def test_bytes_of_another_digest_are_refused_and_leave_nothing(service: Gateway) -> None:
    wanted = digest_of(b"right")

    answer = service.ask("PUT", f"/v1/blobs/{wanted}", body=b"wrong")

    assert answer.status == 422
    assert wanted in answer.json()["error"]
    assert digest_of(b"wrong") in answer.json()["error"]
    assert service.depot.size(wanted) is None
    assert service.depot.brought(wanted, "anybody") == 0


@pytest.mark.parametrize(
    "path",
    ["/v1/blobs/..%2F..%2Fstore.json", "/v1/blobs/../../store.json", "/v1/blobs/sha256:12", "/store.json"],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_name_that_is_no_digest_leads_nowhere(service: Gateway, method: str, path: str) -> None:
    answer = service.ask(method, path, body=b"x" if method == "PUT" else None)

    assert answer.status in {400, 404, 405}
    assert b"version" not in answer.data


@pytest.mark.parametrize(
    "headers", [{"Upload-Writer": "../x"}, {"Upload-Offset": "-1"}, {"Upload-Offset": "many"}]
)
def test_a_bad_header_is_refused_by_name(service: Gateway, headers: dict[str, str]) -> None:
    answer = service.ask("PUT", f"/v1/blobs/{digest_of(b'x')}", body=b"x", headers=headers)

    assert answer.status == 400
    assert next(iter(headers)) in answer.json()["error"]


def test_an_offset_that_is_not_what_is_there_is_refused_with_what_is(service: Gateway) -> None:
    answer = service.ask("PUT", f"/v1/blobs/{digest_of(b'abc')}", body=b"c", headers={"Upload-Offset": "2"})

    assert answer.status == 409
    assert answer.json()["offset"] == 0


def test_what_exceeds_the_quota_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    service = Gateway(tmp_path / "served", GRAFT_GATEWAY_QUOTA_BYTES="1MB")
    try:
        store = open_store(service.url, TOKEN)
        store.put_file(make_file(tmp_path / "fits", 900_000))

        with pytest.raises(StoreError, match=r"507.*900000 of the quota's 1048576 are in use.*--quota"):
            store.put_file(make_file(tmp_path / "does not", 200_000))

        assert service.ask("PUT", f"/v1/blobs/{digest_of(b'x')}", body=b"x" * 200_000).status == 507
        assert service.depot.used_bytes() == 900_000
    finally:
        service.kill()


def test_it_keeps_house_and_what_is_removed_makes_room(own_service: Gateway) -> None:
    depot = GatewayDepot.connect(own_service.url, TOKEN)
    check_housekeeping(depot)
    with own_service.depot.incoming(ABSENT, "old") as old:
        old.append(b"half")
    os.utime(old.path, (0, 0))
    check_clearing(depot, 1)
    used = own_service.ask("GET", "/v1/store").json()["used_bytes"]

    for blob in depot.listing():
        depot.remove(blob.digest)
        depot.remove(blob.digest)

    assert used == 5
    assert own_service.ask("GET", "/v1/store").json()["used_bytes"] == 0
    assert own_service.depot.listing() == []


@pytest.mark.parametrize("size", [100, 99, 101])
def test_what_changed_while_it_was_sent_is_refused(store: Store, tmp_path: Path, size: int) -> None:
    file = make_file(tmp_path / "file", 100)
    source = Source.of_file(file)
    file.write_bytes(b"y" * size)

    with pytest.raises(StoreError, match="changed while it was being stored"):
        store._depot.write(source)


def test_others_may_reach_it_only_with_a_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graft_scheduler.gateway"]
    variables = {"GRAFT_GATEWAY_ADDRESS": "0.0.0.0", "GRAFT_DATA_DIR": str(tmp_path)}

    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 4
    assert "GRAFT_STORE_TOKEN" in done.stderr


@pytest.mark.parametrize("url", ["http://", "https:///path", "http://:hunter2@"])
def test_a_url_without_a_host_is_refused_and_its_token_is_not_told(url: str) -> None:
    with pytest.raises(InvalidInput, match="http://HOST:PORT") as caught:
        open_store(url)

    assert "hunter2" not in str(caught.value)


def test_no_gateway_is_unreachable_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CONNECT_PATIENCE_SECONDS", 0.5)

    with pytest.raises(Unreachable, match=r"does not answer.*`graft gateway`"):
        open_store(f"http://127.0.0.1:{free_port()}")


# --- broken connections


def test_an_upload_goes_on_from_where_its_connection_broke(
    service: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutter = Cutter(service.port, 6 * MIB, "up")
    file = make_file(tmp_path / "file", 16 * MIB)

    digest = open_store(cutter.url, TOKEN).put_file(file)

    cutter.close()
    assert service.depot.path(digest).read_bytes() == file.read_bytes()
    assert len([passed for passed in cutter.passed if passed > MIB]) >= 2, "it was never cut"
    assert sum(cutter.passed) < 24 * MIB, "it began anew each time"


def test_a_download_goes_on_from_where_its_connection_broke(
    service: Gateway, store: Store, tmp_path: Path
) -> None:
    file = make_file(tmp_path / "file", 16 * MIB)
    digest = store.put_file(file)
    cutter = Cutter(service.port, 6 * MIB, "down")

    open_store(cutter.url, TOKEN).get_file(digest, tmp_path / "back")

    cutter.close()
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert sum(cutter.passed) < 24 * MIB, "it began anew each time"


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_gateway_that_is_killed_and_comes_back_costs_a_pause(
    service: Gateway, store: Store, tmp_path: Path, way: str
) -> None:
    file = make_file(tmp_path / "file", 48 * MIB)
    digest = store.put_file(file) if way == "down" else digest_of(file.read_bytes())
    partial = tmp_path / f".back.{digest[7:23]}.partial"

    def work() -> None:
        if way == "up":
            store.put_file(file)
        else:
            store.get_file(digest, tmp_path / "back")

    def has_begun() -> bool:
        begun = partial if way == "down" else service.folder / "incoming" / f"{digest[7:]}.{WRITER}"
        return begun.exists() and begun.stat().st_size > MIB

    thread = threading.Thread(target=work)
    thread.start()
    soon(has_begun, "it is on its way")
    service.kill()
    assert way == "down" or service.depot.size(digest) is None
    assert not (tmp_path / "back").exists()
    service.start()
    thread.join(60)

    found = service.depot.path(digest) if way == "up" else tmp_path / "back"
    assert found.read_bytes() == file.read_bytes()
    assert not partial.exists()


FETCH = """
import sys
from pathlib import Path
from graft_scheduler.store import open_store
open_store(sys.argv[1], sys.argv[2]).get_folder(sys.argv[3], Path(sys.argv[4]))
"""


def test_a_download_whose_process_was_killed_is_gone_on_with(
    service: Gateway, store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        make_file(folder / name, 48 * MIB + ord(name))
    digest = store.put_folder(folder)
    partial = tmp_path / f".out.{digest[7:23]}.partial"
    command = [sys.executable, "-c", FETCH, service.url, TOKEN, digest, str(tmp_path / "out")]
    process = subprocess.Popen(command)
    soon(lambda: (partial / "b").exists(), "the second file is on its way")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    cutter = Cutter(service.port, 1 << 40, "down")

    open_store(cutter.url, TOKEN).get_folder(digest, tmp_path / "out")

    cutter.close()
    eventually(lambda: bool(cutter.passed), 5, "its connection is counted")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in ("a", "b")} == {
        name: (folder / name).read_bytes() for name in ("a", "b")
    }
    assert sum(cutter.passed) < 60 * MIB, "the first file was brought again"
    assert not partial.exists()


def test_two_uploads_of_one_file_from_one_machine_both_succeed(own_service: Gateway, tmp_path: Path) -> None:
    file = make_file(tmp_path / "file", 8 * MIB)
    found: list[Digest] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_store(own_service.url, TOKEN).put_file(file)))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert found == [digest_of(file.read_bytes())] * 4
    assert own_service.depot.path(found[0]).read_bytes() == file.read_bytes()
    assert own_service.ask("GET", "/v1/store").json()["used_bytes"] == 8 * MIB


def test_a_large_file_takes_no_more_memory_than_a_small_one(own_service: Gateway, tmp_path: Path) -> None:
    store = open_store(own_service.url, TOKEN)
    store.get_file(store.put_file(make_file(tmp_path / "small", 8 * MIB)), tmp_path / "small back")
    process, own = psutil.Process(own_service.process.pid), psutil.Process()
    before, before_here = process.memory_info().rss, own.memory_info().rss
    with (tmp_path / "large").open("wb") as file:
        file.truncate(200 * MIB)

    store.get_file(store.put_file(tmp_path / "large"), tmp_path / "large back")

    assert process.memory_info().rss - before < 40 * MIB
    assert own.memory_info().rss - before_here < 40 * MIB


def test_a_folder_that_cannot_be_written_is_told_as_no_room(own_service: Gateway) -> None:
    """By a limit on the size of files, as a full disk would."""
    store = open_store(own_service.url, TOKEN)
    resource.prlimit(own_service.process.pid, resource.RLIMIT_FSIZE, (MIB, MIB))

    with pytest.raises(StoreError, match="cannot write store"):
        store.put_bytes(b"x" * 3 * MIB)

    assert not any((own_service.folder / "incoming").iterdir())
    assert store.get_bytes(store.put_bytes(b"small")) == b"small"


def test_a_connection_to_a_server_that_is_no_gateway_is_told_as_such(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "http.server", str(port := free_port()), "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(port), 10, "it listens")
        with pytest.raises(StoreError, match=r"404|no gateway"):
            GatewayDepot.connect(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
