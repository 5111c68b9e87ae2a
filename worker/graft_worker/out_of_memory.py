"""What a worker makes of an attempt that memory ran out under."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graft_scheduler.jobs import TrainJob
from graft_scheduler.records import HostInfo, JobRecord
from graft_scheduler.recovery import CutReport, Recovery, learn, recover, what_would_fit
from graft_scheduler.rooms import HostRoom
from graft_scheduler.states import MAX_OUT_OF_MEMORY

Hosts = Callable[[], Sequence[HostRoom] | None]
"""Every registered host; nothing while they cannot be read."""


def decide(
    info: HostInfo, record: JobRecord, cut: CutReport | None, text: str, hosts: Hosts
) -> tuple[Recovery, str]:
    """What follows, and the failure's text with advice where nothing does.

    The job computed `cut`, if it came so far. `hosts` is only asked when this one is given up.
    """
    here = min(info.budget_bytes, info.machine_bytes)
    learned = learn(record.memory_limit, cut, info.id, here)
    may_move = learned.failures >= MAX_OUT_OF_MEMORY and has_larger(hosts(), record, learned.host_bytes)
    recovery = recover(learned, has_larger_host=may_move)
    if recovery.is_retried:
        return recovery, text
    advice = what_would_fit(record.spec, learned)
    return recovery, f"{text}; for the {_ordinal(learned.failures)} time. {advice[0].upper()}{advice[1:]}"


def has_larger(hosts: Sequence[HostRoom] | None, record: JobRecord, above_bytes: int) -> bool:
    """Whether a registered host that the job may run on may use more; hoped for where none can be read."""
    if hosts is None:
        return True
    remote_code = isinstance(record.spec, TrainJob) and record.spec.model.trust_remote_code
    return any(
        host.largest_bytes > above_bytes
        and host.store_id == record.store_id
        and (host.allow_remote_code or not remote_code)
        for host in hosts
    )


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
