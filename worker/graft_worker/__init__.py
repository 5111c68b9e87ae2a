"""What runs on a Mac: worker, supervisor, runner, engine; and training in this process.

`train` takes a job, `MLXTrainer` a few settings, `fuse` makes a model of an adapter; none imports MLX
before it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graft_scheduler.messages import TrainResult
from graft_worker.exporting import fuse
from graft_worker.local import train

if TYPE_CHECKING:
    from graft_worker.trainer import MLXTrainer, TrainingConfig

__all__ = ["MLXTrainer", "TrainResult", "TrainingConfig", "fuse", "train"]


def __getattr__(name: str) -> Any:
    """Import the trainer at its first use: no runner or worker needs it."""
    if name not in {"MLXTrainer", "TrainingConfig"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from graft_worker import trainer

    return getattr(trainer, name)
