"""A finished training job, opened again as it was before its adapter was saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from graft_scheduler.hyperparameters import LossKernel
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Start
from graft_scheduler.states import JobId, Token
from graft_worker.engine.adapters import Parameters, attach
from graft_worker.engine.batches import MicroBatch, build, plan_order
from graft_worker.engine.cutting import Budget, exact_cutter
from graft_worker.engine.dataset import load_dataset
from graft_worker.engine.evaluation import Evaluator
from graft_worker.engine.loading import load_base
from graft_worker.engine.loop import Task
from graft_worker.engine.loss import TokenLoss, find_ending, token_loss
from graft_worker.engine.reports import Reporter
from tests.worker.engine.tiny import RecordingLink

BUDGET = Budget(2048)


@dataclass(frozen=True)
class Reopened:
    """What cutting the ranks is given."""

    task: Task
    parameters: Parameters
    loss: TokenLoss
    evaluator: Evaluator
    reporter: Reporter
    link: RecordingLink

    def evaluate(self, parameters: Parameters) -> float:
        """The validation loss with these adapters."""
        self.task.adapted.put(parameters)
        return self.evaluator().loss


@contextmanager
def reopened(job: TrainJob, output: Path) -> Iterator[Reopened]:
    """`job`, whose adapter lies in `output/adapter`."""
    link = RecordingLink()
    start = Start(job=JobId("job"), token=Token(1), spec=job, work_dir=str(output), deadline=1e12)
    reporter = Reporter(start, link, 0.0)
    base = load_base(job.model, None, job.precision)
    data = load_dataset(job, Path(job.data.source), base, reporter)
    adapted = attach(base.model, job, base.compute_dtype)
    rows = data.train.rows
    order = plan_order([row.width for row in rows], job.batch_rows, None, job.steps, job.seed)
    cutter = exact_cutter(rows, BUDGET, job.compute.batching)
    task = Task(job, adapted, rows, data.valid.rows, order, cutter)
    saved = mx.load(str(output / "adapter" / "adapters.safetensors"))
    assert isinstance(saved, dict)
    parameters = {name: saved[name] for name in adapted.shapes}
    adapted.put(parameters)
    sample = build(rows, MicroBatch(((0,),), rows[0].width, 1, rows[0].targets)).arrays
    with token_loss(adapted, find_ending(adapted, parameters, LossKernel.CHUNKED, sample)) as loss:
        evaluator = Evaluator(base.model, loss.evaluation, data.valid.rows, BUDGET)
        yield Reopened(task, parameters, loss, evaluator, reporter, link)
