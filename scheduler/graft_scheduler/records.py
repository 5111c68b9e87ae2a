"""What is known of a job, a host and an assignment: the values that Redis hashes are read into."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter

from graft_scheduler.checkpoints import CHECKPOINTS, KeptCheckpoint
from graft_scheduler.demand import Demand, Request
from graft_scheduler.jobs import CountJob, TrainJob, parse_job
from graft_scheduler.messages import TrainResult
from graft_scheduler.recovery import MemoryLimit
from graft_scheduler.states import (
    Count,
    Digest,
    FailureClass,
    HostId,
    JobId,
    JobState,
    Phase,
    StopReason,
    Token,
)

_DEMANDS = TypeAdapter(dict[str, Demand])


class Value(BaseModel):
    """Base of the values kept as JSON inside a record."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Assignment(Value):
    """What placement grants: these jobs may run on these hosts under this token.

    Today there is one job and one host; gang jobs and packed trials use the same shape.
    """

    token: Token
    jobs: tuple[JobId, ...]
    hosts: tuple[HostId, ...]
    host_name: str


@dataclass(frozen=True, slots=True)
class Hold:
    """What a worker has once it has claimed an assignment; every write of the attempt shows it."""

    job: JobId
    token: Token
    nonce: str
    """Of this one claim: a token that Redis forgot in a power cut and gave again is not enough."""


class Failure(Value):
    """Why a job, or one attempt of it, did not complete."""

    failure: FailureClass
    text: str
    host_name: str | None = None
    token: Token | None = None


class ResumePoint(Value):
    """The newest checkpoint that any host can reach."""

    digest: Digest
    step: int


class AttemptLog(Value):
    """What one attempt printed, in the store."""

    token: Token
    digest: Digest
    bytes: int = 0
    is_whole: bool = True
    """False for an attempt whose host was lost: the newest lines that Redis had of it."""


class Removed(Value):
    """Who took a job's adapter and checkpoints out of its record."""

    by: str
    at: int
    """Milliseconds since 1970 on Redis' clock."""


class JobProgress(Value):
    """The newest report of a running job."""

    phase: Phase = Phase.PREPARING
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens_per_second: float | None = None
    padding_share: float | None = None
    memory_bytes: int | None = None
    cache_bytes: int | None = None
    peak_bytes: int | None = None
    seconds_left: float | None = None
    trained_seconds: float = 0.0


class MemorySample(Value):
    """A runner's memory at one time: what MLX says of itself, and what the system sees."""

    seconds: float
    """Since the runner was started."""
    phase: Phase
    active_bytes: int | None = None
    """In MLX's arrays, as it last said."""
    cache_bytes: int | None = None
    """In buffers that MLX keeps for the next ones."""
    footprint_bytes: int
    """Of the runner and all that it started, on the machine's side."""


_SAMPLES = TypeAdapter(tuple[MemorySample, ...])
_LOGS = TypeAdapter(tuple[AttemptLog, ...])


