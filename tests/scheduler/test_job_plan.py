"""What a plan says of a job, and what each host answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.host_verdicts import Fit, Holder, verdict_of
from graft_scheduler.job_plan import longest_rows_at_once, make_plan
from graft_scheduler.jobs import ModelRef
from graft_scheduler.memory import Backend
from graft_scheduler.plan_hosts import host_views
from graft_scheduler.planning import Question, StepCut, smallest_cut
from graft_scheduler.states import JobId
from tests.scheduler.fleets import room
from tests.scheduler.plans import GIB, LENGTHS, host, resolved

BUSY = Holder(JobId("a1b2c3d4"), 50 * GIB, seconds_left=720.0)


def least(**settings: Any) -> int:
    one = resolved(**settings)
    assert one.base is not None
    return smallest_cut(Question(one.base, one.spec, one.lengths, Backend.METAL)).peak_bytes


def test_a_free_host_with_room_takes_it_now_with_the_fastest_cut() -> None:
    plan = make_plan(resolved(), [host()])

    (verdict,) = plan.hosts
    assert (plan.fit, verdict.fit, verdict.starts_in_seconds) == (Fit.NOW, Fit.NOW, 0.0)
    assert verdict.cut == plan.backends[0].fastest
    assert verdict.time is not None
    assert verdict.time.basis == "a guess from the chip's public figures"


def test_a_tight_host_takes_it_now_with_a_smaller_cut() -> None:
    tight = host(gib=least() / GIB * 1.05)

    verdict = verdict_of(resolved(), tight)

    assert verdict.fit is Fit.NOW
    assert verdict.cut is not None
    assert verdict.cut.peak_bytes <= tight.free_bytes
    assert verdict.cut.cut.micro_batch_tokens < 8 * 2016


def test_a_host_without_the_disk_or_the_access_is_not_planned_on() -> None:
    asks = resolved()
    spec = asks.spec.model_copy(update={"model": ModelRef(source="org/base")})
    asks = replace(asks, spec=spec)
    rooms = [
        room("full", 64, free_disk_bytes=2 * GIB),
        room("refused", 64, no_access=frozenset({"org/base"})),
        room("roomy", 64, free_disk_bytes=16 * GIB),
    ]

    plan = make_plan(asks, host_views(asks, "store", rooms, {}))

    answers = {one.host.name: (one.fit, one.reason) for one in plan.hosts}
    assert answers["roomy"] == (Fit.NOW, "now")
    assert answers["full"] == (Fit.LATER, "needs 2.4 GB of disk, this host has 2 GB free")
    assert answers["refused"][0] is Fit.LATER
    assert answers["refused"][1].startswith("has no access to org/base")


def test_a_busy_host_names_the_job_that_it_waits_for() -> None:
    verdict = verdict_of(resolved(), host(free_bytes=14 * GIB, holders=(BUSY,)))

    assert verdict.fit is Fit.LATER
    assert verdict.reason == "when a1b2c3d4 ends, in about 12 min"
    assert verdict.starts_in_seconds == 720.0
    assert verdict.cut is not None


def test_a_busy_host_does_not_guess_when_a_job_ends_that_has_not_said() -> None:
    silent = replace(BUSY, seconds_left=None)

    verdict = verdict_of(resolved(), host(free_bytes=14 * GIB, holders=(silent,)))

    assert verdict.reason == "when a1b2c3d4 ends"
    assert verdict.starts_in_seconds is None


def test_as_few_jobs_as_possible_are_waited_for_soonest_first() -> None:
    late, soon = replace(BUSY, job=JobId("late"), seconds_left=9000.0), replace(BUSY, job=JobId("soon"))

    verdict = verdict_of(resolved(), host(gib=110, free_bytes=0, slots=2, holders=(late, soon)))

    assert verdict.reason == "when soon ends, in about 12 min"


def test_a_free_slot_does_not_help_without_memory() -> None:
    verdict = verdict_of(resolved(), host(gib=60, free_bytes=1 << 20, slots=2, holders=(BUSY,)))

    assert verdict.fit is Fit.LATER


def test_memory_taken_by_other_processes_is_waited_for() -> None:
    verdict = verdict_of(resolved(), host(free_bytes=1 << 20))

    assert verdict.fit is Fit.LATER
    assert verdict.reason == "when other processes leave more memory free than 1 MB"


def test_a_host_that_is_too_small_says_by_how_much_and_what_helps() -> None:
    small = host(gib=least() / GIB * 0.9)

    plan = make_plan(resolved(), [small])

    (verdict,) = plan.hosts
    assert plan.fit is Fit.NEVER
    assert verdict.short_bytes == least() - small.largest_bytes
    assert verdict.reason.startswith("never, short by ")
    assert verdict.remedies
    assert plan.nearest == verdict


def test_the_nearest_host_is_one_that_something_helps() -> None:
    tiny, small = host("tiny", gib=0.01), host("small", gib=least() / GIB * 0.9)

    nearest = make_plan(resolved(), [tiny, small]).nearest

    assert nearest is not None
    assert nearest.host.name == "small"


def test_a_refusal_that_ends_by_itself_is_later_and_one_for_good_is_never() -> None:
    away = verdict_of(resolved(), host(refusal="away: its worker does not report"))
    alien = verdict_of(resolved(), host(refusal="uses another store", refuses_for_good=True))

    assert (away.fit, away.reason) == (Fit.LATER, "away: its worker does not report")
    assert (alien.fit, alien.reason, alien.cut) == (Fit.NEVER, "uses another store", None)


def test_a_size_that_a_person_names_is_what_placement_waits_for() -> None:
    asked = resolved(limits={"memory_bytes": 40 * GIB})

    assert verdict_of(asked, host(gib=36)).fit is Fit.NEVER
    assert verdict_of(asked, host(free_bytes=30 * GIB, slots=2, holders=(BUSY,))).fit is Fit.LATER
    assert verdict_of(asked, host(gib=41)).fit is Fit.NOW


def test_a_size_that_a_person_names_below_the_estimate_never_fits() -> None:
    verdict = verdict_of(resolved(limits={"memory_bytes": 1 << 20}), host())

    assert verdict.fit is Fit.NEVER
    assert "more than `limits.memory_bytes`" in verdict.reason


def test_a_job_of_unknown_size_takes_a_whole_host() -> None:
    unknown = resolved(model=None)

    assert verdict_of(unknown, host()).fit is Fit.NOW
    assert verdict_of(unknown, host(holders=(BUSY,), slots=2)).fit is Fit.LATER
    assert make_plan(unknown, [host()]).backends == ()


def test_without_a_fleet_every_backend_is_planned_and_nobody_answers() -> None:
    plan = make_plan(resolved())

    assert plan.fit is None
    assert [one.backend for one in plan.backends] == list(Backend)
    assert all(one.smallest.peak_bytes <= one.fastest.peak_bytes for one in plan.backends)


def test_a_fleet_without_hosts_may_yet_get_one() -> None:
    assert make_plan(resolved(), []).fit is Fit.LATER


def test_what_was_measured_corrects_size_and_time() -> None:
    learned = host(memory_factor=1.5, flops_per_second=1e12, samples=4)

    plain, corrected = verdict_of(resolved(), host()), verdict_of(resolved(), learned)

    assert plain.cut is not None
    assert corrected.cut is not None
    assert corrected.time is not None
    assert corrected.cut.peak_bytes == pytest.approx(1.5 * plain.cut.peak_bytes, rel=1e-6)
    assert corrected.time.basis == "measured on 4 jobs like it"


def test_hosts_are_told_in_the_order_in_which_they_would_start_it() -> None:
    hosts = [
        host("small", gib=0.5),
        host("busy", free_bytes=0, holders=(BUSY,)),
        host("slow", device="Apple M1"),
        host("fast", device="Apple M2 Ultra"),
    ]

    assert [one.host.name for one in make_plan(resolved(), hosts).hosts] == ["fast", "slow", "busy", "small"]


def test_rows_at_once_are_those_of_the_longest() -> None:
    plan = make_plan(resolved())

    assert longest_rows_at_once(plan, Backend.METAL, StepCut(2 * 2016, True)) == 2
    assert longest_rows_at_once(plan, Backend.CPU, StepCut(256, True)) == 1


def test_a_plan_is_plain_json() -> None:
    plan = make_plan(resolved(), [host(), host("small", gib=0.5)], waiting=3)

    facts = json.loads(json.dumps(plan.as_json()))

    assert (facts["fit"], facts["waiting"], facts["data"]["memory"]["rows"]) == ("now", 3, LENGTHS.rows)
    assert [one["fit"] for one in facts["hosts"]] == ["now", "never"]
    assert facts["hosts"][0]["cut"]["peak_bytes"] == sum(
        facts["hosts"][0]["cut"]["estimate"]["parts"].values()
    )
    assert facts["job"]["model"]["source"] == "m"


HOSTS = st.fixed_dictionaries(
    {
        "gib": st.floats(0.1, 64),
        "free_share": st.floats(-0.2, 1),
        "slots": st.integers(1, 3),
        "backend": st.sampled_from(list(Backend)),
        "memory_factor": st.floats(0.5, 3),
        "held": st.lists(st.tuples(st.integers(0, 32), st.none() | st.floats(0, 1e5)), max_size=3),
    }
)
JOBS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["lora", "qlora", "full"]),
    "batch_size": st.integers(1, 64),
    "micro_batch_tokens": st.none() | st.integers(1, 20_000),
    "gradient_checkpointing": st.sampled_from([None, True, False]),
    "limits.memory_bytes": st.none() | st.integers(1 << 20, 64 * GIB),
}


@settings(max_examples=12, deadline=None)
@given(st.fixed_dictionaries(JOBS), HOSTS)
def test_no_answer_but_never_is_given_above_the_budget(values: dict[str, Any], facts: dict[str, Any]) -> None:
    share, held = facts.pop("free_share"), facts.pop("held")
    holders = tuple(Holder(JobId(f"j{n}"), gib * GIB, left) for n, (gib, left) in enumerate(held))
    whole = host(**facts)
    one = replace(whole, free_bytes=int(whole.largest_bytes * share), holders=holders)

    verdict = verdict_of(resolved(**values), one)

    limit = values["limits.memory_bytes"] or one.largest_bytes
    if verdict.fit is Fit.NEVER:
        assert verdict.cut is None
        return
    assert verdict.cut is not None
    most = one.free_bytes if verdict.fit is Fit.NOW else one.largest_bytes
    assert verdict.cut.peak_bytes <= min(most, limit, one.largest_bytes)
    assert verdict.fit is Fit.LATER or len(holders) < one.slots
