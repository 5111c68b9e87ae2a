"""Every change of a job's or host's state, each one Lua script run whole by Redis.

Scripts live in `lua/`, one file each, behind `prelude.lua`; this is the only caller.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.checkpoints import CHECKPOINTS, KeptCheckpoint
from graft_scheduler.demand import Demand, Request
from graft_scheduler.errors import Conflict, Fenced, NotFound
from graft_scheduler.jobs import CountJob, TrainJob, dump_job
from graft_scheduler.lessons import Measured
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import (
    AttemptLog,
    Failure,
    Hold,
    HostInfo,
    JobProgress,
    JobRecord,
    MemorySample,
    dump_samples,
)
from graft_scheduler.recovery import MemoryLimit, Recovery
from graft_scheduler.rooms import Placement
from graft_scheduler.states import (
    MAX_LOST,
    POLICIES,
    Count,
    Digest,
    HostId,
    JobId,
    JobState,
    StopReason,
    Token,
    is_retried,
    pause_seconds,
)
from graft_scheduler.tags import Tag

GAP_SECONDS = 2.0
"""A leader looks every second; a longer pause means that nobody could renew a lease, or that nobody saw."""
MISSED_BEATS = 3
"""A host that missed this many heartbeats is away."""
PRELUDE = "prelude.lua"
HOST_TTL_SECONDS = 30 * 86400
"""How long a host that never comes back is remembered."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a running attempt writes at once."""

    progress: JobProgress | None = None
    checkpoints: Sequence[KeptCheckpoint] = ()
    """New in the store, in the order of their steps; the job goes on from the last one."""
    logs: Sequence[AttemptLog] = ()
    """Of earlier attempts that could not say so themselves."""
    events: Sequence[tuple[str, dict[str, Any]]] = ()
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """The times that a placement depends on."""

    claim_seconds: float
    """In which the host must take the job."""
    alive_seconds: float
    """In which the host must have reported."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended."""

    outcome: JobState
    """completed, failed, cancelled, paused, or queued to go on elsewhere."""
    event: str
    data: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    result: TrainResult | None = None
    adapter: Digest | None = None
    adapter_bytes: int | None = None
    log: AttemptLog | None = None
    blames_host: bool = False
    pause_seconds: float = 0.0
    """Before the job may be placed again."""
    memory_limit: MemoryLimit | None = None
    """What the attempt has learned; nothing leaves what is known."""
    above_bytes: int | None = None
    """Hosts that may use no more are not tried again; nothing leaves that as it is."""
    memory: Sequence[MemorySample] = ()
    """Of the attempt, in order of time."""
    measured: Measured | None = None
    """What a finished job teaches."""


def ending_after(
    failure: Failure, record: JobRecord, log: AttemptLog | None = None, *, blames_host: bool = False
) -> Ending:
    """Whether a failed attempt is followed by another, by the policy of its class.

    `blames_host` counts it towards cordoning the host: for deaths that nobody explained.
    """
    counted = POLICIES[failure.failure].count
    before = {
        Count.CHARGED: record.charged,
        Count.LOST: record.lost,
        Count.STALLED: record.stalled,
        Count.MEMORY: record.memory_failures,
    }
    count = before[counted] + 1
    again = is_retried(failure.failure, count, record.spec.limits.attempts)
    return Ending(
        outcome=JobState.QUEUED if again else JobState.FAILED,
        event="attempt failed" if again else "failed",
        data=failure.model_dump(mode="json"),
        failure=failure,
        log=log,
        blames_host=blames_host,
        pause_seconds=pause_seconds(failure.failure, count) if again else 0.0,
    )


def ending_out_of_memory(failure: Failure, recovery: Recovery, log: AttemptLog | None = None) -> Ending:
    """The end of an attempt that memory ran out under, as `recovery` decided."""
    limit = recovery.limit
    return Ending(
        outcome=JobState.QUEUED if recovery.is_retried else JobState.FAILED,
        event="attempt failed" if recovery.is_retried else "failed",
        data={
            **failure.model_dump(mode="json"),
            "memory_limit": limit.model_dump(mode="json"),
            **({"above_bytes": recovery.above_bytes} if recovery.above_bytes else {}),
        },
        failure=failure,
        log=log,
        memory_limit=limit,
        above_bytes=recovery.above_bytes,
    )