def dump_samples(samples: Sequence[MemorySample]) -> str:
    """As a compact JSON list."""
    return _SAMPLES.dump_json(tuple(samples), exclude_none=True).decode()


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job: its specification, and everything that has happened to it."""

    id: JobId
    spec: TrainJob | CountJob
    state: JobState
    token: Token
    charged: int
    """Failures that were the job's own."""
    lost: int
    """Attempts that ended with their host, since the newest checkpoint."""
    stalled: int
    """Attempts that the store failed, since the newest checkpoint."""
    memory_failures: int
    """Attempts that ended because memory ran out; they are not charged."""
    memory_limit: MemoryLimit | None
    """What was learned from them, or from being shrunk; the next attempt obeys it."""
    pause_step: int | None
    """Having come to this step it pauses."""
    above_bytes: int | None
    """Hosts that may use no more than this ran out of memory, and are not tried again."""
    store_id: str
    demands: dict[str, Demand] | None
    """Peak memory by backend; absent: the size is unknown and it takes a whole host."""
    request: Request | None
    """What placement knows of it."""
    reserved_bytes: int | None
    """What the newest placement reserved."""
    submitted_at: float
    """Seconds since 1970 on Redis' clock, like the next three."""
    queued_at: float
    started_at: float | None
    """Of the newest attempt."""
    finished_at: float | None
    assignment: Assignment | None
    """The newest one."""
    stop_requested: StopReason | None
    progress: JobProgress | None
    resume: ResumePoint | None
    result: TrainResult | None
    failure: Failure | None
    adapter: Digest | None
    adapter_bytes: int | None = None
    """Of all files of the adapter's folder."""
    checkpoints: tuple[KeptCheckpoint, ...] = ()
    """Those that are kept, in the order of their steps."""
    logs: tuple[AttemptLog, ...] = ()
    """In the order of the attempts; one that runs has its lines in Redis."""
    removed: Removed | None = None
    """Set once somebody removed what it had made."""
    removed_token: int = 0
    """The newest attempt at that time: nothing that it or an earlier one left on a host is gone on from."""
    memory_text: str = ""
    """See `memory`; read only where it is wanted, as it is long."""

    @property
    def memory(self) -> tuple[MemorySample, ...]:
        """The memory of the newest attempt that has ended, in order of time."""
        return _SAMPLES.validate_json(self.memory_text) if self.memory_text else ()

    @property
    def host_name(self) -> str | None:
        """Where it runs or last ran."""
        return self.assignment.host_name if self.assignment else None

    @classmethod
    def parse(cls, job_id: JobId, fields: Mapping[str, str]) -> Self:
        """The record in a Redis hash."""

        def optional(parse: Callable[[str], Any], name: str) -> Any:
            text = fields.get(name)
            return parse(text) if text else None

        return cls(
            id=job_id,
            spec=parse_job(fields["spec"]),
            state=JobState(fields["state"]),
            token=Token(int(fields["token"])),
            charged=int(fields["charged"]),
            lost=int(fields["lost"]),
            stalled=int(fields.get("stalled") or 0),
            memory_failures=int(fields.get(Count.MEMORY) or 0),
            memory_limit=optional(MemoryLimit.model_validate_json, "memory_limit"),
            above_bytes=optional(int, "above_bytes"),
            pause_step=optional(int, "pause_step"),
            store_id=fields.get("store_id", ""),
            demands=optional(_DEMANDS.validate_json, "demands"),
            request=optional(Request.model_validate_json, "request"),
            reserved_bytes=optional(int, "reserved_bytes"),
            submitted_at=int(fields["submitted_at"]) / 1000,
            queued_at=int(fields["queued_at"]) / 1000,
            started_at=optional(_seconds, "started_at"),
            finished_at=optional(_seconds, "finished_at"),
            assignment=optional(Assignment.model_validate_json, "assignment"),
            stop_requested=optional(StopReason, "stop"),
            progress=optional(JobProgress.model_validate_json, "progress"),
            resume=optional(ResumePoint.model_validate_json, "resume"),
            result=optional(TrainResult.model_validate_json, "result"),
            failure=optional(Failure.model_validate_json, "failure"),
            adapter=optional(Digest, "adapter"),
            adapter_bytes=optional(int, "adapter_bytes"),
            checkpoints=optional(CHECKPOINTS.validate_json, "checkpoints") or (),
            logs=optional(_LOGS.validate_json, "logs") or (),
            removed=optional(Removed.model_validate_json, "removed"),
            removed_token=optional(int, "removed_token") or 0,
            memory_text=fields.get("memory", ""),
        )

    def as_json(self) -> dict[str, Any]:
        """The record for `--json`: plain values, the specification included."""
        return {
            "id": self.id,
            "kind": self.spec.kind,
            "name": self.spec.name,
            "state": self.state.shown,
            "submitter": self.spec.submitter,
            "attempt": self.token,
            "charged_attempts": self.charged,
            "lost_hosts": self.lost,
            "store_failures": self.stalled,
            "memory_failures": self.memory_failures,
            "memory_limit": _plain(self.memory_limit),
            "above_bytes": self.above_bytes,
            "pause_step": self.pause_step,
            "host": self.host_name,
            "demands": {name: _plain(one) for name, one in self.demands.items()} if self.demands else None,
            "reserved_bytes": self.reserved_bytes,
            "submitted_at": self.submitted_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "stop_requested": self.stop_requested,
            "progress": _plain(self.progress),
            "resume": _plain(self.resume),
            "result": _plain(self.result),
            "failure": _plain(self.failure),
            "adapter": self.adapter,
            "adapter_bytes": self.adapter_bytes,
            "checkpoints": [_plain(one) for one in self.checkpoints],
            "removed": _plain(self.removed),
            "logs": [_plain(one) for one in self.logs],
            "spec": self.spec.model_dump(mode="json"),
        }


