"""What follows when memory runs out: a smaller cut, then a larger host, then advice."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.hyperparameters import Method
from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.recovery import CutReport, MemoryLimit, keep, learn, recover, what_would_fit
from graft_scheduler.states import HostId

GIB = 1 << 30
MINI, STUDIO = HostId("mini"), HostId("studio")
CUTS = st.builds(
    CutReport,
    micro_batch_tokens=st.integers(1, 100_000),
    gradient_checkpointing=st.booleans(),
    rows=st.integers(1, 64),
    width=st.integers(1, 4096),
    is_smallest=st.booleans(),
)


def cut(rows: int, width: int = 512, **changes: bool) -> CutReport:
    settings = {"gradient_checkpointing": False, "is_smallest": rows == 1, **changes}
    return CutReport(micro_batch_tokens=4096, rows=rows, width=width, **settings)


def test_half_of_what_was_computed_at_once_is_tried_next() -> None:
    limit = learn(None, cut(rows=8), MINI, 16 * GIB)

    assert limit.micro_batch_tokens == 8 * 512 // 2
    assert not limit.gradient_checkpointing
    assert (limit.host, limit.host_bytes, limit.failures) == (MINI, 16 * GIB, 1)


def test_activations_are_computed_again_once_rows_are_alone() -> None:
    limit = learn(None, cut(rows=1), MINI, 16 * GIB)

    assert limit.micro_batch_tokens == 512
    assert limit.gradient_checkpointing


@given(cuts=st.lists(CUTS | st.none(), min_size=1, max_size=6))
def test_a_limit_only_ever_gets_tighter(cuts: list[CutReport | None]) -> None:
    limit = None
    for one in cuts:
        before, limit = limit, learn(limit, one, MINI, 16 * GIB)
        if before is not None:
            assert (limit.micro_batch_tokens or 10**9) <= (before.micro_batch_tokens or 10**9)
            assert limit.gradient_checkpointing >= before.gradient_checkpointing
        if one is not None and not one.is_smallest and one.tokens > 1:
            assert limit.micro_batch_tokens is not None
            assert limit.micro_batch_tokens < one.tokens


def test_a_death_before_there_was_a_plan_counts_and_teaches_nothing() -> None:
    first = learn(None, cut(rows=8), MINI, 16 * GIB)

    second = learn(first, None, MINI, 16 * GIB)

    assert second == first.model_copy(update={"failures": 2})


def test_after_the_third_time_a_larger_host_is_needed_and_counting_starts_anew() -> None:
    limit = None
    for _ in range(3):
        limit = learn(limit, cut(rows=8), MINI, 16 * GIB)
    assert limit is not None

    moved = recover(limit, has_larger_host=True)
    alone = recover(limit, has_larger_host=False)

    assert (moved.is_retried, moved.above_bytes, moved.limit.failures) == (True, 16 * GIB, 0)
    assert not alone.is_retried
    assert learn(moved.limit, None, STUDIO, 64 * GIB).failures == 1


@given(sizes=st.sets(st.integers(1, 100), min_size=1, max_size=6), choices=st.randoms())
def test_whatever_hosts_it_comes_to_a_job_does_not_run_out_of_memory_for_ever(
    sizes: set[int], choices: Random
) -> None:
    limit, above, failures, is_retried = None, 0, 0, True
    while is_retried:
        size = choices.choice([one for one in sorted(sizes) if one > above])
        limit = learn(limit, None, MINI, size)
        has_larger_host = max(sizes) > limit.host_bytes
        decision = recover(limit, has_larger_host=has_larger_host)
        above = decision.above_bytes or above
        limit, is_retried = decision.limit, decision.is_retried
        failures += 1
        assert failures <= 3 * len(sizes)

    assert limit is not None
    assert limit.host_bytes == max(sizes)


def test_a_shrunk_job_that_did_not_fail_keeps_its_cut() -> None:
    kept = keep(MemoryLimit(micro_batch_tokens=9000, failures=1), cut(rows=8))

    assert (kept.micro_batch_tokens, kept.failures) == (4096, 1)


def test_advice_names_what_the_job_has_not_done_yet() -> None:
    job = TrainJob.model_validate({"model": "org/name", "data": "rows.jsonl", "max_length": 1024})
    limit = MemoryLimit(host_bytes=16 * GIB)

    text = what_would_fit(job, limit)

    assert "more than 16 GB" in text
    for change in ("`gradient_checkpointing`", "a `max_length` below 1024", "`adapter.layers`", "qlora"):
        assert change in text
    frugal = job.model_copy(update={"method": Method.QLORA, "gradient_checkpointing": True})
    assert "qlora" not in what_would_fit(frugal, limit)
    assert "checkpointing" not in what_would_fit(frugal, limit)
    assert what_would_fit(CountJob(), limit) == "what would fit: a host that may use more than 16 GB"
