"""What running a job would take, before anything runs: memory, time, and the answer of each host.

Pure: the caller has read the model, the data and the hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.host_verdicts import (
    Fit,
    HostVerdict,
    HostView,
    flops_of,
    starts,
    verdict_of,
    with_remedies,
)
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths
from graft_scheduler.memory import Backend
from graft_scheduler.memory.cuts import padded
from graft_scheduler.planning import CutPlan, Question, StepCut, fastest_cut, smallest_cut
from graft_scheduler.states import HostId
from graft_scheduler.submission import Resolved, resolve

HELPED_HOSTS = 3
"""So many hosts are asked what would help, where none will do."""


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """The two ends of what a backend can do with the job's memory."""

    backend: Backend
    fastest: CutPlan
    smallest: CutPlan


@dataclass(frozen=True, slots=True)
class JobPlan:
    """All that can be said of a job before it runs."""

    job: TrainJob
    """With every default written out."""
    model: BaseModel | None
    """Absent where nothing can be known here: a hub id, and no hub. Then there are no sizes."""
    lengths: Lengths
    """Of the rows that are trained on, as memory counts them; `is_counted` says how well they are known."""
    likely_lengths: Lengths
    """The same as they probably are: what time counts."""
    valid_rows: int
    flops: float | None
    """Of the whole training, with nothing computed again."""
    backends: tuple[BackendPlan, ...]
    """Those of the hosts; all three where no fleet was asked."""
    hosts: tuple[HostVerdict, ...]
    asked_fleet: bool
    waiting: int = 0
    """Jobs in the queue; those of them that fit go first."""

    @property
    def fit(self) -> Fit | None:
        """The best of the hosts' answers; nothing where no fleet was asked."""
        if not self.asked_fleet:
            return None
        return min((one.fit for one in self.hosts), key=list(Fit).index, default=Fit.LATER)

    @property
    def best(self) -> HostVerdict | None:
        """The host that would start it first."""
        able = [one for one in self.hosts if one.fit is not Fit.NEVER]
        return min(able, key=starts, default=None)

    @property
    def nearest(self) -> HostVerdict | None:
        """Of hosts that are too small, the one that something helps, or that lacks least."""
        small = [one for one in self.hosts if one.short_bytes]
        return min(small, key=lambda one: (not one.remedies, one.short_bytes), default=None)

    def as_json(self) -> dict[str, Any]:
        """The plan for `--json`: plain values, the job included."""
        return {
            "fit": self.fit,
            "asked_fleet": self.asked_fleet,
            "waiting": self.waiting,
            "model": None if self.model is None else asdict(self.model),
            "data": {
                "memory": _length_facts(self.lengths),
                "time": _length_facts(self.likely_lengths),
                "valid_rows": self.valid_rows,
            },
            "flops": self.flops,
            "backends": [
                {
                    "backend": one.backend.value,
                    "fastest": _cut_facts(one.fastest),
                    "smallest": _cut_facts(one.smallest),
                }
                for one in self.backends
            ],
            "hosts": [_verdict_facts(one) for one in self.hosts],
            "job": self.job.model_dump(mode="json"),
        }


def make_plan(resolved: Resolved, hosts: Sequence[HostView] | None = None, *, waiting: int = 0) -> JobPlan:
    """The plan; without `hosts` no fleet was asked."""
    found = {host.backend for host in hosts or ()}
    backends = [one for one in Backend if one in found] or list(Backend)
    base = resolved.base
    return JobPlan(
        job=resolved.spec,
        model=base,
        lengths=resolved.lengths,
        likely_lengths=resolved.likely_lengths,
        valid_rows=resolved.valid_rows,
        flops=None if base is None else flops_of(resolved, base, resolved.spec),
        backends=() if base is None else tuple(_on_backend(resolved, base, one) for one in backends),
        hosts=_with_remedies(resolved, _verdicts(resolved, hosts or ())),
        asked_fleet=hosts is not None,
        waiting=waiting,
    )


def plan_alone(job: TrainJob) -> JobPlan:
    """The plan of a job where no fleet can be asked.

    Raises:
        InvalidInput: says the field, file or line and what would be right.
    """
    return make_plan(resolve(job))


def longest_rows_at_once(plan: JobPlan, backend: Backend, cut: StepCut) -> int:
    """Rows of the longest that one micro-batch holds; of shorter ones it holds more."""
    width = padded(plan.lengths.longest, backend)
    return max(1, min(plan.job.batch_rows, cut.micro_batch_tokens // width))


def _verdicts(resolved: Resolved, hosts: Sequence[HostView]) -> list[HostVerdict]:
    """Hosts that are alike get one answer."""
    known: dict[HostView, HostVerdict] = {}
    found = []
    for host in hosts:
        alike = replace(host, id=HostId(""), name="")
        if alike not in known:
            known[alike] = verdict_of(resolved, alike)
        found.append(replace(known[alike], host=host))
    return sorted(found, key=lambda one: (starts(one), one.short_bytes, one.host.name))


def _with_remedies(resolved: Resolved, verdicts: Sequence[HostVerdict]) -> tuple[HostVerdict, ...]:
    """Where no host will do: what would help on those that lack least."""
    if any(one.fit is not Fit.NEVER for one in verdicts):
        return tuple(verdicts)
    short = [one for one in verdicts if one.short_bytes]
    return tuple(with_remedies(resolved, one) if one in short[:HELPED_HOSTS] else one for one in verdicts)


def _on_backend(resolved: Resolved, base: BaseModel, backend: Backend) -> BackendPlan:
    question = Question(base, resolved.spec, resolved.lengths, backend)
    fastest = fastest_cut(question)
    assert fastest is not None  # without a budget there always is one
    return BackendPlan(backend, fastest, smallest_cut(question))


def _length_facts(lengths: Lengths) -> dict[str, Any]:
    return {
        "rows": lengths.rows,
        "longest_tokens": lengths.longest,
        "mean_tokens": round(lengths.mean, 1),
        "is_counted": lengths.is_counted,
    }


def _cut_facts(plan: CutPlan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {**asdict(plan.cut), "peak_bytes": plan.peak_bytes, "estimate": asdict(plan.estimate)}


def _verdict_facts(verdict: HostVerdict) -> dict[str, Any]:
    return {
        "host": asdict(verdict.host),
        "fit": verdict.fit.value,
        "reason": verdict.reason,
        "starts_in_seconds": verdict.starts_in_seconds,
        "cut": _cut_facts(verdict.cut),
        "time": None if verdict.time is None else asdict(verdict.time),
        "short_bytes": verdict.short_bytes,
        "remedies": [asdict(one) for one in verdict.remedies],
    }
