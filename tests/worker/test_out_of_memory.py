"""What a worker makes of an attempt that memory ran out under: again, elsewhere, or the end with advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import HostInfo, JobRecord
from graft_scheduler.recovery import CutReport, MemoryLimit
from graft_scheduler.rooms import HostRoom
from graft_scheduler.states import HostId
from graft_worker.out_of_memory import decide, has_larger
from tests.scheduler.test_transitions import host_info
from tests.worker.test_admission import record

GIB = 1 << 30
HERE: HostInfo = host_info(gib=4)
CUT = CutReport(micro_batch_tokens=4096, gradient_checkpointing=False, rows=8, width=512)
TRAIN = TrainJob.model_validate({"model": "org/name", "data": "rows.jsonl"})


def job(failures: int = 0, **model: bool) -> JobRecord:
    spec = TRAIN.model_copy(update={"model": TRAIN.model.model_copy(update=model)})
    found = record(spec)
    limit = MemoryLimit(host=HERE.id, host_bytes=4 * GIB, failures=failures) if failures else None
    return replace(found, store_id="store", memory_limit=limit)


def room(gib: int, store: str = "store", *, remote_code: bool = False) -> HostRoom:
    return HostRoom(
        id=HostId("other"),
        name="other",
        backend="cpu",
        machine_id="m",
        store_id=store,
        budget_bytes=gib * GIB,
        machine_bytes=gib * GIB,
        slots=1,
        used_slots=0,
        committed_bytes=0,
        machine_committed_bytes=0,
        is_alive=False,
        allow_remote_code=remote_code,
    )


def unasked() -> Sequence[HostRoom]:
    raise AssertionError("nobody needs to know the hosts yet")


def test_a_job_stays_where_it_may_as_long_as_a_smaller_cut_can_be_tried() -> None:
    recovery, text = decide(HERE, job(), CUT, "killed", unasked)

    assert recovery.is_retried
    assert recovery.limit.micro_batch_tokens == 2048
    assert (recovery.above_bytes, text) == (None, "killed")


def test_a_job_moves_after_the_third_time_if_a_larger_host_is_registered() -> None:
    recovery, _ = decide(HERE, job(failures=2), CUT, "killed", lambda: [room(2), room(16)])

    assert (recovery.is_retried, recovery.above_bytes) == (True, 4 * GIB)


def test_a_job_fails_with_advice_where_no_larger_host_is_registered() -> None:
    recovery, text = decide(HERE, job(failures=2), CUT, "killed", lambda: [room(2), room(4)])

    assert not recovery.is_retried
    assert text.startswith("killed; for the third time. What would fit: a host that may use more than 4 GB")


def test_a_larger_host_is_hoped_for_while_the_hosts_cannot_be_read() -> None:
    recovery, _ = decide(HERE, job(failures=2), CUT, "killed", lambda: None)

    assert recovery.is_retried


@pytest.mark.parametrize(
    ("host", "is_larger"),
    [(room(5), True), (room(4), False), (room(64, "another store"), False)],
)
def test_a_host_is_larger_if_the_job_may_use_it(host: HostRoom, is_larger: bool) -> None:
    assert has_larger([host], job(), 4 * GIB) is is_larger


def test_a_job_with_code_of_its_own_needs_a_host_that_allows_it() -> None:
    needs_code = job(trust_remote_code=True)

    assert not has_larger([room(64)], needs_code, 4 * GIB)
    assert has_larger([room(64, remote_code=True)], needs_code, 4 * GIB)
