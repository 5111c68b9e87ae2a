"""What is known of a study in Redis besides Optuna's state: its spec, where it stands, and why it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.errors import InvalidInput
from graft_scheduler.states import JobId
from graft_scheduler.studies.journal import script
from graft_scheduler.studies.known import Known
from graft_scheduler.studies.spec import StudySpec

_CHANGING = ["number", "name", "state", "trials", "created_at", "ended_at", "until", "why", "final_job"]
"""Fields of a record besides spec and base."""


class StudyState(StrEnum):
    """Where a study stands."""

    ACTIVE = "active"
    STOPPING = "stopping"
    """Somebody stopped it, and its running trials are saving checkpoints."""
    STOPPED = "stopped"
    """It waits for `graft study resume`; its trials keep their checkpoints."""
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def is_at_work(self) -> bool:
        return self in {StudyState.ACTIVE, StudyState.STOPPING}


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study: what it is to do, and where it stands."""

    number: int
    name: str
    state: StudyState
    spec: StudySpec
    known: Known
    trials: int
    """How many it ends with; that of the spec, or more since it was resumed."""
    created_at: float
    """Seconds since 1970 on Redis' clock, like the next two."""
    ended_at: float | None
    until: float | None
    """After this no trial begins."""
    why: str
    """Why it ended, where there is more to say than that it did."""
    final_job: JobId | None
    """The job whose adapter is the study's result, once there is one."""

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Self:
        """The record in a Redis hash.

        Raises:
            ValueError, KeyError: it cannot be understood.
        """
        return cls._parse(fields, StudySpec.model_validate_json(fields["spec"]), Known.parse(fields["known"]))

    def updated(self, fields: Mapping[str, str]) -> Self:
        """The record with what may have changed of it; spec and base stay as they are."""
        return self._parse(fields, self.spec, self.known)

    @classmethod
    def _parse(cls, fields: Mapping[str, str], spec: StudySpec, known: Known) -> Self:
        created = int(fields["created_at"]) / 1000
        until = float(fields["until"]) if fields.get("until") else None
        if "until" not in fields and spec.seconds is not None:
            until = created + spec.seconds
        ended = fields.get("ended_at")
        return cls(
            number=int(fields["number"]),
            name=fields["name"],
            state=StudyState(fields["state"]),
            spec=spec,
            known=known,
            trials=int(fields.get("trials") or spec.trials),
            created_at=created,
            ended_at=int(ended) / 1000 if ended else None,
            until=until,
            why=fields.get("why", ""),
            final_job=JobId(fields["final_job"]) if fields.get("final_job") else None,
        )

    def as_json(self) -> dict[str, Any]:
        """The record for `--json`: plain values, the specification included."""
        return {
            "name": self.name,
            "number": self.number,
            "state": self.state.value,
            "trials": self.trials,
            "created_at": self.created_at,
            "ended_at": self.ended_at,
            "until": self.until,
            "why": self.why or None,
            "final_job": self.final_job,
            "spec": self.spec.model_dump(mode="json"),
        }


class StudyRecords:
    """The records of all studies on one Redis."""

    def __init__(self, redis: Redis, leader: Callable[[], str] = lambda: "") -> None:
        """With `leader`, states change only while that scheduler leads."""
        self._redis, self._leader = redis, leader
        self._begin = redis.register_script(script("begin"))
        self._change = redis.register_script(script("change"))

    def begin(self, spec: StudySpec, known: Known) -> int:
        """Accept a study under a number of its own: from here on it is not lost.

        Raises:
            InvalidInput: another study has the name.
        """
        number = int(self._redis.incr(keys.STUDY_SEQUENCE))
        where = [keys.STUDIES, keys.study(number), keys.STUDIES_ACTIVE, keys.STUDY_WAKE]
        arguments: list[str | int] = [spec.name, number, "spec", spec.model_dump_json()]
        arguments += ["known", known.dump(), "trials", spec.trials]
        if not self._begin(keys=where, args=arguments):
            raise InvalidInput(
                f"`name` is {spec.name}, and there is a study of that name; `graft study show {spec.name}` "
                f"shows it, `graft study resume {spec.name}` goes on with it"
            )
        return number

    def at_work(self) -> list[int]:
        """Numbers of the studies that the driver has to do with, the oldest first."""
        found: Any = self._redis.zrange(keys.STUDIES_ACTIVE, 0, -1)
        return [int(number) for number in found]

    def number(self, name: str) -> int | None:
        found: Any = self._redis.hget(keys.STUDIES, name)
        return None if found is None else int(found)

    def get(self, number: int) -> StudyRecord | None:
        """The study as it is now; nothing where there is none, or only Optuna's part of one.

        Raises:
            ValueError, KeyError: it cannot be understood.
        """
        fields: Any = self._redis.hgetall(keys.study(number))
        return StudyRecord.parse(fields) if fields else None

    def refresh(self, record: StudyRecord) -> StudyRecord | None:
        """The study as it is now, without reading again what does not change."""
        values: Any = self._redis.hmget(keys.study(record.number), _CHANGING)
        fields = {name: value for name, value in zip(_CHANGING, values, strict=True) if value is not None}
        return record.updated(fields) if "number" in fields else None

    def all(self) -> list[StudyRecord]:
        """Every study, the newest first; records that cannot be understood are left out."""
        numbers: Any = self._redis.hvals(keys.STUDIES)
        found = []
        for number in sorted(map(int, numbers), reverse=True):
            try:
                record = self.get(number)
            except (ValueError, KeyError, InvalidInput):
                continue
            if record is not None:
                found.append(record)
        return found

    def change(
        self,
        number: int,
        state: StudyState,
        after: Sequence[StudyState],
        why: str = "",
        **fields: str | int,
    ) -> StudyState | None:
        """Change the state if it is one of `after`; the state before, or nothing without such a study."""
        where = [keys.study(number), keys.STUDIES_ACTIVE, keys.STUDY_WAKE, keys.LEADER]
        arguments: list[Any] = [number, state.value, json.dumps([one.value for one in after]), self._leader()]
        arguments += [why, int(state.is_at_work), int(not state.is_at_work)]
        arguments += ["number", number]
        for name, value in fields.items():
            arguments += [name, value]
        before = self._change(keys=where, args=arguments)
        return StudyState(before) if before else None

    def note(self, number: int, **fields: str | int) -> None:
        """Write fields of the record."""
        values: dict[Any, Any] = dict(fields)
        self._redis.hset(keys.study(number), mapping=values)


def trial_job(number: int, trial: int) -> JobId:
    """The id of a trial's job: the same whoever submits it, so that it is submitted once."""
    return JobId(f"s{number}t{trial}")
