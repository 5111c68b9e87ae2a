"""What runs on a Mac: worker, supervisor, runner, engine; and `train`, which needs none but the last."""

from graft_worker.local import train

__all__ = ["train"]
