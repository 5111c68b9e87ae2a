"""Every Redis key of Graft, under one versioned prefix. Nothing else makes a key.

All times in values are milliseconds on Redis' own clock.
"""

from __future__ import annotations

from graft_scheduler.states import HostId, JobId

PREFIX = "graft:v1:"

QUEUE = PREFIX + "queue"
"""Sorted set of queued jobs; score: priority, then order of submission."""
PLACED = PREFIX + "placed"
"""Sorted set of placed jobs by claim deadline."""
LEASES = PREFIX + "leases"
"""Sorted set of running jobs by the end of their lease."""
PAUSED = PREFIX + "paused"
"""Sorted set of paused jobs by when they were paused."""
JOBS = PREFIX + "jobs"
"""Sorted set of all jobs by time of submission."""
COMMITTED = PREFIX + "committed"
"""Hash: placed or running job → JSON of host, machine and reserved bytes."""
SEQUENCE = PREFIX + "sequence"
"""Counter that orders submissions of one priority."""
HOSTS = PREFIX + "hosts"
"""Sorted set of hosts by when they last reported."""
EVENTS = PREFIX + "events"
"""Capped stream of the events of all jobs."""
WAKE = PREFIX + "wake"
"""List of at most one element: something changed, the leader should look now."""
LEADER = PREFIX + "leader"
"""`<instance>:<epoch>` of the leading scheduler, with a TTL."""
EPOCH = PREFIX + "epoch"
"""Counter of leaderships; the current value fences placements."""
CLOCK = PREFIX + "clock"
"""When a leader last made a round."""
GROUPS = PREFIX + "groups"
"""Sorted set: queued jobs that are alike to placement form a group; score: that of its first job."""
GROUP_REQUESTS = PREFIX + "group_requests"
"""Hash: group, a digest → JSON list of request, avoid, above_bytes, not_before, reserved_on."""
GROUPED = PREFIX + "grouped"
"""Sorted set by name: `<group>:<score in 15 digits>:<job>` of every queued job."""
RESERVED = PREFIX + "reserved"
"""Hash: group of a job that has a reservation → the job."""
HELD = PREFIX + "held"
"""Sorted set by name: `<machine>:<host>:<job>` of every placed or running job, beside `COMMITTED`."""
LESSONS = PREFIX + "lessons"
"""Hash: `family|method|chip|mlx` → JSON of what finished jobs taught."""
SNAPSHOT = PREFIX + "snapshot"
"""The hosts and reservations as the leader saw them in its last round, as JSON; with a TTL."""
GATEWAY = PREFIX + "gateway"
"""Hash: where the fleet's store is, and what it asks for: port, host, token."""
DATASETS = PREFIX + "datasets"
"""Sorted set: names of data sets by when they were pushed to last."""
TAGS = PREFIX + "tags"
"""Hash: name → JSON of the adapter or checkpoint that has it, which is kept for as long."""
STUDIES = PREFIX + "studies"
"""Hash: name of a study → its number."""
STUDY_SEQUENCE = PREFIX + "study_sequence"
"""Counter of studies; numbers are never used again."""
STUDY = PREFIX + "study:"
"""What the keys of every study begin with."""


STUDIES_ACTIVE = PREFIX + "studies_active"
"""Sorted set: numbers of the studies that the driver works on."""
STUDY_WAKE = PREFIX + "study_wake"
"""List of at most one element: something changed for the studies, their driver should look now."""


def study(number: int) -> str:
    """Hash: the record of a study."""
    return f"{STUDY}{number}"


def study_log(number: int) -> str:
    """List: Optuna's journal of one study, an entry of JSON each."""
    return f"{STUDY}{number}:log"


def study_writers(number: int) -> str:
    """Hash: who wrote to that log → the number of its last entries, so that none is written twice."""
    return f"{STUDY}{number}:writers"


def dataset(name: str) -> str:
    """Hash: the versions of a data set: `newest`, digest → number, and `v3`, `v3:at`, `v3:by` of each."""
    return f"{PREFIX}dataset:{name}"


def job(job_id: JobId) -> str:
    """Hash: the record of a job."""
    return f"{PREFIX}job:{job_id}"


def job_events(job_id: JobId) -> str:
    """Capped stream of one job's events."""
    return f"{PREFIX}job:{job_id}:events"


def job_log(job_id: JobId) -> str:
    """Capped stream of one job's log lines; the whole log is in the store once the job has ended."""
    return f"{PREFIX}job:{job_id}:log"


def host(host_id: HostId) -> str:
    """Hash: what a host is, has and may do."""
    return f"{PREFIX}host:{host_id}"


def host_models(host_id: HostId) -> str:
    """The models on a host's disk, as its worker last said, as JSON."""
    return f"{PREFIX}host:{host_id}:models"


def host_wishes(host_id: HostId) -> str:
    """Hash: model → JSON of what the host was asked to do with it, and how that went."""
    return f"{PREFIX}host:{host_id}:wishes"


def host_pins(host_id: HostId) -> str:
    """Set: models that the host never evicts."""
    return f"{PREFIX}host:{host_id}:pins"


def host_events(host_id: HostId) -> str:
    """Capped stream of what became of the models of one host."""
    return f"{PREFIX}host:{host_id}:events"


def host_queue(host_id: HostId) -> str:
    """The Celery queue of one host (a name of Celery's, so not under our prefix)."""
    return f"graft.host.{host_id}"
