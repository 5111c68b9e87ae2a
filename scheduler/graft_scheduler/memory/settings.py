"""From a job, its model and a backend to how the graph is built and how MLX walks through it."""

from __future__ import annotations

from graft_scheduler.hyperparameters import Method
from graft_scheduler.memory.layers import Mode
from graft_scheduler.memory.liveness import Queue
from graft_scheduler.memory.moments import Setting
from graft_scheduler.memory.resident import quantised_to
from graft_scheduler.memory.shape import Backend, Shape, is_target

MIB = 1 << 20
WAITING_BYTES = {Backend.METAL: 512 * MIB, Backend.CUDA: 2048 * MIB}
"""What a GPU may have waiting to be given back, beside what it computes with. With 512 MB an H100
takes a quarter longer than unbounded, when it holds half as much again."""
QUEUES: dict[Backend, Queue] = {
    # Every primitive is one step and its release another; ten steps are a task (backend/cpu/encoder.h),
    # ten tasks may be unfinished, and of the one that is being filled half counts: where a task ends
    # depends on all that came before, and a larger job must not take less for that.
    Backend.CPU: Queue(lag=105, steps_per_primitive=2, steps_per_view=1),
    # A GPU lags behind by hundreds of primitives, and MLX would hold gigabytes for them; the engine sets
    # MLX's limit so that it waits when more than this lies there. Not measured on Metal.
    Backend.METAL: Queue(lag=525, most_bytes=WAITING_BYTES[Backend.METAL]),
    Backend.CUDA: Queue(lag=210, most_bytes=WAITING_BYTES[Backend.CUDA]),
}
METAL_ATTENTION_DIMS = frozenset({64, 80, 96, 128})
"""Head widths whose attention has a fused gradient on Metal since MLX 0.32.4; not measured here."""
CUDA_ATTENTION_DIMS = frozenset(range(8, 129, 8))
"""Those that cuDNN serves, in 16 bits."""

PATHS: dict[str, str] = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "qkv_proj": "self_attn.qkv_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "gate_up_proj": "mlp.gate_up_proj",
    "gate": "mlp.gate",
    "experts.gate_proj": "mlp.switch_mlp.gate_proj",
    "experts.up_proj": "mlp.switch_mlp.up_proj",
    "experts.down_proj": "mlp.switch_mlp.down_proj",
}
"""Our names of a block's linear layers by mlx-lm's usual paths."""


def setting_of(shape: Shape) -> Setting:
    """What decides a job's graphs, apart from the micro-batch."""
    job, model = shape.job, shape.model
    is_quantised = model.quantization is not None or quantised_to(shape) is not None
    mode = Mode(
        itemsize=shape.item_bytes,
        branch=shape.computed_bytes,
        is_fused=shape.backend is not Backend.CPU,
        fused_attention_dims=_fused_dims(shape),
        quantised=is_quantised,
        learns_base=shape.is_full,
        learns_ends=shape.is_full and shape.trained_layers == model.num_layers,
        dropout=bool(job.adapter.dropout),
        dora=job.method is Method.DORA,
        dequantises=shape.backend is Backend.CUDA,
        adds_masks=shape.backend is Backend.CUDA,
    )
    return Setting(
        model.anatomy,
        mode,
        0 if shape.is_full else job.adapter.trained_rank,
        _targets(job.adapter.targets),
        shape.trained_layers,
        QUEUES[shape.backend],
        job.optimizer.name,
    )


def _fused_dims(shape: Shape) -> frozenset[int]:
    match shape.backend:
        case Backend.METAL:
            return METAL_ATTENTION_DIMS
        case Backend.CUDA if shape.item_bytes == 2:
            return CUDA_ATTENTION_DIMS
        case _:
            return frozenset()


def _targets(asked: tuple[str, ...] | None) -> frozenset[str] | None:
    """Our names of the layers that get adapters; all where one that is asked for is not known here."""
    if asked is None:
        return None
    chosen = {name for name, path in PATHS.items() if any(is_target(target, path) for target in asked)}
    known = all(any(is_target(target, path) for path in PATHS.values()) for target in asked)
    return frozenset(chosen) if known else None
