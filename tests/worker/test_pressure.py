"""What macOS and Linux say about memory, read from recorded text."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from graft_worker.pressure import (
    Cgroup,
    Level,
    parse_cgroup_paths,
    parse_level,
    parse_meminfo,
    parse_stalled,
    parse_swap_used,
    parse_sysctl,
    parse_wired_limit,
    read_cgroup,
    read_linux,
    read_pressure,
)

MIB, GIB = 1 << 20, 1 << 30
SYSCTL = """\
vm.swapusage: total = 2048.00M  used = 1124.25M  free = 923.75M  (encrypted)
kern.memorystatus_vm_pressure_level: 2
iogpu.wired_limit_mb: 57344
"""
MEMINFO = """\
MemTotal:       24684092 kB
MemFree:        21374244 kB
MemAvailable:   22733016 kB
SwapTotal:       4194304 kB
SwapFree:        3145728 kB
HugePages_Total:       0
"""
STALLED = """\
some avg10=31.02 avg60=12.60 avg300=3.11 total=58761459
full avg10=26.47 avg60=10.05 avg300=2.44 total=48761459
"""
VERSION_1 = """\
9:name=systemd:/
4:memory:/jobs/graft
3:cpu,cpuacct:/
0::/
"""
UNLIMITED = "9223372036854771712"


def test_what_sysctl_prints_is_read_by_name() -> None:
    said = parse_sysctl(SYSCTL)

    assert parse_swap_used(said["vm.swapusage"]) == int(1124.25 * MIB)
    assert parse_level(said["kern.memorystatus_vm_pressure_level"]) is Level.WARNING
    assert parse_wired_limit(said["iogpu.wired_limit_mb"]) == 56 * GIB


def test_swap_is_read_in_every_unit_and_notation() -> None:
    assert parse_swap_used("total = 0.00M  used = 0.00M  free = 0.00M  (encrypted)") == 0
    assert parse_swap_used("total = 5,00G  used = 4,50G  free = 0,50G  (encrypted)") == int(4.5 * GIB)
    assert parse_swap_used("") == 0


def test_an_unknown_pressure_level_is_taken_for_normal() -> None:
    assert [parse_level(text) for text in ("1", "2", "4", "7", "")] == [
        Level.NORMAL,
        Level.WARNING,
        Level.CRITICAL,
        Level.NORMAL,
        Level.NORMAL,
    ]


def test_a_wired_limit_of_zero_is_none_as_the_system_chooses() -> None:
    assert parse_wired_limit("0") is None
    assert parse_wired_limit("") is None


def test_meminfo_is_read_in_bytes() -> None:
    memory = parse_meminfo(MEMINFO)

    assert memory["MemTotal"] == 24684092 * 1024
    assert "HugePages_Total" not in memory


def test_the_time_in_which_everything_waited_is_read() -> None:
    assert parse_stalled(STALLED) == 26.47
    assert parse_stalled("") == 0.0


def test_cgroups_of_both_versions_are_found_in_what_a_process_is_told() -> None:
    assert parse_cgroup_paths(VERSION_1) == {1: "/jobs/graft", 2: "/"}
    assert parse_cgroup_paths("0::/user.slice/graft.service\n") == {2: "/user.slice/graft.service"}


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    write(proc, meminfo=MEMINFO)
    write(proc / "pressure", memory=STALLED)
    write(proc / "7", cgroup=VERSION_1.strip())
    return proc


def test_the_machines_memory_is_read_whole(proc: Path, tmp_path: Path) -> None:
    pressure = read_linux(7, proc, tmp_path / "cgroups")

    assert pressure.total_bytes == 24684092 * 1024
    assert pressure.available_bytes == 22733016 * 1024
    assert pressure.swap_used_bytes == GIB
    assert pressure.stalled_percent == 26.47
    assert pressure.cgroup is None


def test_a_kernel_that_does_not_tell_of_waiting_is_taken_to_have_none(proc: Path, tmp_path: Path) -> None:
    (proc / "pressure" / "memory").unlink()

    assert read_linux(7, proc, tmp_path).stalled_percent == 0.0


def test_the_tightest_cgroup_around_a_process_counts_without_cached_files(proc: Path, tmp_path: Path) -> None:
    memory = tmp_path / "cgroups" / "memory"
    stat = f"cache 5\ninactive_file 3\ntotal_inactive_file {GIB // 2}\ntotal_active_file {GIB // 2}"
    write(memory, memory__limit_in_bytes=UNLIMITED, memory__usage_in_bytes=str(9 * GIB), memory__stat=stat)
    write(
        memory / "jobs",
        memory__limit_in_bytes=str(8 * GIB),
        memory__usage_in_bytes=str(7 * GIB),
        memory__stat=stat,
    )
    write(
        memory / "jobs" / "graft",
        memory__limit_in_bytes=str(6 * GIB),
        memory__usage_in_bytes=str(2 * GIB),
        memory__stat=stat,
    )

    found = read_cgroup(7, proc, tmp_path / "cgroups")

    assert found == Cgroup(8 * GIB, 6 * GIB)
    assert found.left_bytes == 2 * GIB


def test_a_cgroup_of_the_second_version_is_read(proc: Path, tmp_path: Path) -> None:
    write(proc / "7", cgroup="0::/graft")
    cgroups = tmp_path / "cgroups"
    write(cgroups, memory__max="max", memory__current="1", memory__stat="")
    write(
        cgroups / "graft",
        memory__max=str(4 * GIB),
        memory__current=str(GIB),
        memory__stat=f"inactive_file {MIB}",
    )

    assert read_cgroup(7, proc, cgroups) == Cgroup(4 * GIB, GIB - MIB)


@pytest.mark.parametrize("path", ["/docker/4f2a", "/../4f2a"])
def test_where_a_container_hides_the_path_its_own_root_counts(proc: Path, tmp_path: Path, path: str) -> None:
    write(proc / "7", cgroup=f"4:memory:{path}")
    memory = tmp_path / "cgroups" / "memory"
    write(memory, memory__limit_in_bytes=str(GIB), memory__usage_in_bytes=str(MIB), memory__stat="")

    assert read_cgroup(7, proc, tmp_path / "cgroups") == Cgroup(GIB, MIB)


def test_a_process_that_has_ended_has_no_cgroup(proc: Path) -> None:
    assert read_cgroup(8, proc) is None


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="neither Linux nor macOS")
def test_this_machine_can_be_read() -> None:
    pressure = read_pressure(os.getpid())

    assert 0 < pressure.available_bytes <= pressure.total_bytes
