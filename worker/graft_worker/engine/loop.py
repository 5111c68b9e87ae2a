"""The training loop: one optimizer step after another, with what is due between them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx.optimizers import Optimizer

from graft_scheduler.jobs import TrainJob
from graft_scheduler.states import FailureClass, Phase
from graft_worker.engine.adapters import Adapted, Parameters
from graft_worker.engine.batches import Batch, RowOrder, build, cut
from graft_worker.engine.checkpoints import CheckpointFolder, Snapshot, State
from graft_worker.engine.device import active_bytes, budget_here, peak_bytes
from graft_worker.engine.dropout import micro_batch_key
from graft_worker.engine.evaluation import evaluate
from graft_worker.engine.loss import GradientOfSum, norm, step_gradient
from graft_worker.engine.optimizers import (
    build_optimizer,
    clip,
    dump_state,
    learning_rate,
    load_state,
)
from graft_worker.engine.reports import Pace, Reporter, process_seconds
from graft_worker.engine.rows import TokenRow
from graft_worker.link import JobError

SMOOTHED_STEPS = 8
"""The loss and the speed in reports of progress are those of the last steps, this many."""
DEFAULT_EVALUATIONS = 10
"""How often a job evaluates when it does not say, besides the first time."""


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that is trained, and on what."""

    spec: TrainJob
    adapted: Adapted
    train_rows: Sequence[TokenRow]
    valid_rows: Sequence[TokenRow]
    order: RowOrder

    @property
    def evaluate_every(self) -> int:
        return self.spec.evaluation.every or max(1, self.order.steps // DEFAULT_EVALUATIONS)

    @property
    def checkpoint_every(self) -> int:
        return self.spec.checkpoint.every or self.evaluate_every


@dataclass(frozen=True, slots=True)
class StepSums:
    """What reports need of one optimizer step; the loss is a sum over its learned tokens."""

    loss: float
    tokens: int
    seconds: float


class Loop:
    """Trains one task from `state` to its last step; can be told to stop between any two micro-batches."""

    def __init__(
        self, task: Task, checkpoints: CheckpointFolder, reporter: Reporter, earlier_seconds: float = 0.0
    ) -> None:
        self.task = task
        self.state = State()
        self.parameters: Parameters = task.adapted.parameters()
        self.first_step_seconds: float | None = None
        self.step_seconds = 0.0
        """Spent in the optimizer steps of this attempt."""
        self.step_tokens = 0
        """Learned in the optimizer steps of this attempt."""
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._optimizer: Optimizer = build_optimizer(task.spec.optimizer, self.parameters)
        self._gradient = GradientOfSum(task.adapted)
        self._widths = [row.width for row in task.train_rows]
        self._budget = budget_here(task.spec.micro_batch_tokens)
        self._recent: deque[StepSums] = deque(maxlen=SMOOTHED_STEPS)
        self._earlier_seconds = earlier_seconds
        self._saved_step = 0
        self._first_step = 0
        self._began = time.monotonic()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from `snapshot`.

        Raises:
            ValueError: its arrays are not those of this task.
        """
        load_state(self._optimizer, snapshot.optimizer)
        ours = {name: array.shape for name, array in self.parameters.items()}
        if {name: array.shape for name, array in snapshot.parameters.items()} != ours:
            raise ValueError("its adapters have other shapes than this job's")
        self.state = snapshot.state
        # In the order of the model: the gradient's norm is a sum, and another order rounds otherwise.
        self.parameters = {name: snapshot.parameters[name] for name in self.parameters}
        self.task.adapted.put(self.parameters)
        self._earlier_seconds = max(self._earlier_seconds, snapshot.state.trained_seconds)
        self._saved_step = self._first_step = snapshot.state.step

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Stopped: the link said so; nothing of a half-done step remains.
            JobError: the loss is no number any more, or the time is up.
        """
        self._began = time.monotonic()
        self.task.adapted.model.train()
        while True:
            self._evaluate_if_due()
            self._save_if_due()
            if self.state.step >= self.task.order.steps:
                return
            self._check_time()
            self._reporter.check_stop()
            self._step()

    def save(self) -> None:
        """Save a checkpoint, unless nothing was trained since the last one.

        Raises:
            JobError: the adapters are no numbers any more; class `diverged`.
        """
        if self.state.step == self._saved_step:
            return
        self._check_parameters()
        self._advance(trained_seconds=self.trained_seconds())
        folder = self._checkpoints.save(Snapshot(self.state, self.parameters, dump_state(self._optimizer)))
        self._saved_step = self.state.step
        self._reporter.checkpoint(self.state.step, folder)

    def trained_seconds(self) -> float:
        """Over all attempts, up to now."""
        return self._earlier_seconds + (time.monotonic() - self._began)

    def _evaluate_if_due(self) -> None:
        step, steps = self.state.step, self.task.order.steps
        if step == self.state.evaluated_step or (step % self.task.evaluate_every and step != steps):
            return
        self._reporter.phase(Phase.EVALUATING)
        evaluation = evaluate(
            self.task.adapted.model,
            self.task.valid_rows,
            self._budget,
            self._reporter.check_stop,
        )
        if not math.isfinite(evaluation.loss):
            raise self._diverged(f"the validation loss after step {step} is {evaluation.loss}")
        self._reporter.evaluated(step, evaluation)
        self._keep_loss(evaluation.loss)

    def _keep_loss(self, loss: float) -> None:
        step, best = self.state.step, self.state.best_loss
        self._advance(evaluated_step=step, last_loss=loss)
        if step == 0:
            self._advance(initial_loss=loss)
        elif best is None or loss < best:
            self._advance(best_loss=loss, best_step=step)

    def _save_if_due(self) -> None:
        step = self.state.step
        if step % self.task.checkpoint_every == 0 or step == self.task.order.steps:
            self.save()

    def _check_time(self) -> None:
        limit = self.task.spec.limits.seconds
        if limit is not None and self.trained_seconds() >= limit:
            self.save()
            done = f"{self.state.step} of {self.task.order.steps} steps"
            raise JobError(FailureClass.TIMEOUT, f"stopped after {done}: `limits.seconds` is {limit}")

    def _step(self) -> None:
        self._reporter.phase(Phase.TRAINING)
        began = time.monotonic()
        rate = self._rate()
        step = step_gradient(self._gradient, self.parameters, self._batches())
        length = norm(step.gradient)
        if not (math.isfinite(step.loss) and math.isfinite(length)):
            loss = step.loss / step.tokens
            text = f"in step {self.state.step + 1} the loss is {loss:g} and the gradient's norm {length:g}"
            raise self._diverged(text)
        self._update(clip(step.gradient, length, self.task.spec.optimizer.max_grad_norm), rate)
        self._count(StepSums(step.loss, step.tokens, time.monotonic() - began))
        self._report(rate)

    def _batches(self) -> Iterator[tuple[Batch, mx.array]]:
        """The micro-batches of the next step with their keys; stops in between when told to."""
        rows = self.task.order.at(self.state.step)
        for place, micro_batch in enumerate(cut(self._widths, rows, self._budget)):
            self._reporter.check_stop()
            key = micro_batch_key(self.task.spec.seed, self.state.step, place)
            yield build(self.task.train_rows, micro_batch), key

    def _update(self, gradient: Parameters, rate: float) -> None:
        self._optimizer.learning_rate = mx.array(rate, dtype=mx.float32)
        self.parameters = self._optimizer.apply_gradients(gradient, self.parameters)
        mx.eval(self.parameters, self._optimizer.state)
        self.task.adapted.put(self.parameters)

    def _count(self, sums: StepSums) -> None:
        self._recent.append(sums)
        self.step_seconds += sums.seconds
        self.step_tokens += sums.tokens
        self._advance(step=self.state.step + 1, tokens=self.state.tokens + sums.tokens)
        if self.first_step_seconds is None:
            self.first_step_seconds = process_seconds()

    def _report(self, rate: float) -> None:
        step, steps = self.state.step, self.task.order.steps
        if not self._reporter.is_progress_due(last=step == steps):
            return
        tokens = sum(sums.tokens for sums in self._recent)
        seconds = sum(sums.seconds for sums in self._recent)
        per_step = (time.monotonic() - self._began) / (step - self._first_step)
        pace = Pace(
            loss=sum(sums.loss for sums in self._recent) / tokens,
            learning_rate=rate,
            tokens_per_second=tokens / seconds,
            memory_bytes=active_bytes(),
            peak_bytes=peak_bytes(),
            seconds_left=per_step * (steps - step),
            trained_seconds=self.trained_seconds(),
        )
        self._reporter.progress(step, steps, pace)

    def _rate(self) -> float:
        peak = self.task.spec.optimizer.learning_rate
        return learning_rate(self.task.spec.schedule, peak, self.state.step, self.task.order.steps)

    def _check_parameters(self) -> None:
        finite = mx.stack([mx.isfinite(value).all() for value in self.parameters.values()]).all()
        if not finite.item():
            raise self._diverged(f"the adapters after step {self.state.step} are no numbers")

    def _diverged(self, what: str) -> JobError:
        kept = (
            f"the last good checkpoint is of step {self._saved_step}" if self._saved_step else "no checkpoint"
        )
        text = f"{what}; {kept}. Try a lower `optimizer.learning_rate`"
        return JobError(FailureClass.DIVERGED, text)

    def _advance(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
