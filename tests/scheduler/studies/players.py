"""A fleet that trains in no time: hosts that take jobs and report the losses of a formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.broker import Broker
from graft_scheduler.checkpoints import KeptCheckpoint
from graft_scheduler.demand import Request
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import of_rows
from graft_scheduler.messages import TrainResult
from graft_scheduler.records import Failure, Hold, HostInfo, JobProgress, JobRecord
from graft_scheduler.rooms import Placement
from graft_scheduler.states import Digest, FailureClass, HostId, JobId, JobState, StopReason, Token
from graft_scheduler.studies.known import Known
from graft_scheduler.transitions import Ending, Report, Transitions, Window, ending_after

HOST = HostId("host1")
KNOWN = Known(None, of_rows([16] * 90, 64), of_rows([16] * 90, 64), 10, "store")
EVALUATIONS = 9


class SilentBroker(Broker):
    """Flower is not there."""

    def __init__(self) -> None:
        pass

    def _send(self, worker: str, events: list[tuple[str, dict[str, Any]]]) -> None:
        pass


def loss_after(job: TrainJob, step: int) -> float:
    """The nearer the rate is to 1e-3 the lower, and the lower the longer."""
    distance = abs(math.log10(job.learning_rate) + 3)
    return 1.0 + distance + 2.0 / step


def no_trouble(job: TrainJob, step: int) -> FailureClass | None:
    return None


class Hosts:
    """One host with room for everything, which takes a job whenever it is told to play."""

    def __init__(
        self, redis: Redis, trouble: Callable[[TrainJob, int], FailureClass | None] = no_trouble
    ) -> None:
        self._redis, self._transitions, self._trouble = redis, Transitions(redis), trouble
        self._transitions.host_beat(
            HostInfo(
                id=HOST,
                name="host",
                machine_id="machine",
                boot="boot",
                store_id="store",
                budget_bytes=1 << 40,
                machine_bytes=1 << 40,
                slots=10_000,
                backend="cpu",
                device="CPU",
                system="test",
                versions={},
            ),
            1e6,
        )
        self.steps_taken: dict[str, list[int]] = {}

    def queued(self) -> list[JobId]:
        found: Any = self._redis.zrange(keys.QUEUE, 0, -1)
        return [JobId(job) for job in found]

    def take(self, job: JobId) -> tuple[Hold, JobRecord]:
        """The job, running here."""
        _, leader, _ = self._transitions.lead("test", 1e6)
        placement = Placement(job, HOST, 1 << 20)
        token, why = self._transitions.place(placement, leader, Window(60.0, 1e6))
        assert token is not None, why
        hold = Hold(job, Token(token), "nonce")
        record = self._transitions.claim(hold, HOST, "boot", 60.0)
        assert record is not None
        return hold, record

    def play(self, job: JobId) -> JobState:
        """Train the job up to where it pauses, or to its end."""
        hold, record = self.take(job)
        spec = record.spec
        assert isinstance(spec, TrainJob)
        steps = spec.steps or 0
        first = record.resume.step if record.resume else 0
        for step in range(first + 1, steps + 1):
            if (failure := self._trouble(spec, step)) is not None:
                return self._fail(hold, record, failure)
            self.steps_taken.setdefault(job, []).append(step)
            is_rung = step == record.pause_step
            if is_rung or step % max(1, steps // EVALUATIONS) == 0:
                loss = loss_after(spec, step)
                data = {"step": step, "loss": loss, "perplexity": math.exp(loss)}
                self._transitions.report(hold, Report(events=[("evaluated", data)]))
            if is_rung and step < steps:
                return self._pause(hold, spec, step)
            if self._transitions.beat(hold, 60.0) is StopReason.PRUNE:
                return self._transitions.finish(hold, HOST, Ending(JobState.CANCELLED, "pruned"))
        result = self._result(spec, steps)
        return self._transitions.finish(hold, HOST, Ending(JobState.COMPLETED, "completed", result=result))

    def _pause(self, hold: Hold, spec: TrainJob, step: int) -> JobState:
        checkpoint = KeptCheckpoint(digest=Digest(f"sha256:{step}"), step=step)
        self._transitions.report(
            hold, Report(progress=JobProgress(step=step, steps=spec.steps), checkpoints=[checkpoint])
        )
        ending = Ending(JobState.PAUSED, "paused", result=self._result(spec, step))
        return self._transitions.finish(hold, HOST, ending)

    def _fail(self, hold: Hold, record: JobRecord, failure: FailureClass) -> JobState:
        why = Failure(failure=failure, text=f"it failed by its {failure}")
        ending = ending_after(why, record)
        return self._transitions.finish(hold, HOST, Ending(JobState.FAILED, ending.event, failure=why))

    def _result(self, spec: TrainJob, step: int) -> TrainResult:
        loss = loss_after(spec, step)
        return TrainResult(
            steps=step,
            final_loss=loss,
            best_loss=loss,
            best_step=step,
            saved_step=step,
            training_seconds=float(step),
            peak_memory_bytes=spec.adapter.trained_rank << 20,
        )


def request() -> Request:
    return Request(store_id="store")