class HostInfo(Value):
    """What a worker says of itself and its machine when it registers."""

    id: HostId
    name: str
    machine_id: str
    boot: str
    """New at every start of the worker."""
    store_id: str
    budget_bytes: int
    """What jobs on this worker may use together."""
    machine_bytes: int
    """What all workers of this machine may use together."""
    slots: int
    backend: str
    """`metal`, `cuda` or `cpu`: decides which estimate holds."""
    device: str
    """Such as `Apple M3 Max` or `CPU`."""
    chip: str = ""
    """The chip's short name, such as `Apple M3 Max`; without a GPU the processor's model."""
    system: str
    versions: dict[str, str]
    allow_remote_code: bool = False
    cached: tuple[str, ...] = ()
    """Models that need no fetching: digests of the store, and hub ids as `org/name` and
    `org/name@revision`."""
    available_bytes: int | None = None
    """What other processes leave to jobs now, those that run included; never above the budget.
    Absent where that cannot be read."""
    free_disk_bytes: int | None = None
    """What jobs may still put on its disk, with what can be evicted for them. Absent: not known."""
    no_access: tuple[str, ...] = ()
    """Hub ids that the hub did not let this host fetch when it last tried."""

    @property
    def mlx(self) -> str:
        """MLX's version; empty where it is not known."""
        return self.versions.get("mlx", "")


@dataclass(frozen=True, slots=True)
class Commitment:
    """What one placed or running job holds."""

    job: JobId
    host: HostId
    machine: str
    bytes: int
    placed_at: float = 0.0
    """Seconds since 1970 on Redis' clock, like the next one."""
    ends_at: float | None = None
    """As estimated when it was placed."""
    beside: JobId | None = None
    """It was let in because it leaves room for this one, which has a reservation."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host as the fleet sees it."""

    info: HostInfo
    seen_at: float
    """Seconds since 1970 on Redis' clock."""
    is_alive: bool
    is_draining: bool
    """It finishes what it runs and gets nothing new."""
    is_cordoned: bool
    """It failed too many jobs and gets nothing new until somebody looks."""
    faults: int
    """Different jobs in a row that failed by the host's fault."""
    missed_claims: int
    """Placements in a row that it did not take."""
    rest_seconds: float
    """For so long it is left alone, as it took none of its last placements."""
    held: tuple[Commitment, ...]
    """What is placed or running on it."""

    @property
    def committed_bytes(self) -> int:
        return sum(one.bytes for one in self.held)

    @property
    def jobs(self) -> tuple[JobId, ...]:
        return tuple(one.job for one in self.held)

    def as_json(self) -> dict[str, Any]:
        """The host for `--json`."""
        return {
            **self.info.model_dump(mode="json"),
            "seen_at": self.seen_at,
            "is_alive": self.is_alive,
            "is_draining": self.is_draining,
            "is_cordoned": self.is_cordoned,
            "faults": self.faults,
            "missed_claims": self.missed_claims,
            "committed_bytes": self.committed_bytes,
            "jobs": list(self.jobs),
        }


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job or a host."""

    id: str
    """Position in its stream."""
    at: float
    """Seconds since 1970 on Redis' clock."""
    job: JobId | None
    name: str
    """Such as `submitted`, `placed`, `running`, `checkpoint`, `lost`, `completed`."""
    token: Token | None
    data: dict[str, Any]

    @classmethod
    def parse(cls, entry_id: str, fields: Mapping[str, str]) -> Self:
        """The event in a stream entry."""
        token = fields.get("token")
        return cls(
            id=entry_id,
            at=int(fields["at"]) / 1000,
            job=JobId(fields["job"]) if fields.get("job") else None,
            name=fields["name"],
            token=Token(int(token)) if token else None,
            data=json.loads(fields.get("data") or "{}"),
        )


def _seconds(milliseconds: str) -> float:
    return int(milliseconds) / 1000


def _plain(value: BaseModel | None) -> dict[str, Any] | None:
    return None if value is None else value.model_dump(mode="json")
