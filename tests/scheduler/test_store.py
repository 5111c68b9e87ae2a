"""The store: what is put comes back whole and right, or not at all, whatever dies in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft_scheduler.errors import Conflict, InvalidInput, StoreError, Unreachable
from graft_scheduler.states import Digest
from graft_scheduler.store import Store, open_store
from graft_scheduler.store.depots import CHUNK_BYTES, Source
from graft_scheduler.store.folder import FolderDepot
from graft_scheduler.store.partials import ABANDONED_SECONDS
from graft_scheduler.store.writers import WRITER
from tests.scheduler.depot_laws import check_clearing, check_housekeeping

ABSENT = Digest("sha256:" + "0" * 64)
NAME_PART = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8)
NAMES = st.builds("/".join, st.lists(NAME_PART, min_size=1, max_size=3))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "the store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root.as_uri())


def blob_path(root: Path, digest: Digest) -> Path:
    digits = digest.removeprefix("sha256:")
    return root / "blobs" / "sha256" / digits[:2] / digits


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def write_files(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


# --- identity and address


def test_two_opens_of_one_store_see_one_id(root: Path) -> None:
    first, second = open_store(root.as_uri()), open_store(root.as_uri())

    assert first.id == second.id


def test_two_stores_have_different_ids(tmp_path: Path) -> None:
    first, second = open_store((tmp_path / "a").as_uri()), open_store((tmp_path / "b").as_uri())

    assert first.id != second.id


def test_processes_that_open_a_new_store_together_agree_on_its_id(root: Path) -> None:
    code = "import sys; from graft_scheduler.store import open_store; print(open_store(sys.argv[1]).id)"

    openers = [run_python(code, root.as_uri()) for _ in range(3)]
    ids = {opener.communicate(timeout=30)[0].strip() for opener in openers}

    assert ids == {open_store(root.as_uri()).id}


def test_a_store_on_a_file_system_without_hard_links_has_one_id(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)

    assert open_store(root.as_uri()).id == open_store(root.as_uri()).id


@pytest.mark.parametrize("url", ["ftp://host/a", "/plain/path", "file://relative/path", "", "file:///a?b"])
def test_an_address_that_is_no_local_folder_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"store_url.*file://|store_url.*%3F"):
        open_store(url)


def test_a_store_that_cannot_be_made_is_unreachable_and_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(Unreachable, match=str(tmp_path / "file" / "store")):
        open_store((tmp_path / "file" / "store").as_uri())


def test_a_store_that_went_away_is_unreachable(root: Path, store: Store) -> None:
    root.rename(root.with_name("unmounted"))

    with pytest.raises(Unreachable, match="mounted"):
        store.get_bytes(ABSENT)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "id": "x"}', '{"version": 1}'])
def test_a_store_of_another_version_is_refused(root: Path, text: str) -> None:
    write_files(root, {"store.json": text.encode()})

    with pytest.raises(StoreError, match=r"store\.json"):
        open_store(root.as_uri())


# --- round trips


def test_a_digest_is_the_plain_sha256_of_the_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")

    digest = store.put_file(tmp_path / "abc")

    assert digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert store.has(digest)
    assert not store.has(ABSENT)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3000))
def test_bytes_come_back_as_they_were_put(store: Store, data: bytes) -> None:
    assert store.get_bytes(store.put_bytes(data)) == data


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=100)), min_size=1, max_size=3))
def test_a_folder_comes_back_as_it_was_put(
    store: Store, tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]]
) -> None:
    place = tmp_path_factory.mktemp("folder")
    contents = {f"{index}{name}": data for index, (name, data) in enumerate(files)}
    write_files(place / "flat", {str(index): data for index, data in enumerate(contents.values())})

    digest = store.put_files({name: place / "flat" / str(index) for index, name in enumerate(contents)})
    store.get_folder(digest, place / "back")

    assert files_below(place / "back") == contents
    assert store.put_folder(place / "back") == digest


def test_a_file_larger_than_a_chunk_comes_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3 * (1 << 20) + 5))

    store.get_file(store.put_file(tmp_path / "large"), tmp_path / "deep" / "back")

    assert (tmp_path / "deep" / "back").read_bytes() == (tmp_path / "large").read_bytes()


def test_a_digest_does_not_depend_on_times_or_on_where_the_folder_lay(store: Store, tmp_path: Path) -> None:
    first = write_files(tmp_path / "one", {"b": b"2", "a/c": b"1"})
    second = write_files(tmp_path / "two", {"a/c": b"1", "b": b"2"})
    os.utime(second / "b", (0, 0))

    assert store.put_folder(first) == store.put_folder(second)


def test_dot_files_and_compiled_python_are_left_out(store: Store, tmp_path: Path) -> None:
    kept = {"config.json": b"{}", "code/model.py": b"pass"}
    dropped = {".DS_Store": b"x", ".git/HEAD": b"x", "code/__pycache__/model.pyc": b"x"}
    folder = write_files(tmp_path / "model", kept | dropped)

    store.get_folder(store.put_folder(folder), tmp_path / "back")

    assert files_below(tmp_path / "back") == kept


def test_what_is_stored_already_is_not_written_again(root: Path, store: Store) -> None:
    digest = store.put_bytes(b"once")
    before = blob_path(root, digest).stat()

    store.put_bytes(b"once")

    assert blob_path(root, digest).stat().st_ino == before.st_ino
    assert not any((root / "incoming").iterdir())


def test_the_group_can_read_what_a_strict_user_stored(root: Path) -> None:
    before = os.umask(0o077)
    try:
        digest = open_store(root.as_uri()).put_bytes(b"shared")
    finally:
        os.umask(before)

    assert blob_path(root, digest).stat().st_mode & 0o040
    assert blob_path(root, digest).parent.stat().st_mode & 0o070 == 0o070


# --- names are data


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "a/../../up", "a//b", "", ".", "a\\b", "a\nb", "\ud800"]
)
def test_a_name_that_could_leave_the_folder_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")

    with pytest.raises(InvalidInput, match="name"):
        store.put_files({name: tmp_path / "file"})


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_a_manifest_whose_names_leave_the_folder_is_not_unpacked(
    store: Store, tmp_path: Path, name: str
) -> None:
    digest = store.put_bytes(b"payload")
    file = {"name": name, "size": 7, "digest": digest}
    evil = store.put_bytes(json.dumps({"version": 1, "files": [file]}).encode())

    with pytest.raises(StoreError, match=evil):
        store.get_folder(evil, tmp_path / "dest" / "inner")

    assert not (tmp_path / "dest").exists()


def test_names_that_one_disk_would_confuse_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    with pytest.raises(InvalidInput, match="twice"):
        store.put_files({"Readme": tmp_path / "file", "README": tmp_path / "file"})
    with pytest.raises(InvalidInput, match="below"):
        store.put_files({"a": tmp_path / "file", "a/b": tmp_path / "file"})


def test_a_link_inside_the_folder_is_stored_as_the_file(store: Store, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "model", {"weights": b"w"})
    (folder / "alias").symlink_to("weights")

    store.get_folder(store.put_folder(folder), tmp_path / "back")

    assert files_below(tmp_path / "back") == {"weights": b"w", "alias": b"w"}
    assert not (tmp_path / "back" / "alias").is_symlink()


def test_a_hub_cache_snapshot_is_stored_through_its_links(store: Store, tmp_path: Path) -> None:
    cache = write_files(tmp_path / "models--org--name", {"blobs/abc": b"{}"})
    snapshot = cache / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")

    store.get_folder(store.put_folder(snapshot), tmp_path / "back")

    assert files_below(tmp_path / "back") == {"config.json": b"{}"}


def test_a_link_that_leaves_the_folder_is_refused(store: Store, tmp_path: Path) -> None:
    write_files(tmp_path, {"secret": b"key", "model/config.json": b"{}"})
    (tmp_path / "model" / "notes").symlink_to("../secret")

    with pytest.raises(InvalidInput, match="notes is a link that leaves"):
        store.put_folder(tmp_path / "model")


def test_a_link_to_a_folder_is_refused(store: Store, tmp_path: Path) -> None:
    write_files(tmp_path, {"model/config.json": b"{}"})
    (tmp_path / "model" / "loop").symlink_to(".")

    with pytest.raises(InvalidInput, match="loop"):
        store.put_folder(tmp_path / "model")


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_by_name(
    store: Store, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "thing")

    with pytest.raises(InvalidInput, match="thing"):
        store.put_file(tmp_path / "thing")


def test_an_empty_or_missing_folder_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    for name in ("empty", "missing"):
        with pytest.raises(InvalidInput, match="folder"):
            store.put_folder(tmp_path / name)


@pytest.mark.parametrize(
    "digest", ["", "abc", "sha256:../../../etc/passwd", "sha256:" + "G" * 64, "md5:" + "0" * 64]
)
def test_a_digest_that_is_none_never_becomes_a_path(store: Store, digest: str) -> None:
    with pytest.raises(InvalidInput, match="not a digest"):
        store.get_bytes(Digest(digest))


# --- damage


@pytest.mark.parametrize("damage", [b"WRONG", b"", b"right and more"])
def test_a_damaged_blob_is_an_error_that_names_it_and_leaves_nothing(
    root: Path, store: Store, tmp_path: Path, damage: bytes
) -> None:
    digest = store.put_bytes(b"right")
    blob_path(root, digest).write_bytes(damage)

    with pytest.raises(StoreError, match=digest):
        store.get_file(digest, tmp_path / "out" / "dest")

    assert not any((tmp_path / "out").iterdir())


def test_a_folder_with_one_damaged_file_does_not_appear(root: Path, store: Store, tmp_path: Path) -> None:
    folder = store.put_folder(write_files(tmp_path / "in", {"a": b"fine", "b/c": b"hurt"}))
    blob_path(root, store.put_bytes(b"hurt")).write_bytes(b"HURT")

    with pytest.raises(StoreError, match="damaged"):
        store.get_folder(folder, tmp_path / "out" / "dest")

    assert not any((tmp_path / "out").iterdir())


def test_a_damaged_blob_does_not_replace_an_older_file_at_dest(
    root: Path, store: Store, tmp_path: Path
) -> None:
    digest = store.put_bytes(b"right")
    blob_path(root, digest).write_bytes(b"WRONG")
    (tmp_path / "dest").write_bytes(b"older")

    with pytest.raises(StoreError):
        store.get_file(digest, tmp_path / "dest")

    assert (tmp_path / "dest").read_bytes() == b"older"


def test_a_blob_cut_short_is_repaired_by_storing_it_again(root: Path, store: Store) -> None:
    digest = store.put_bytes(b"the whole")
    blob_path(root, digest).write_bytes(b"the")

    store.put_bytes(b"the whole")

    assert store.get_bytes(digest) == b"the whole"


def test_what_is_not_there_is_an_error_with_its_digest(store: Store, tmp_path: Path) -> None:
    for get in (store.get_file, store.get_folder):
        with pytest.raises(StoreError, match=f"{ABSENT} is not in store"):
            get(ABSENT, tmp_path / "dest")


def test_a_file_is_not_taken_for_a_folder(store: Store, tmp_path: Path) -> None:
    digest = store.put_bytes(b"just text")

    with pytest.raises(StoreError, match="does not name a folder"):
        store.get_folder(digest, tmp_path / "dest")


def test_whoever_waits_for_a_folder_may_give_up_and_the_next_goes_on_from_there(
    store: Store, tmp_path: Path
) -> None:
    content = bytes(range(256)) * (4 * CHUNK_BYTES // 256)
    digest = store.put_folder(write_files(tmp_path / "in", {"a": content}))

    def give_up(size: int) -> None:
        if size:
            raise KeyError("nobody waits")

    with pytest.raises(KeyError):
        store.get_folder(digest, tmp_path / "dest", note=give_up)
    assert not (tmp_path / "dest").exists()
    brought: list[int] = []
    store.get_folder(digest, tmp_path / "dest", note=brought.append)

    assert files_below(tmp_path / "dest") == {"a": content}
    assert brought == [CHUNK_BYTES] * 4


# --- dest


def test_a_folder_that_is_there_already_is_left_alone(store: Store, tmp_path: Path) -> None:
    digest = store.put_folder(write_files(tmp_path / "in", {"a": b"1"}))
    store.get_folder(digest, tmp_path / "dest")
    (tmp_path / "dest" / "cache").write_bytes(b"somebody's own")

    store.get_folder(digest, tmp_path / "dest")

    assert files_below(tmp_path / "dest") == {"a": b"1", "cache": b"somebody's own"}


def test_an_empty_dest_is_filled_and_another_folder_is_not_touched(store: Store, tmp_path: Path) -> None:
    digest = store.put_folder(write_files(tmp_path / "in", {"a": b"1"}))
    (tmp_path / "empty").mkdir()
    write_files(tmp_path / "taken", {"thesis": b"mine"})

    store.get_folder(digest, tmp_path / "empty")
    with pytest.raises(Conflict, match="taken"):
        store.get_folder(digest, tmp_path / "taken")

    assert files_below(tmp_path / "empty") == {"a": b"1"}
    assert files_below(tmp_path / "taken") == {"thesis": b"mine"}


def test_a_dest_that_cannot_be_written_is_one_line_with_its_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")

    with pytest.raises(StoreError, match="cannot write"):
        store.get_file(store.put_bytes(b"x"), tmp_path / "file" / "dest")


# --- processes

PUT_REPEATEDLY = """
import sys
import time
from pathlib import Path
from graft_scheduler.store import open_store
store = open_store(sys.argv[1])
print({store.put_folder(Path(sys.argv[2])) for _ in range(20)})
"""

PUT_WITH_FILE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from graft_scheduler.store import open_store
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, 1 << 22))
if sys.argv[3] == "die":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    store.put_file(Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""

PUT_AND_WAIT_TO_BE_KILLED = """
import os, sys, time
from pathlib import Path
from graft_scheduler.store import open_store
def hang(*_):
    print("written, not yet named", flush=True)
    time.sleep(60)
