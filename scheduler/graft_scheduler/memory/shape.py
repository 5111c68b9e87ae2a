"""What an estimate of memory is made of: the model, the job and the backend, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import BranchDtype, Method, Precision
from graft_scheduler.jobs import TrainJob

FLOAT32_BYTES = 4
HALF_BYTES = 2


class Backend(StrEnum):
    """What MLX runs on; it decides the dtype, and which operations are fused."""

    METAL = "metal"
    CUDA = "cuda"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that the terms are products of."""

    model: BaseModel
    job: TrainJob
    backend: Backend

    @property
    def item_bytes(self) -> int:
        """Of the base's activations."""
        precision = self.job.precision
        if precision is Precision.AUTO and self.backend is not Backend.CPU:
            return FLOAT32_BYTES if self.model.dtype == "float32" else HALF_BYTES
        return FLOAT32_BYTES if precision in {Precision.AUTO, Precision.FLOAT32} else HALF_BYTES

    @property
    def is_full(self) -> bool:
        return self.job.method is Method.FULL

    @property
    def computed_bytes(self) -> int:
        """Of one trained number where it is computed with; masters are float32."""
        asked = self.job.compute.branch_dtype
        if self.is_full or asked is BranchDtype.BASE:
            return self.item_bytes
        is_float16 = self.job.precision is Precision.FLOAT16 or (
            self.job.precision is Precision.AUTO and self.model.dtype == "float16"
        )
        return FLOAT32_BYTES if asked is BranchDtype.FLOAT32 or is_float16 else self.item_bytes

    @property
    def trained_layers(self) -> int:
        return min(self.job.adapter.layers or self.model.num_layers, self.model.num_layers)


def is_target(target: str, module: str) -> bool:
    """Whether `target`, a name, a path's end or a pattern, means the module at this path in a block."""
    return module == target or module.endswith(f".{target}") or fnmatchcase(module, target)
