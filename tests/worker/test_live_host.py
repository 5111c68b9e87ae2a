"""What a host tells of itself: a budget that is true, read again as it changes."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.errors import InvalidInput
from graft_scheduler.memory import Backend
from graft_scheduler.settings import Settings, load_settings
from graft_scheduler.states import HostId
from graft_worker import live_host
from graft_worker.access import Access
from graft_worker.cache.host_cache import HostCache
from graft_worker.host import HostFolder, budget_bytes, describe, machine_bytes, open_folder
from graft_worker.live_host import PROBE_AGAIN_SECONDS, STEP_BYTES, LiveDevice, LiveHost, available_bytes
from graft_worker.pressure import Cgroup, Pressure
from graft_worker.probe import Device, machine_memory_bytes, parse_processor
from tests.services import eventually

GIB = 1 << 30
MAC = Device("Apple M3 Max", Backend.METAL, 48 * GIB, 47 * GIB, {}, chip="Apple M3 Max")
CARD = Device("NVIDIA H100", Backend.CUDA, 80 * GIB, 79 * GIB, {}, free_bytes=60 * GIB)
PLAIN = Device("x86_64 CPU", Backend.CPU, 32 * GIB, 27 * GIB, {})
CALM = Pressure(total_bytes=64 * GIB, available_bytes=60 * GIB)
CPUINFO = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)  Processor\nstepping\t: 2\n"


def settings(**flags: str) -> Settings:
    return load_settings(flags)


def kept(folder: HostFolder, chosen: Settings) -> tuple[HostCache, Access]:
    return HostCache(folder.cache, chosen, HostId("one")), Access()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_owner_may_cap_the_memory_of_jobs_and_reserve_some() -> None:
    capped, reserving = settings(memory_bytes="12GB"), settings(reserve_bytes="16GB")

    assert (budget_bytes(capped, MAC), machine_bytes(capped, MAC)) == (12 * GIB, 47 * GIB)
    assert (budget_bytes(reserving, MAC), machine_bytes(reserving, MAC)) == (32 * GIB, 32 * GIB)
    assert budget_bytes(settings(), MAC) == 47 * GIB
    assert budget_bytes(settings(memory_bytes="500GB"), MAC) == 47 * GIB


def test_an_owner_who_reserves_everything_is_told_so() -> None:
    with pytest.raises(InvalidInput, match="`reserve_bytes` is 64 GB and Apple M3 Max may use 48 GB"):
        budget_bytes(settings(reserve_bytes="64GB"), MAC)


def test_a_processor_is_known_by_its_model() -> None:
    assert parse_processor(CPUINFO) == "Intel(R) Xeon(R) Processor"
    assert parse_processor("CPU implementer\t: 0x61\n") is None


def test_what_others_take_of_the_memory_is_not_available_to_jobs() -> None:
    alone = available_bytes(MAC, 47 * GIB, CALM, 0)
    crowded = available_bytes(MAC, 47 * GIB, replace(CALM, available_bytes=20 * GIB), 0)
    training = available_bytes(MAC, 47 * GIB, replace(CALM, available_bytes=20 * GIB), 30 * GIB)

    assert alone == 47 * GIB
    assert crowded is not None
    assert 16 * GIB <= crowded <= 17 * GIB
    assert training == 46 * GIB + (crowded - 16 * GIB)


def test_a_cgroup_holds_for_what_is_available_too() -> None:
    pressure = replace(CALM, cgroup=Cgroup(8 * GIB, 5 * GIB))

    assert available_bytes(PLAIN, 27 * GIB, pressure, GIB) == 4 * GIB


def test_of_a_card_that_is_available_which_was_free_when_nothing_ran() -> None:
    assert available_bytes(CARD, 79 * GIB, CALM, 0) == 60 * GIB
    assert available_bytes(replace(CARD, free_bytes=None), 79 * GIB, CALM, 0) is None


@given(
    available=st.integers(0, 64 * GIB),
    held=st.integers(0, 64 * GIB),
    budget=st.integers(1, 64 * GIB),
    group=st.none() | st.builds(Cgroup, st.integers(0, 64 * GIB), st.integers(0, 64 * GIB)),
)
def test_what_is_available_is_never_more_than_the_budget_nor_less_than_nothing(
    available: int, held: int, budget: int, group: Cgroup | None
) -> None:
    pressure = Pressure(64 * GIB, available, cgroup=group)

    found = available_bytes(MAC, budget, pressure, held)

    assert found is not None
    assert 0 <= found <= budget
    assert found == budget or found % STEP_BYTES == 0


def test_a_mac_whose_wired_limit_is_changed_is_read_again() -> None:
    sign, larger = [1], replace(MAC, budget_bytes=60 * GIB)
    live = LiveDevice(MAC, read_again=lambda: larger, read_sign=lambda: sign[0], clock=Clock())
    assert live.now(is_idle=False) is MAC

    sign[0] = 2

    eventually(lambda: live.now(is_idle=False) is larger)


def test_a_device_is_read_again_after_an_hour_in_which_nothing_runs() -> None:
    clock, read, newer = Clock(), threading.Event(), replace(CARD, free_bytes=10 * GIB)

    def read_again() -> Device:
        read.set()
        return newer

    live = LiveDevice(CARD, read_again=read_again, clock=clock)
    clock.now = PROBE_AGAIN_SECONDS
    assert live.now(is_idle=False) is CARD
    assert not read.is_set()

    eventually(lambda: live.now(is_idle=True) is newer)


def test_a_reading_that_fails_leaves_the_device_as_it_is() -> None:
    clock, read = Clock(), threading.Event()

    def fail() -> Device:
        read.set()
        return replace(MAC, error="MLX cannot be imported", budget_bytes=1)

    live = LiveDevice(MAC, read_again=fail, read_sign=lambda: None, clock=clock)
    clock.now = PROBE_AGAIN_SECONDS
    live.now(is_idle=True)
    read.wait(5)

    eventually(lambda: "probe" not in [thread.name for thread in threading.enumerate()])
    assert live.now(is_idle=True) is MAC


def test_a_heartbeat_tells_the_machine_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    chosen = settings(data_dir=str(tmp_path), host_name="one")
    memory = machine_memory_bytes()
    device = Device("CPU", Backend.CPU, memory, memory // 2, {}, chip="Fast 9000")
    folder = open_folder(chosen)
    with folder.lock:
        before = describe(folder, chosen, device, "store")
        host = LiveHost(chosen, folder, LiveDevice(device), *kept(folder, chosen))
        first = host.now(before)
        (folder.cache / "models" / ("ab" * 32)).mkdir(parents=True)
        monkeypatch.setattr(live_host, "machine_memory_bytes", lambda: memory // 2)
        second = host.now(first)

    assert (before.chip, before.available_bytes, before.cached) == ("Fast 9000", None, ())
    assert first.available_bytes is not None
    assert first.available_bytes <= first.budget_bytes == memory // 2
    assert second.budget_bytes < first.budget_bytes
    assert second.cached == (f"sha256:{'ab' * 32}",)
    assert (second.id, second.boot) == (before.id, before.boot)


def test_a_machine_that_cannot_be_read_is_told_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise OSError("no /proc here")

    chosen = settings(data_dir=str(tmp_path), host_name="one")
    folder = open_folder(chosen)
    with folder.lock:
        before = describe(folder, chosen, PLAIN, "store")
        monkeypatch.setattr(live_host, "runners_bytes", fail)

        assert LiveHost(chosen, folder, LiveDevice(PLAIN), *kept(folder, chosen)).now(before) is before
