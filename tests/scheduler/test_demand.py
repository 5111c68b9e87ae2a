"""What a job asks of a host, and what makes two jobs ask for the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from graft_scheduler.demand import Demand, Request, coarse_disk
from graft_scheduler.jobs import CountJob, Limits, TrainJob
from graft_scheduler.memory import trained_bytes
from graft_scheduler.submission import Submission, disk_bytes
from tests.scheduler.plans import GIB, SMALL, resolved

JOB = TrainJob.model_validate({"model": {"source": "org/base", "revision": "abc"}, "data": "rows.jsonl"})


@given(st.integers(0, 1 << 50))
def test_a_coarse_demand_is_a_little_more_and_no_coarser_the_second_time(size: int) -> None:
    coarse = Demand.of(size).coarse()

    assert size <= coarse.minimum_bytes <= size + size / 64
    assert coarse.coarse() == coarse


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_coarse_demands_keep_their_order(one: int, other: int) -> None:
    least, most = sorted((one, other))

    coarse = Demand(minimum_bytes=least, preferred_bytes=most).coarse()

    assert coarse.minimum_bytes <= coarse.preferred_bytes


def test_a_demand_that_prefers_less_than_it_needs_is_refused() -> None:
    with pytest.raises(ValidationError, match="`preferred_bytes` is 1; it must be at least"):
        Demand(minimum_bytes=2, preferred_bytes=1)


def test_jobs_of_nearly_one_size_ask_for_the_same() -> None:
    one = Submission(JOB, {"cpu": Demand.of(1_000_000_001)}, "llama", 5)
    other = replace(one, demands={"cpu": Demand.of(1_000_000_002)})

    assert one.request("store").model_dump_json() == other.request("store").model_dump_json()
    assert one.request("store").model == "org/base@abc"
    assert (one.request("store").family, one.request("store").method) == ("llama", "lora")


def test_a_size_that_a_person_named_is_asked_for_to_the_byte() -> None:
    limited = JOB.model_copy(update={"limits": Limits(memory_bytes=1_000_000_001)})
    demands = {"cpu": Demand.of(1_000_000_001)}

    assert Submission(limited, demands).request("store").demands == demands
    assert Submission(CountJob(), demands).request("store").demands == demands


def test_a_request_of_a_newer_version_is_read_for_what_is_known_of_it() -> None:
    assert Request.model_validate_json('{"store_id": "s", "colour": "blue"}') == Request(store_id="s")


def test_what_a_job_puts_on_a_disk_is_its_data_and_three_times_what_it_trains() -> None:
    alone = replace(resolved(adapter={"rank": 8}), data_bytes=0)
    learned = trained_bytes(SMALL, alone.spec)

    assert disk_bytes(alone) == 3 * learned
    assert disk_bytes(replace(alone, data_bytes=GIB)) == GIB + 3 * learned
    assert disk_bytes(resolved(method="full")) == 3 * 4 * SMALL.parameters
    assert disk_bytes(resolved(model=None)) == 0
    assert [coarse_disk(size) for size in (0, 1, 1000, 1024, 1025)] == [0, 1, 1024, 1024, 2048]
