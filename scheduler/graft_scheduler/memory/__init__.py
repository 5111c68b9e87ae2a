"""How much memory a job needs at its peak, from the model's shape and the job alone.

Nothing is loaded and nothing measured: the graph that MLX would evaluate is built without numbers
and evaluated without numbers, in MLX's order, and the account of what is held meanwhile is the estimate.
"""

from graft_scheduler.memory.estimate import (
    CAUSES,
    MemoryEstimate,
    cache_in,
    estimate_micro_batch,
    estimate_peak,
    trained_bytes,
)
from graft_scheduler.memory.shape import Backend, is_target
from graft_scheduler.memory.size import format_bytes

__all__ = [
    "CAUSES",
    "Backend",
    "MemoryEstimate",
    "cache_in",
    "estimate_micro_batch",
    "estimate_peak",
    "format_bytes",
    "is_target",
    "trained_bytes",
]
