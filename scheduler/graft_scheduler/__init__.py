"""The contract of Graft: jobs, records, placement, store and client. Imports no MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft_scheduler.client import Client, JobHandle
    from graft_scheduler.comparison import Comparison, ComparisonHandle, Variant
    from graft_scheduler.job_plan import JobPlan
    from graft_scheduler.jobs import CountJob, JobSpec, TrainJob
    from graft_scheduler.records import JobRecord
    from graft_scheduler.studies.storage import study_storage

_HOMES = {
    "Client": "client",
    "JobHandle": "client",
    "Comparison": "comparison",
    "ComparisonHandle": "comparison",
    "Variant": "comparison",
    "JobPlan": "job_plan",
    "CountJob": "jobs",
    "JobSpec": "jobs",
    "TrainJob": "jobs",
    "JobRecord": "records",
    "study_storage": "studies.storage",
}

__all__ = [
    "Client",
    "Comparison",
    "ComparisonHandle",
    "CountJob",
    "JobHandle",
    "JobPlan",
    "JobRecord",
    "JobSpec",
    "TrainJob",
    "Variant",
    "study_storage",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `graft --help` should not wait for Redis' client."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
