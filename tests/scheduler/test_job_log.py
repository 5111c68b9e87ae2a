"""A job's log: whole, attempt by attempt, and no larger in memory than a part of it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.errors import Unreachable
from graft_scheduler.job_log import LogLine, read_log, split_lines
from graft_scheduler.records import AttemptLog
from graft_scheduler.states import JobState, Token
from graft_scheduler.store import Store, open_store
from tests.cli.records import record

MIB = 1 << 20


def line(token: int, text: str) -> LogLine:
    return LogLine(f"{token}-0", Token(token), text)


def test_what_is_stored_is_told_whole_and_the_rest_as_redis_has_it(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    first = AttemptLog(token=Token(1), digest=store.put_bytes(b"one\ntwo\r30%\r100%\n\nthree"))
    job = record(JobState.RUNNING, logs=(first,))
    in_redis = [line(1, "three"), line(2, "now"), line(2, "and now")]

    told = list(read_log(job, lambda: store, in_redis))

    assert told == ["one", "two", "30%", "100%", "three", "now", "and now"]


def test_without_the_store_the_lines_that_redis_has_are_better_than_none(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    job = record(JobState.FAILED, logs=(AttemptLog(token=Token(1), digest=store.put_bytes(b"one\ntwo\n")),))
    job_without = replace(job, logs=(AttemptLog(token=Token(1), digest=job.id),))  # type: ignore[arg-type]

    def away() -> Store:
        raise Unreachable("the store does not answer")

    assert list(read_log(job, away, [line(1, "two")])) == ["two"]
    assert list(read_log(job_without, lambda: store, [line(1, "two")])) == ["two"]


def test_a_huge_log_costs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with path.open("wb") as log:
        for _ in range(64):
            log.write(b"a line of sixty-three letters and its end, as logs are made of..\n" * (MIB // 64))
        log.write(b"x" * (8 * MIB))  # and one that does not end
    tracemalloc.start()
    try:
        store = open_store((tmp_path / "store").as_uri())
        size = path.stat().st_size
        kept = AttemptLog(token=Token(1), digest=store.put_file(path, size))
        lines = sum(1 for _ in read_log(record(JobState.COMPLETED, logs=(kept,)), lambda: store, []))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert lines > MIB
    assert peak < 16 * MIB


@given(st.text(), st.integers(min_value=1, max_value=5))
def test_lines_are_the_same_however_the_bytes_come(text: str, size: int) -> None:
    data = text.encode()
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    expected = text.replace("\r", "\n").split("\n")

    assert [one for one in split_lines(chunks) if one] == [one for one in expected if one]