class Transitions:
    """The state machine of jobs and hosts, on one Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        folder = resources.files("graft_scheduler") / "lua"
        prelude = (folder / PRELUDE).read_text()
        self._scripts = {
            path.name: redis.register_script(prelude + path.read_text())
            for path in folder.iterdir()
            if path.name != PRELUDE
        }

    def submit(
        self,
        job_id: JobId,
        spec: TrainJob | CountJob,
        request: Request,
        demands: Mapping[str, Demand] | None = None,
        *,
        kind: str | None = None,
        pause_step: int | None = None,
        leader: str = "",
    ) -> None:
        """Accept a job: from here on it is never lost.

        `request` is what placement looks at; `demands` what people see, by default those of the request;
        `kind` what Flower calls it, by default the specification's; at `pause_step` it pauses.

        Raises:
            Conflict: the id exists.
            Fenced: it is submitted for a scheduler that does not lead.
        """
        shown = request.demands if demands is None else demands
        accepted = self._run(
            "submit",
            [
                *(job_id, dump_job(spec), kind or spec.kind, spec.submitter, spec.priority),
                *(_dump_demands(shown), request.store_id, request.model_dump_json()),
                *("" if pause_step is None else pause_step, leader),
            ],
            job=job_id,
        )
        if accepted == 2:
            raise Fenced(f"job {job_id} was not submitted: another scheduler leads")
        if not accepted:
            raise Conflict(f"job {job_id} exists already")

    def place(self, placement: Placement, leader: str, window: Window) -> tuple[Token | None, str]:
        """The new assignment's token, or nothing and why it was refused."""
        arguments = [placement.job, leader, placement.host, _ms(window.claim_seconds)]
        arguments += [_ms(window.alive_seconds), placement.bytes]
        arguments += ["" if placement.seconds is None else _ms(placement.seconds), placement.beside or ""]
        verdict, detail = self._run("place", arguments, job=placement.job, host=placement.host)
        return (Token(int(detail)), "") if verdict == "placed" else (None, str(detail))

    def reserve(self, job_id: JobId, host_id: HostId | None, leader: str) -> bool:
        """Note on which host room is kept for a queued job, or that none is; whether it was noted."""
        return bool(self._run("reserve", [job_id, leader, host_id or ""], job=job_id))

    def claim(self, hold: Hold, host_id: HostId, boot: str, lease_seconds: float) -> JobRecord | None:
        """The job, now running under this hold; nothing when the assignment is not to be had.

        Raises:
            InvalidInput: the job is held, and its record cannot be understood.
        """
        arguments = [hold.job, hold.token, host_id, boot, _ms(lease_seconds), hold.nonce]
        flat = self._run("claim", arguments, job=hold.job, host=host_id)
        return JobRecord.parse(hold.job, dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    def beat(self, hold: Hold, lease_seconds: float) -> StopReason | None:
        """Renew the lease; the reason to stop, if there is one.

        Raises:
            Fenced: the assignment is lost.
        """
        answer = self._run("beat", [hold.job, hold.token, hold.nonce, _ms(lease_seconds)], job=hold.job)
        if answer == "fenced":
            raise _fenced(hold)
        return None if answer == "go" else StopReason(answer)

    def report(self, hold: Hold, report: Report) -> None:
        """Write progress, events and log lines of a running attempt.

        Raises:
            Fenced: the assignment is lost; nothing was written.
        """
        events = [[name, json.dumps(data)] for name, data in report.events]
        arguments = [hold.job, hold.token, hold.nonce, _dump(report.progress)]
        arguments.append(
            CHECKPOINTS.dump_json(tuple(report.checkpoints)).decode() if report.checkpoints else ""
        )
        arguments += [json.dumps(events), json.dumps(list(report.lines))]
        arguments += [one.model_dump_json() for one in report.logs]
        if not self._run("report", arguments, job=hold.job):
            raise _fenced(hold)

    def finish(self, hold: Hold, host_id: HostId, ending: Ending) -> JobState:
        """End an attempt; the job's state after it. Repeating it changes nothing.

        Raises:
            Fenced: the assignment is lost; nothing was written.
        """
        count = POLICIES[ending.failure.failure].count.value if ending.failure else ""
        arguments = [hold.job, hold.token, hold.nonce, ending.outcome.value, count, int(ending.blames_host)]
        arguments += [_ms(ending.pause_seconds), ending.event, json.dumps(ending.data)]
        arguments += [_dump(ending.failure), _dump(ending.result), ending.adapter or "", _dump(ending.log)]
        arguments += [_dump(ending.memory_limit), ending.above_bytes or ""]
        arguments.append(dump_samples(ending.memory) if ending.memory else "")
        arguments.append(ending.adapter_bytes or "")
        if ending.measured is not None:
            arguments += ending.measured.arguments()
        answer = self._run("finish", arguments, job=hold.job, host=host_id)
        if answer == "fenced":
            raise _fenced(hold)
        return JobState(answer)

    def expire(self, job_id: JobId, host_id: HostId, restarted_boot: str = "") -> JobState | None:
        """Take the job from a host that let it go; its new state, or nothing if the host holds it."""
        arguments = [job_id, MAX_LOST, _ms(GAP_SECONDS), restarted_boot]
        answer = self._run("expire", arguments, job=job_id, host=host_id)
        return JobState(answer) if answer else None

    def cancel(self, job_id: JobId, by: str) -> JobState:
        """Cancel, or ask the runner to; the state before.

        Raises:
            NotFound, Conflict: there is no such job, or it has ended.
        """
        state = self._ask("cancel", job_id, by, StopReason.CANCEL, "cancelled", "cancelling", "")
        if state.is_terminal:
            raise Conflict(f"job {job_id} is {state.value} already; there is nothing to cancel")
        return state

    def prune(self, job_id: JobId, by: str, leader: str = "") -> JobState:
        """End a trial that others have left behind, as `cancel`; the state before, which may be an ended one.

        Raises:
            NotFound: there is no such job.
        """
        return self._ask("cancel", job_id, by, StopReason.PRUNE, "pruned", "pruning", leader)

    def pause(self, job_id: JobId, by: str, leader: str = "") -> JobState:
        """Take a job that waits out of the queue, or ask its runner to stop with a checkpoint; the state
        before. One that has ended, or is about to, stays as it is.

        Raises:
            NotFound: there is no such job.
        """
        return self._ask("pause", job_id, by, leader)

    def resume(
        self, job_id: JobId, by: str, pause_step: int | Literal["same"] | None = "same", leader: str = ""
    ) -> JobState:
        """Queue a paused job again; the state before. It pauses next at `pause_step`, or never.

        With `leader` nothing is done, here and in the two before, unless that scheduler leads.

        Raises:
            NotFound: there is no such job.
        """
        return self._ask("resume", job_id, by, "" if pause_step is None else pause_step, leader)

    def retry(self, job_id: JobId, by: str) -> None:
        """Queue an ended job again.

        Raises:
            NotFound, Conflict: there is no such job, or it is not failed or cancelled.
        """
        state = self._ask("retry", job_id, by)
        if state not in {JobState.FAILED, JobState.CANCELLED}:
            raise Conflict(f"job {job_id} is {state.shown}; only failed and cancelled jobs can be retried")

    def remove_adapter(self, job_id: JobId, by: str) -> None:
        """Take what an ended job has made out of its record: adapter and checkpoints.

        Raises:
            NotFound, Conflict: there is no such job, or it has not ended.
        """
        state = self._ask("remove_adapter", job_id, by)
        if not state.is_terminal:
            raise Conflict(f"job {job_id} is {state.shown}; cancel it before its adapter is removed")

    def tag(self, tag: Tag, *, force: bool = False) -> Tag | None:
        """Give a name to an adapter or checkpoint that is in its job's record; with `force`, a name that
        another has. The one that has it, where that is not allowed.

        Raises:
            NotFound: the job or what is named is not there (any more).
        """
        arguments = [tag.job, tag.name, tag.model_dump_json(), tag.digest, int(force)]
        answer, detail = self._run("tag", arguments, job=tag.job)
        if answer == "gone":
            raise NotFound(f"job {tag.job} does not have {tag.digest} (any more)")
        other = Tag.model_validate_json(detail) if detail else None
        if answer != "tagged":
            return other
        if other is not None and other.job != tag.job:
            self._run("trim", [other.job], job=other.job)
        return None

    def untag(self, tag: Tag, by: str) -> None:
        """Take a name away; what nothing else keeps becomes garbage. One that is another's now stays."""
        self._run("untag", [tag.job, tag.name, tag.digest, by], job=tag.job)

    def lead(self, instance: str, ttl_seconds: float) -> tuple[bool, str, float]:
        """Whether `instance` leads, the leader's fencing value, and the seconds given back to leases."""
        leads, value, gap = self._run("lead", [instance, _ms(ttl_seconds), _ms(GAP_SECONDS)])
        return bool(leads), str(value), int(gap) / 1000

    def resign(self, leader: str) -> None:
        """Give up the lead, if this value still holds it."""
        self._run("resign", [leader])

    def host_beat(self, info: HostInfo, heartbeat_seconds: float) -> bool:
        """Register or report a host; whether it is to drain."""
        arguments = [info.id, info.model_dump_json(), info.name, info.machine_id, info.budget_bytes]
        arguments += [info.machine_bytes, info.slots, info.backend, HOST_TTL_SECONDS]
        arguments.append(_ms(heartbeat_seconds * MISSED_BEATS))
        arguments.append("" if info.available_bytes is None else info.available_bytes)
        return bool(self._run("host_beat", arguments, host=info.id))

    def host_away(self, host_id: HostId, heartbeat_seconds: float) -> None:
        """Count a host as away from now on: its worker leaves and says so."""
        last: Any = self.redis.zscore(keys.HOSTS, host_id)
        if last is not None:
            self.redis.zincrby(keys.HOSTS, -_ms(heartbeat_seconds * MISSED_BEATS) - 1, host_id)

    def _ask(self, script: str, job_id: JobId, by: str, *more: str | int) -> JobState:
        state = self._run(script, [job_id, by, secrets.token_hex(8), *more], job=job_id)
        if state is None:
            raise NotFound(f"there is no job {job_id}")
        return JobState(state)

    def _run(
        self, script: str, arguments: Sequence[Any], job: JobId | None = None, host: HostId | None = None
    ) -> Any:
        """The script's reply; its keys are always the same, in the order of `prelude.lua`."""
        of_job = [keys.job(job), keys.job_events(job), keys.job_log(job)] if job else ["", "", ""]
        shared = [keys.QUEUE, keys.PLACED, keys.LEASES, keys.COMMITTED, keys.JOBS, keys.HOSTS, keys.EVENTS]
        shared += [keys.WAKE, keys.LEADER, keys.EPOCH, keys.CLOCK, keys.SEQUENCE]
        groups = [keys.GROUPS, keys.GROUP_REQUESTS, keys.GROUPED, keys.RESERVED, keys.HELD, keys.LESSONS]
        groups += [keys.PAUSED, keys.STUDY_WAKE, keys.TAGS]
        all_keys = [*of_job, *shared, keys.host(host) if host else "", *groups]
        return self._scripts[f"{script}.lua"](keys=all_keys, args=list(arguments))


def _fenced(hold: Hold) -> Fenced:
    return Fenced(f"attempt {hold.token} of job {hold.job} was taken away")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _dump_demands(demands: Mapping[str, Demand] | None) -> str:
    if not demands:
        return ""
    return json.dumps({backend: demand.model_dump() for backend, demand in demands.items()})


def _dump(value: BaseModel | None) -> str:
    return "" if value is None else value.model_dump_json()
