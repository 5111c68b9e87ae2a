"""What runs on a Mac: worker, supervisor, runner, engine; and training in this process.

`train` takes a job, `MLXTrainer` a few settings; neither imports MLX before it trains.
"""

from graft_scheduler.messages import TrainResult
from graft_worker.local import train
from graft_worker.trainer import MLXTrainer, TrainingConfig

__all__ = ["MLXTrainer", "TrainResult", "TrainingConfig", "train"]
