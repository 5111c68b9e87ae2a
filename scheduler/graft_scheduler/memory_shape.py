"""What an estimate of memory is made of: the model, the job and the backend, as numbers.

The linear layers of a block, and which of them get adapters, are here too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import BranchDtype, Method, Precision
from graft_scheduler.jobs import TrainJob

FLOAT32_BYTES = 4
HALF_BYTES = 2
CPU_TOKENS = 256
"""Computed at once on the CPU: a small model needs a second for them, and a stop must wait as long."""


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

    @property
    def head_learns(self) -> bool:
        return self.is_full and self.job.adapter.layers is None

    @property
    def query_width(self) -> int:
        return self.model.num_heads * self.model.head_dim

    @property
    def kv_width(self) -> int:
        return self.model.num_kv_heads * self.model.head_dim

    @property
    def mlp_width(self) -> int:
        """Units of the MLP that one token passes."""
        return self.model.intermediate_size * self.model.experts_per_token


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a block."""

    name: str
    inputs: int
    outputs: int
    reads: str
    """Layers of a block that have this in common read the same array."""
    copies: int = 1
    """One for each expert."""
    passes: int = 1
    """How many of the copies one token goes through."""

    @property
    def parameters_per_rank(self) -> int:
        return (self.inputs + self.outputs) * self.copies

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.copies


def tokens_at_once(asked: int, backend: Backend) -> int:
    """How many padded tokens the engine computes at once where a job allows `asked`."""
    return min(asked, CPU_TOKENS) if backend is Backend.CPU else asked


def block_linears(shape: Shape) -> list[Linear]:
    """Of a block in Llama's layout, which is taken for all."""
    model = shape.model
    hidden, mlp = model.hidden_size, model.intermediate_size
    copies, passes = model.num_experts, model.experts_per_token
    return [
        Linear("self_attn.q_proj", hidden, shape.query_width, "norm"),
        Linear("self_attn.k_proj", hidden, shape.kv_width, "norm"),
        Linear("self_attn.v_proj", hidden, shape.kv_width, "norm"),
        Linear("self_attn.o_proj", shape.query_width, hidden, "attention"),
        Linear("mlp.gate_proj", hidden, mlp, "mlp norm", copies, passes),
        Linear("mlp.up_proj", hidden, mlp, "mlp norm", copies, passes),
        Linear("mlp.down_proj", mlp, hidden, "mlp", copies, passes),
    ]


def adapted_linears(shape: Shape) -> list[Linear]:
    """The linear layers of a block that get an adapter; an unknown target counts as the widest."""
    linears = block_linears(shape)
    targets = shape.job.adapter.targets
    if targets is None:
        return linears
    chosen = [linear for linear in linears if any(is_target(target, linear.name) for target in targets)]
    unknown = [target for target in targets if not any(is_target(target, linear.name) for linear in linears)]
    widest = max(linears, key=lambda linear: linear.parameters_per_rank)
    return chosen + [replace(widest, reads=target) for target in unknown]


def is_target(target: str, module: str) -> bool:
    """Whether `target`, a name, a path's end or a pattern, means the module at this path in a block."""
    return module == target or module.endswith(f".{target}") or fnmatchcase(module, target)
