"""Stores on file servers, S3 and SFTP: what is put comes back whole and right, or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import urllib3

from graft_scheduler.errors import InvalidInput, NotAllowed, StoreError, Unreachable
from graft_scheduler.states import Digest
from graft_scheduler.store import Store, files, open_store, remote
from graft_scheduler.store.depots import Source
from graft_scheduler.store.remote import RemoteDepot
from tests.cutter import Cutter
from tests.file_servers import BUCKET, S3_VARIABLES, Place, S3Place, S3Server, SftpPlace, SftpServer
from tests.scheduler.depot_laws import check_clearing, check_housekeeping
from tests.services import eventually, free_port

pytestmark = pytest.mark.processes
KIB, MIB = 1 << 10, 1 << 20
PART = 256 * KIB
"""Of the tests: many parts, and little to carry."""


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def sftp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    server = SftpServer(tmp_path_factory.mktemp("sftp"))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    for name, value in {**S3_VARIABLES, "AWS_ENDPOINT_URL": s3_server.endpoint}.items():
        monkeypatch.setenv(name, value)
    return S3Place(s3_server)


@pytest.fixture
def sftp(sftp_server: SftpServer, monkeypatch: pytest.MonkeyPatch) -> SftpPlace:
    monkeypatch.setenv("HOME", str(sftp_server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return SftpPlace(sftp_server)


@pytest.fixture(params=["s3", "sftp"])
def place(request: pytest.FixtureRequest) -> Place:
    """One of the two: all that is said of both is tested on both."""
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", PART)


def depot_of(store: Store) -> RemoteDepot:
    assert isinstance(store._depot, RemoteDepot)
    return store._depot


def make_file(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def visible(place: Place) -> list[str]:
    return [name for name in place.names() if name.startswith("blobs/")]


def parts_of(place: Place) -> dict[str, int]:
    return {name: size for name, size in place.names().items() if name.startswith("parts/")}


# --- round trips


def test_files_and_folders_come_back(place: Place, tmp_path: Path, small_parts: None) -> None:
    folder = tmp_path / "in"
    (folder / "süb").mkdir(parents=True)
    contents = {"large": os.urandom(5 * PART + 7), "exact": os.urandom(2 * PART), "süb/empty": b""}
    for name, data in contents.items():
        (folder / name).write_bytes(data)

    store = place.open()
    digest = store.put_folder(folder)
    store.get_folder(digest, tmp_path / "out")

    assert {name: (tmp_path / "out" / name).read_bytes() for name in contents} == contents
    assert max(place.names().values()) == PART
    assert not store.has(digest_of(b"never stored"))


@pytest.mark.parametrize("size", [5, 3 * PART + 5])
def test_a_blob_is_read_from_any_byte_on(place: Place, small_parts: None, size: int) -> None:
    data = os.urandom(size)
    depot = depot_of(place.open())
    depot.write(Source.of_bytes(data))

    for start in (0, 1, PART - 1, PART, PART + 1, size - 1, size, size + PART):
        assert b"".join(depot.read(digest_of(data), start)) == data[start:]


def test_all_who_open_one_place_see_one_id_and_another_place_has_another(place: Place) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(place.open().id)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found)) == 1
    assert place.names().keys() == {"store.json"}


def test_writers_at_once_leave_one_whole_blob_and_nothing_else(
    place: Place, tmp_path: Path, small_parts: None
) -> None:
    file = make_file(tmp_path / "file", 6 * PART + 1)
    found: list[Digest] = []
    threads = [threading.Thread(target=lambda: found.append(place.open().put_file(file))) for _ in range(2)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert found == [digest_of(file.read_bytes())] * 2
    assert sorted(parts_of(place).values()) == [1, *[PART] * 6]
    assert len(place.names()) == 7 + 1 + 1, "parts, index, store.json"
    place.open().get_file(found[0], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


# --- what breaks

PUT = """
import sys
from pathlib import Path
from graft_scheduler.store import open_store, remote
remote.PART_BYTES = int(sys.argv[3])
open_store(sys.argv[1]).put_file(Path(sys.argv[2]))
"""


def test_a_killed_upload_shows_nothing_and_the_next_one_goes_on(
    place: Place, tmp_path: Path, small_parts: None
) -> None:
    file = make_file(tmp_path / "file", 48 * PART)
    with subprocess.Popen([sys.executable, "-c", PUT, place.url, str(file), str(PART)]) as process:
        try:
            eventually(lambda: len(parts_of(place)) > 8, what="it is on its way")
        finally:
            process.kill()
    brought = sum(parts_of(place).values())
    assert not visible(place)
    cutter = Cutter(place.port, 1 << 40, "up")

    store = place.open(cutter.port)
    assert not store.has(digest_of(file.read_bytes()))
    digest = store.put_file(file)

    assert brought > 8 * PART
    assert cutter.so_far < 48 * PART - brought + MIB, "what was there was sent again"
    store.get_file(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    cutter.close()


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_goes_on_when_its_connections_break(
    place: Place, tmp_path: Path, small_parts: None, way: str
) -> None:
    file = make_file(tmp_path / "file", 24 * PART)
    store = place.open()
    digest = store.put_file(file) if way == "down" else digest_of(file.read_bytes())
    cutter = Cutter(place.port, 2 * MIB, way)
    through = place.open(cutter.port)

    if way == "up":
        through.put_file(file)
    (through if way == "down" else store).get_file(digest, tmp_path / "back")

    cutter.close()
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert cutter.cuts >= 2
    assert cutter.so_far < 11 * MIB, "it began anew each time"


def test_a_server_that_is_killed_and_comes_back_costs_a_pause(
    sftp: SftpPlace, tmp_path: Path, small_parts: None
) -> None:
    file = make_file(tmp_path / "file", 24 * PART)
    store, done = sftp.open(), list[Digest]()
    thread = threading.Thread(target=lambda: done.append(store.put_file(file)))
    thread.start()
    eventually(lambda: len(parts_of(sftp)) > 4, what="it is on its way")

    sftp.server.stop()
    assert not visible(sftp)
    sftp.server.start()
    thread.join(60)

    store.get_file(done[0], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("size", [PART, 3 * PART])
@pytest.mark.parametrize("change", [-1, 0, 1])
def test_what_changed_while_it_was_sent_is_refused(
    sftp: SftpPlace, tmp_path: Path, small_parts: None, size: int, change: int
) -> None:
    file = make_file(tmp_path / "file", size)
    source = Source.of_file(file)
    make_file(file, size + change)

    with pytest.raises(StoreError, match="changed while it was being stored"):
        depot_of(sftp.open()).write(source)

    assert not visible(sftp)


# --- damage


def whole(place: Place) -> str:
    return next(name for name in visible(place) if not name.endswith(".parts"))


def nth_part(place: Place, number: int) -> str:
    return sorted(parts_of(place))[number]


def index(place: Place) -> str:
    return next(name for name in visible(place) if name.endswith(".parts"))


Harm = Callable[[Place], None]
HARMS: dict[str, tuple[int, Harm]] = {
    "a blob of other bytes": (5, lambda place: place.overwrite(whole(place), b"WRONG")),
    "a part of other bytes": (4 * PART, lambda place: place.overwrite(nth_part(place, 2), os.urandom(PART))),
    "a part cut short": (4 * PART, lambda place: place.overwrite(nth_part(place, 2), b"short")),
    "a part that is gone": (4 * PART, lambda place: place.remove(nth_part(place, 2))),
}


@pytest.mark.parametrize(
    ("place", "harm"),
    [("s3", "a part of other bytes"), *(("sftp", harm) for harm in HARMS)],
    indirect=["place"],
)
def test_a_damaged_blob_is_an_error_that_names_it_and_is_mended_by_storing_it_again(
    place: Place, tmp_path: Path, small_parts: None, harm: str
) -> None:
    size, do = HARMS[harm]
    file = make_file(tmp_path / "file", size)
    store = place.open()
    digest = store.put_file(file)
    do(place)

    expected = "is not there" if harm == "a part that is gone" else r"are sha256:\w{64}, not sha256:\w{64}"
    with pytest.raises(
        StoreError, match=f"{digest} is damaged, .*{expected}; it was removed, store it again"
    ):
        store.get_file(digest, tmp_path / "back")

    assert not (tmp_path / "back").exists()
    assert not store.has(digest)
    store.put_file(file)
    store.get_file(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"version": 1, "size": 5', b'{"version": 1}'])
def test_a_damaged_index_is_as_none_and_is_mended_by_storing_again(
    sftp: SftpPlace, tmp_path: Path, small_parts: None, damage: bytes
) -> None:
    file = make_file(tmp_path / "file", 2 * PART + 1)
    store = sftp.open()
    digest = store.put_file(file)
    sftp.overwrite(index(sftp), damage)

    with pytest.raises(StoreError, match=f"{digest} is not in store"):
        store.get_file(digest, tmp_path / "back")

    store.put_file(file)
    store.get_file(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_an_index_of_a_later_version_is_left_alone(
    sftp: SftpPlace, tmp_path: Path, small_parts: None
) -> None:
    file = make_file(tmp_path / "file", 2 * PART)
    store = sftp.open()
    store.put_file(file)
    later = b'{"version": 2, "something": "else"}'
    sftp.overwrite(name := index(sftp), later)

    with pytest.raises(StoreError, match="update Graft"):
        store.put_file(file)

    assert sftp.names()[name] == len(later)


# --- keeping house


def test_what_is_there_is_listed_renewed_and_removed(place: Place, tmp_path: Path, small_parts: None) -> None:
    store = place.open()
    depot = depot_of(store)
    made = {size: make_file(tmp_path / str(size), size) for size in (0, 7, PART, 3 * PART + 1)}
    sizes = {store.put_file(file): size for size, file in made.items()}
    digests = sorted(sizes)

    assert [(blob.digest, blob.size) for blob in depot.listing()] == [(one, sizes[one]) for one in digests]
    assert [blob.digest for blob in depot.listing(digests[1], 1)] == [digests[2]]
    assert [blob.digest for blob in depot.listing(digests[3])] == []
    last = max(blob.stored_at for blob in depot.listing())
    eventually(lambda: min(renewed(depot)) > last, what="later times")
    for digest in digests:
        assert b"".join(depot.read(digest)) == (tmp_path / str(sizes[digest])).read_bytes()
        depot.remove(digest)
        depot.remove(digest)

    assert place.names().keys() == {"store.json"}
    with pytest.raises(StoreError, match=f"{digests[0]} is not in store"):
        depot.renew(digests[0])


def test_it_keeps_house_as_every_depot_does(place: Place) -> None:
    check_housekeeping(depot_of(place.open()))


def renewed(depot: RemoteDepot) -> list[float]:
    """When each blob was stored, each being renewed."""
    for blob in depot.listing():
        depot.renew(blob.digest)
    return [blob.stored_at for blob in depot.listing()]


def test_a_blob_that_is_stored_again_while_it_is_removed_stays_whole(
    sftp: SftpPlace, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file(tmp_path / "file", 3 * PART)
    digest = sftp.open().put_file(file)
    for name in parts_of(sftp):
        os.utime(sftp.root / name, (1e9, 1e9))  # long ago
    depot = depot_of(sftp.open())
    remove = depot._files.remove

    def remove_slowly(name: str) -> None:
        remove(name)
        if name.endswith(".parts"):
            sftp.open().put_file(file)

    monkeypatch.setattr(depot._files, "remove", remove_slowly)
    depot.remove(digest)

    sftp.open().get_file(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_writers_with_parts_of_different_lengths_do_not_take_each_others(
    sftp: SftpPlace, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file(tmp_path / "file", 4 * PART)
    store, other = sftp.open(), sftp.open()
    digest = store.put_file(file)
    before = parts_of(sftp)
    monkeypatch.setattr(remote, "PART_BYTES", 2 * PART)

    depot_of(other).write(Source.of_file(file))

    assert before.items() < parts_of(sftp).items()
    store.get_file(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_an_upload_that_nobody_went_on_with_for_a_day_is_cleared_and_no_other(
    place: Place, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.open()
    depot, file = depot_of(store), make_file(tmp_path / "file", 2 * PART)
    digest = store.put_file(file)
    for left in (f"parts/sha256/00/{'0' * 64}/000001-{'1' * 64}", f"{Path(nth_part(place, 0)).parent}/stray"):
        depot._files.put(left, b"half")

    assert depot.clear_abandoned() == 0
    assert len(parts_of(place)) == 4
    monkeypatch.setattr(remote, "ABANDONED_SECONDS", -60.0)
    check_clearing(depot, 2)

    assert sorted(parts_of(place).values()) == [PART, PART]
    assert store.get_bytes(digest) == file.read_bytes()


# --- memory


def test_a_large_file_takes_no_more_memory_than_a_small_one(
    s3: S3Place, tmp_path: Path, small_parts: None
) -> None:
    store, own = s3.open(), psutil.Process()
    for name, size in (("small", 4 * MIB), ("large", 20 * MIB)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    store.get_file(store.put_file(tmp_path / "small"), tmp_path / "small back")
    before = own.memory_info().rss

    store.get_file(store.put_file(tmp_path / "large"), tmp_path / "large back")

    assert own.memory_info().rss - before < 8 * MIB


# --- refusals


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3://bucket/../other", "s3://BUCKET/PREFIX"),
        ("s3://key:hunter2@bucket/prefix", "AWS_ACCESS_KEY_ID"),
        ("sftp://host", "sftp://USER@HOST/PATH"),
        ("sftp://", "sftp://USER@HOST/PATH"),
        ("sftp://user:hunter2@host:many/path", "sftp://USER@HOST/PATH"),
        ("ftp://user:hunter2@host/path", "sftp://USER@HOST/PATH"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_what_to_write_and_without_its_secret(
    url: str, told: str
) -> None:
    with pytest.raises(InvalidInput, match=f"store_url.*{told}") as caught:
        open_store(url)

    assert "hunter2" not in str(caught.value)


def test_another_kind_of_store_is_refused(sftp: SftpPlace) -> None:
    sftp.open()
    for document, told in (
        (b'{"version": 1, "id": "x"}', "folder or gateway"),
        (b'{"version": 3, "id": "x"}', "update Graft"),
        (b"[]", "does not tell which store"),
    ):
        sftp.overwrite("store.json", document)

        with pytest.raises(StoreError, match=rf"store\.json.*{told}"):
            sftp.open()


def test_a_server_that_is_not_there_is_unreachable_in_words(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CONNECT_PATIENCE_SECONDS", 0.5)

    with pytest.raises(Unreachable, match=r"store s\S+://.* does not answer \(.*\); \w+") as caught:
        place.open(free_port())

    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_named(s3: S3Place) -> None:
    with pytest.raises(StoreError, match="store s3://another/x: there is no such bucket; create it"):
        open_store("s3://another/x")


def test_wrong_and_missing_credentials_are_told_with_what_to_set(
    s3: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{s3.port}/moto-api/reset-auth"
    urllib3.request("POST", url, body=b"0")
    try:
        with pytest.raises(NotAllowed, match=r"refuses this .*set AWS_ACCESS_KEY_ID") as caught:
            open_store(f"s3://{BUCKET}/x")
    finally:
        urllib3.request("POST", url, body=b"inf")
    assert S3_VARIABLES["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))

    with pytest.raises(NotAllowed, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{BUCKET}/x")


def test_a_folder_that_cannot_be_made_is_named(sftp: SftpPlace) -> None:
    sftp.root.parent.mkdir(exist_ok=True)
    sftp.root.write_text("a file in its place")

    with pytest.raises((NotAllowed, StoreError), match=rf"store sftp://.*{sftp.root.name}.*; "):
        sftp.open()


def test_a_server_whose_key_is_not_known_is_not_trusted(sftp: SftpPlace) -> None:
    cutter = Cutter(sftp.port, 1 << 40, "up")

    with pytest.raises(NotAllowed, match=r"the server's key is not in ~/\.ssh/known_hosts"):
        open_store(sftp.url.replace(f":{sftp.port}/", f":{cutter.port}/"))

    cutter.close()


def test_a_user_without_a_key_is_told_what_to_do_and_the_password_is_not_shown(
    sftp: SftpPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".ssh").mkdir()
    known = sftp.server.home / ".ssh" / "known_hosts"
    (tmp_path / ".ssh" / "known_hosts").write_bytes(known.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(NotAllowed, match=r"the server refuses somebody \(.*ssh-copy-id") as caught:
        open_store(sftp.url.replace("somebody@", "somebody:hunter2@"))

    assert "hunter2" not in str(caught.value)


MISSING = """
import sys
sys.modules["s3fs"] = sys.modules["paramiko"] = sys.modules["fsspec"] = None
import graft_cli.main
from graft_scheduler.store import open_store
try:
    open_store(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/x", "s3"), ("sftp://me:hunter2@host/x", "sftp")])
def test_what_is_not_installed_is_missed_in_one_line_and_only_there(url: str, extra: str) -> None:
    done = subprocess.run([sys.executable, "-c", MISSING, url], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("InvalidInput `store_url` is")
    assert f"pip install 'mlx-graft[{extra}]'" in done.stdout
    assert "hunter2" not in done.stdout