os.replace = hang
open_store(sys.argv[1]).put_file(Path(sys.argv[2]))
"""


def test_processes_may_put_the_same_folder_at_once(root: Path, store: Store, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", {str(index): os.urandom(1000) for index in range(10)})

    putters = [run_python(PUT_REPEATEDLY, root.as_uri(), str(folder)) for _ in range(4)]
    outputs = {putter.communicate(timeout=30)[0].strip() for putter in putters}

    digest = store.put_folder(folder)
    store.get_folder(digest, tmp_path / "back")
    assert outputs == {f"{{{digest!r}}}"}
    assert files_below(tmp_path / "back") == files_below(folder)
    assert not any((root / "incoming").iterdir())


def make_large(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 24)
    return path


@pytest.mark.parametrize("how", ["mid-write", "before the rename"])
def test_a_process_killed_in_a_put_leaves_a_store_that_works(
    root: Path, store: Store, tmp_path: Path, how: str
) -> None:
    large = make_large(tmp_path / "large")

    if how == "mid-write":
        process = run_python(PUT_WITH_FILE_LIMIT, root.as_uri(), str(large), "die")
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGXFSZ
    else:
        process = run_python(PUT_AND_WAIT_TO_BE_KILLED, root.as_uri(), str(large))
        assert process.stdout is not None
        assert process.stdout.readline().startswith("written")
        process.kill()
        process.communicate(timeout=30)
    (left,) = (root / "incoming").iterdir()
    assert not [path for path in (root / "blobs").rglob("*") if path.is_file()]

    brought, inode = left.stat().st_size, left.stat().st_ino

    digest = store.put_file(large)
    store.get_file(digest, tmp_path / "back")
    assert (tmp_path / "back").stat().st_size == 1 << 24
    assert brought >= 1 << 22
    assert blob_path(root, digest).stat().st_ino == inode, "it was begun anew"
    assert not any((root / "incoming").iterdir())


def test_what_nobody_goes_on_with_is_cleared_when_it_is_old(root: Path, store: Store) -> None:
    left = write_files(root / "incoming", {f"{'0' * 64}.somebody": b"half"}) / f"{'0' * 64}.somebody"
    open_store(root.as_uri())
    assert left.exists()

    old = left.stat().st_mtime - 2 * ABANDONED_SECONDS
    os.utime(left, (old, old))
    open_store(root.as_uri())
    assert not left.exists()


def test_an_upload_that_is_on_its_way_is_left_alone(root: Path, store: Store) -> None:
    depot, source = FolderDepot.open(root), Source.of_bytes(b"the same bytes")

    with depot.incoming(source.digest, WRITER) as partial:
        partial.append(b"the sa")
        store.put_bytes(b"the same bytes")
        assert store.get_bytes(source.digest) == b"the same bytes"
        partial.append(b"me bytes")
        depot.publish(partial, source.digest)

    assert store.get_bytes(source.digest) == b"the same bytes"
    assert not any((root / "incoming").iterdir())


@pytest.mark.parametrize("left", [b"the same", b"another beginning", b"longer than the whole of it is"])
def test_an_upload_goes_on_from_what_is_there_if_that_is_its_beginning(
    root: Path, store: Store, left: bytes
) -> None:
    source = Source.of_bytes(b"the same bytes")
    write_files(root / "incoming", {f"{source.digest.removeprefix('sha256:')}.{WRITER}": left})

    store.put_bytes(b"the same bytes")

    assert store.get_bytes(source.digest) == b"the same bytes"
    assert not any((root / "incoming").iterdir())


def test_a_full_disk_is_a_store_error_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    large = make_large(tmp_path / "large")

    output = run_python(PUT_WITH_FILE_LIMIT, root.as_uri(), str(large), "fail").communicate(timeout=30)[0]

    assert output.startswith(f"StoreError cannot write store {root}")
    assert len(output.splitlines()) == 1
    assert not any((root / "incoming").iterdir())


def test_a_file_that_changes_while_it_is_stored_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before")

    class DepotDuringAWrite(FolderDepot):
        def size(self, digest: Digest) -> int | None:
            (tmp_path / "log").write_bytes(b"after!")
            return super().size(digest)

    with pytest.raises(StoreError, match="log changed"):
        Store(DepotDuringAWrite.open(root)).put_file(tmp_path / "log")
    assert not any((root / "incoming").iterdir())


def test_a_download_that_was_killed_is_cleared_when_it_is_old(store: Store, tmp_path: Path) -> None:
    left = write_files(tmp_path / "out" / ".dest.0123.partial", {"a": b"half"})
    digest = store.put_bytes(b"x")

    store.get_file(digest, tmp_path / "out" / "dest")
    assert left.exists()

    old = left.stat().st_mtime - 2 * ABANDONED_SECONDS
    os.utime(left, (old, old))
    store.get_file(digest, tmp_path / "out" / "dest")
    assert not left.exists()


def test_a_folder_keeps_house(root: Path) -> None:
    check_housekeeping(FolderDepot.open(root))


def test_what_is_left_half_written_is_cleared_after_a_day_and_counted(root: Path) -> None:
    depot = FolderDepot.open(root)
    with depot.incoming(ABSENT, "fresh") as fresh, depot.incoming(ABSENT, "old") as old:
        fresh.append(b"half")
        old.append(b"half")
    os.utime(old.path, (0, 0))

    check_clearing(depot, 1)
    assert depot.brought(ABSENT, "fresh") == 4
    assert depot.brought(ABSENT, "old") == 0


def test_a_part_of_a_file_is_stored_though_it_grows(root: Path, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"so far, and more")

    digest = store.put_file(path, 6)

    assert b"".join(store.stream(digest)) == b"so far"
    blob_path(root, digest).write_bytes(b"SO FAR")
    with pytest.raises(StoreError, match="is damaged"):
        list(store.stream(digest))


def test_some_files_of_a_folder_come_alone(store: Store, tmp_path: Path) -> None:
    digest = store.put_folder(write_files(tmp_path / "all", {"a": b"1", "b/c": b"2", "d": b"3"}))

    store.get_folder(digest, tmp_path / "some", {"a", "b/c", "e"})
    store.get_folder(digest, tmp_path / "whole")

    assert files_below(tmp_path / "some") == {"a": b"1", "b/c": b"2"}
    assert files_below(tmp_path / "whole") == {"a": b"1", "b/c": b"2", "d": b"3"}


def test_what_another_user_stored_is_renewed_by_writing_it_again(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put_bytes(b"theirs")
    os.utime(blob_path(root, digest), (0, 0))

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr("os.utime", refuse)
    store.put_bytes(b"theirs")

    assert blob_path(root, digest).stat().st_mtime > 0
    assert store.get_bytes(digest) == b"theirs"


def test_what_commands_brought_goes_when_none_used_it_for_a_month(tmp_path: Path) -> None:
    cache = tmp_path / "brought"
    store = open_store((tmp_path / "store").as_uri(), cache=cache)
    digests = []
    for name in ("old", "used", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        digests.append(store.put_folder(tmp_path / name))
    old, used = (store.cached_folder(digest, "models") for digest in digests[:2])
    then = time.time() - 31 * 86_400
    for folder in (old, used):
        os.utime(folder, (then, then))

    store.cached_folder(digests[1], "models")
    assert old.is_dir()
    store.cached_folder(digests[2])

    assert not old.exists()
    assert (used / "file").read_text() == "used"
