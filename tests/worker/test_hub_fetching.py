"""Fetching from the hub: what is needed and no more, resumable, and without the network where it is here."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from graft_scheduler.errors import InvalidInput, StoreError, Unreachable
from graft_scheduler.jobs import parse_job
from graft_scheduler.settings import load_settings
from graft_scheduler.states import HostId
from graft_worker.access import RETRY_SECONDS, Access, token_sign
from graft_worker.cache.host_cache import HostCache
from graft_worker.cache.items import Item, model_item
from graft_worker.cache.notes import Note
from graft_worker.cache.uses import Uses
from graft_worker.cached_models import cached_models, hub_cache
from graft_worker.hub_fetching import NoAccess, fetch_from_hub
from tests.hub import Hub, running_hub

pytest.importorskip("huggingface_hub", reason="nothing is fetched from the hub without its library")
pytestmark = pytest.mark.processes

NAME = "org/tiny"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 300_000,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"not wanted" * 1000,
    "README.md": b"what tells its licence",
}


@dataclass
class Patience:
    """Waits until it is told not to."""

    is_over: Callable[[], bool] = lambda: False

    def check(self) -> None:
        if self.is_over():
            raise TimeoutError

    def tell(self, what: str, brought: int, total: int) -> None:
        return None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with running_hub() as hub:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        source = tmp_path / "source"
        source.mkdir()
        for name, content in FILES.items():
            (source / name).write_bytes(content)
        hub.add(NAME, source)
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> HostCache:
    return HostCache(tmp_path / "cache", load_settings({}), HostId("one"))


def fetch(cache: HostCache, revision: str | None = None, watch: Patience | None = None) -> Item:
    uses = Uses()
    try:
        return fetch_from_hub(cache, NAME, revision, uses, watch or Patience())
    finally:
        uses.close()


def test_what_mlx_lm_loads_is_fetched_once_and_then_needs_no_hub(hub: Hub, cache: HostCache) -> None:
    commit = hub.models[NAME].commit

    item = fetch(cache)

    assert item.name == f"{NAME}@{commit}"
    folder = cache.folder(item)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert cached_models(cache.root, hub_cache()) == (NAME, f"{NAME}@{commit}")
    hub.asked.clear()
    hub.is_away = True
    assert fetch(cache, commit) == item
    assert hub.asked == []
    assert fetch(cache) == item  # the newest that is known of


def test_a_fetch_that_broke_off_goes_on_where_it_was(hub: Hub, cache: HostCache) -> None:
    weights = bytes(range(256)) * 100_000
    hub.models[NAME].files["model.safetensors"] = weights
    hub.cut_after = 15_000_000

    item = fetch(cache)

    assert (cache.folder(item) / "model.safetensors").read_bytes() == weights
    assert hub.sent_bytes < 1.3 * len(weights)


def test_a_model_that_the_hub_keeps_from_this_host_is_no_failure_of_the_job(
    hub: Hub, cache: HostCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_private, token in ((False, ""), (True, "hf_wrong")):
        hub.models[NAME].tokens, hub.models[NAME].is_private = frozenset({"hf_right"}), is_private
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(NoAccess) as refused:
            fetch(cache, hub.models[NAME].commit)
        assert refused.value.repository == NAME
    assert not (hub_cache() / "models--org--tiny" / "snapshots").exists()

    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch(cache).repository == NAME


def test_a_revision_that_is_not_there_is_the_jobs_mistake_and_a_hub_that_is_away_is_nobodys(
    hub: Hub, cache: HostCache
) -> None:
    with pytest.raises(InvalidInput, match="the hub has no such model"):
        fetch(cache, "f" * 40)
    hub.is_away = True
    with pytest.raises(Unreachable, match=r"org/tiny is not on this host, and the hub does not answer"):
        fetch(cache, "f" * 40)


@pytest.mark.parametrize("revision", ["/tmp/elsewhere", "../../elsewhere"])
def test_a_revision_that_leads_out_of_the_cache_is_refused(cache: HostCache, revision: str) -> None:
    with pytest.raises(InvalidInput, match="must be a branch, a tag or a commit"):
        fetch(cache, revision)
    with pytest.raises(InvalidInput, match=r"`model.revision` is .* it must be a branch, a tag or a commit"):
        parse_job(
            json.dumps(
                {"kind": "train", "model": {"source": NAME, "revision": revision}, "data": {"source": "d"}}
            )
        )


def test_what_a_library_prints_on_the_way_is_no_word_of_the_child(
    hub: Hub, cache: HostCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('{not JSON', '{}', '[1]', sep='\\n', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    assert fetch(cache).repository == NAME


def test_without_room_nothing_is_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = HostCache(tmp_path / "cache", load_settings({"model_cache_bytes": "100KB"}), HostId("one"))

    with pytest.raises(StoreError, match=r"no room for org/tiny@\w+: it needs 293 KB"):
        fetch(small)

    assert hub.sent_bytes == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of its own needs `mount` and root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_others_fill_meanwhile_is_the_stores_failure_and_the_host_says_so(
    hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models[NAME].files["model.safetensors"] = b"w" * 2_000_000
    monkeypatch.setenv("HF_HUB_CACHE", str(small_disk / "hub"))
    cache = HostCache(small_disk / "cache", load_settings({}), HostId("one"))
    before = cache.free_bytes()
    monkeypatch.setattr("graft_worker.cache.host_cache.spare_bytes", lambda *_: 1 << 40)

    with pytest.raises(StoreError, match="the disk is full while org/tiny is fetched"):
        fetch(cache)

    assert 900_000 < before < 1_048_576
    assert cache.free_bytes() == 0
    assert cached_models(cache.root, hub_cache()) == ()


def test_what_the_owner_has_already_stays_the_owners(hub: Hub, cache: HostCache, tmp_path: Path) -> None:
    code = f"from huggingface_hub import snapshot_download; snapshot_download({NAME!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    item = fetch(cache)

    assert (cache.note(item).is_ours, cache.note(item).is_whole) == (False, True)
    hub.is_away = True
    assert fetch(cache, hub.models[NAME].commit) == item


def test_a_fetch_that_is_given_up_keeps_whole_files_and_leaves_no_part_of_one(
    hub: Hub, cache: HostCache
) -> None:
    hub.models[NAME].files["model.safetensors"] = b"w" * 20_000_000
    hub.rests_after = 5_000_000
    blobs = hub_cache() / "models--org--tiny" / "blobs"
    watch = Patience(lambda: hub.rests and any(blobs.glob("*.incomplete")))

    with pytest.raises(TimeoutError):
        fetch(cache, None, watch)

    assert not list(blobs.glob("*.incomplete"))
    orphan, others = blobs / "e1.0123abcd.incomplete", blobs / "e2.0123abcd.incomplete"
    lock = hub_cache() / ".locks" / "models--org--tiny" / "e2.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    for path in (orphan, others, lock):
        path.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cache.tidy()
        assert [path.name for path in blobs.glob("*.incomplete")] == [others.name]


def test_what_was_brought_for_mlx_lm_alone_is_whole_without_a_hub_or_with_one_that_refuses(
    hub: Hub, cache: HostCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library notes what else the repository has, and would call a snapshot without it incomplete."""
    commit = hub.models[NAME].commit
    code = (
        "from huggingface_hub import snapshot_download; from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS\n"
        f"snapshot_download({NAME!r}, allow_patterns=DEFAULT_ALLOW_PATTERNS)"
    )
    pytest.importorskip("mlx_lm", reason="its patterns are meant")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    hub.models[NAME].tokens = frozenset({"hf_right"})

    item = fetch(cache, commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = (
        "import sys; from graft_scheduler.jobs import ModelRef; from graft_worker.engine import loading\n"
        "print(loading.find_model(ModelRef(source=sys.argv[1], revision=sys.argv[2])))"
    )
    found = subprocess.run([sys.executable, "-c", code, NAME, commit], capture_output=True, text=True)

    assert not (cache.folder(item) / "README.md").exists()
    assert (cache.note(item).is_ours, cache.note(item).is_whole) == (False, True)
    cache.write_note(item, Note())
    assert fetch(cache) == item
    assert found.stdout.strip() == str(cache.folder(item)), found.stderr


def test_who_does_not_wait_any_more_leaves_no_process(hub: Hub, cache: HostCache) -> None:
    import psutil

    watch = Patience(lambda: True)

    with pytest.raises(TimeoutError):
        fetch(cache, None, watch)

    assert not [one for one in psutil.Process().children() if "hub_command" in " ".join(one.cmdline())]


def test_what_was_refused_is_tried_again_after_an_hour_or_with_another_token(tmp_path: Path) -> None:
    now, sign = [0.0], ["one token"]
    access = Access(read_sign=lambda: sign[0], clock=lambda: now[0])
    access.note_refused("org/a")
    assert access.refused() == ("org/a",)

    now[0] = RETRY_SECONDS
    assert access.refused() == ()
    access.note_refused("org/a")
    sign[0] = "another"
    assert access.refused() == ()


def test_a_token_is_told_from_another_wherever_it_is_kept_and_never_told(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    nothing = token_sign(home)
    in_variable = token_sign({**home, "HF_TOKEN": "hf_secret"})
    (tmp_path / "token").write_text("hf_secret")
    in_file = token_sign(home)

    assert len({nothing, in_variable, in_file}) == 3
    assert "hf_secret" not in in_variable + in_file


def test_names_of_items_are_those_that_jobs_use() -> None:
    assert model_item(f"{NAME}@{'a' * 40}").repository == NAME
