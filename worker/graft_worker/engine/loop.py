"""The training loop: one optimizer step after another, with what is due between them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from graft_scheduler.jobs import TrainJob
from graft_scheduler.recovery import CutReport
from graft_scheduler.states import FailureClass, Phase, StopReason
from graft_worker.engine.adapters import Adapted, Parameters
from graft_worker.engine.batches import Batch, RowOrder, build
from graft_worker.engine.below import TRAINING, Reuse
from graft_worker.engine.checkpoints import CheckpointFolder, Snapshot, State
from graft_worker.engine.cutting import Cutter
from graft_worker.engine.device import active_bytes, cache_bytes, peak_bytes
from graft_worker.engine.dropout import micro_batch_key
from graft_worker.engine.evaluation import Evaluator
from graft_worker.engine.gradients import GradientOfSum, StepGradient
from graft_worker.engine.layout import choose_layout
from graft_worker.engine.optimizers import GroupedOptimizer, Update, learning_rate
from graft_worker.engine.reports import Pace, Reporter, Stopped
from graft_worker.engine.rows import TokenRow
from graft_worker.engine.shrinking import cut_report, shrunk
from graft_worker.engine.work import StepSums, Work
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
    cutter: Cutter
    recomputes: bool = False
    """With gradient checkpointing."""

    @property
    def cut(self) -> CutReport:
        """How its steps are cut, and the largest micro-batch that comes of it."""
        return cut_report(self.cutter, self.order, checkpointing=self.recomputes)

    @property
    def evaluate_every(self) -> int:
        return self.spec.evaluation.every or max(1, self.order.steps // DEFAULT_EVALUATIONS)

    @property
    def checkpoint_every(self) -> int:
        return self.spec.checkpoint.every or self.evaluate_every


class Loop:
    """Trains one task from `state` to its last step; can be told to stop between any two micro-batches."""

    def __init__(
        self,
        task: Task,
        checkpoints: CheckpointFolder,
        reporter: Reporter,
        earlier_seconds: float = 0.0,
        pause_step: int | None = None,
    ) -> None:
        self.task = task
        self.state = State()
        self.layout = choose_layout(task.spec, task.adapted.shapes)
        self.work = Work()
        self.first_step_seconds: float | None = None
        """From the job's beginning to the end of this attempt's first step."""
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._kept = self.layout.pack(task.adapted.take())
        mx.eval(self._kept)
        self._optimizer = GroupedOptimizer(task.spec.optimizer, self._kept)
        self._recent: deque[StepSums] = deque(maxlen=SMOOTHED_STEPS)
        self._earlier_seconds = earlier_seconds
        self._pause_step = pause_step
        self._saved_step = 0
        self._is_save_due = False
        self._first_step = 0
        self._began = time.monotonic()
        self.reuse: Reuse | None = None
        """What the frozen blocks make of micro-batches, where it is kept."""

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from `snapshot`.

        Raises:
            ValueError: its arrays are not those of this task.
        """
        self._optimizer.load(snapshot.optimizer)
        ours = self.task.adapted.shapes
        if {name: array.shape for name, array in snapshot.parameters.items()} != ours:
            raise ValueError("its adapters have other shapes than this job's")
        self.state = snapshot.state
        # In the order of the model: the gradient's norm is a sum, and another order rounds otherwise.
        self._kept = self.layout.pack({name: snapshot.parameters[name] for name in ours})
        mx.eval(self._kept)
        self.task.adapted.put(self.parameters)  # the model lets go of those it began with
        self._earlier_seconds = max(self._earlier_seconds, snapshot.state.trained_seconds)
        self._saved_step = self._first_step = snapshot.state.step

    def settle(self) -> None:
        """Make the optimizer's state, so that the first step, and what is tried before it, has it there."""
        mx.eval(self._optimizer.state)

    @property
    def kept(self) -> Parameters:
        """The trainable arrays as they are kept."""
        return self._kept

    @property
    def parameters(self) -> Parameters:
        """The trainable arrays by name, in float32."""
        return self.layout.unpack(self._kept)

    def run(self, gradient: GradientOfSum, evaluator: Evaluator) -> None:
        """Train to the last step, or until the validation loss has not improved for long enough.

        Raises:
            Stopped: the link said so, or the step to pause at is done; nothing of a half-done step remains.
            JobError: the loss is no number any more, or the time is up.
        """
        self._began = time.monotonic()
        update = self._optimizer.updater(self.task.spec.optimizer.max_grad_norm)
        while True:
            self._evaluate_if_due(evaluator)
            self._save_if_due()
            if self.is_finished:
                self._check_trained()
                return
            if self._is_pause_due:
                raise Stopped(StopReason.PAUSE)
            self._check_time()
            self._reporter.check_stop()
            if self._reporter.is_shrink_asked():
                self._shrink(evaluator)
            self._step(gradient, update)

    @property
    def is_finished(self) -> bool:
        return self.state.stopped_early or self.state.step >= self.task.order.steps

    @property
    def _is_pause_due(self) -> bool:
        return self._pause_step is not None and self.state.step >= self._pause_step

    def save(self, *, again: bool = False) -> None:
        """Save a checkpoint; one of this step already, only to be written `again`.

        Raises:
            JobError: the adapters are no numbers any more; class `diverged`.
        """
        if self.state.step == self._saved_step and not again:
            return
        self._check_parameters()
        mx.synchronize()  # Metal may tell late that a step ran out of memory (mlx#3523): before it is kept
        self._advance(trained_seconds=self.trained_seconds())
        folder = self._checkpoints.save(Snapshot(self.state, self.parameters, self._optimizer.dump()))
        self._saved_step = self.state.step
        self._reporter.checkpoint(self.state.step, folder, self.state.loss_here)

    def trained_seconds(self) -> float:
        """Over all attempts, up to now."""
        return self._earlier_seconds + (time.monotonic() - self._began)

    def _evaluate_if_due(self, evaluator: Evaluator) -> None:
        step, steps = self.state.step, self.task.order.steps
        is_due = step % self.task.evaluate_every == 0 or step == steps or self._is_pause_due
        if step == self.state.evaluated_step or not is_due:
            return
        self._reporter.phase(Phase.EVALUATING)
        self.task.adapted.put(self.parameters)
        is_base = step == 0 and self.task.adapted.adds_nothing
        evaluate = evaluator.untrained if is_base else evaluator
        evaluation = evaluate(self._reporter.check_stop)
        if not math.isfinite(evaluation.loss):
            raise self._bad_evaluation(evaluation.loss)
        self._reporter.evaluated(step, evaluation)
        self._keep_loss(evaluation.loss)

    def _keep_loss(self, loss: float) -> None:
        """Note the loss; the best one's state is saved, and enough bad ones in a row end the job."""
        step, best, patience = self.state.step, self.state.best_loss, self.task.spec.evaluation.patience
        self._advance(evaluated_step=step, last_loss=loss)
        if step == 0:
            self._advance(initial_loss=loss)
            return
        reference = self.state.patience_loss
        if reference is None or loss < reference - self.task.spec.evaluation.min_delta:
            self._advance(patience_loss=loss, bad_evaluations=0)
        else:
            self._advance(bad_evaluations=self.state.bad_evaluations + 1)
        if patience is not None and self.state.bad_evaluations >= patience:
            self._advance(stopped_early=True)
        if best is None or loss < best:
            self._advance(best_loss=loss, best_step=step)
            self.save(again=True)

    def _save_if_due(self) -> None:
        """After a skipped step with the next that is not: its state may be why."""
        self._is_save_due |= self.state.step % self.task.checkpoint_every == 0 or self.is_finished
        if self._is_save_due and not self.state.skipped_in_a_row:
            self.save()
            self._is_save_due = False

    def _check_time(self) -> None:
        limit = self.task.spec.limits.seconds
        if limit is not None and self.trained_seconds() >= limit:
            self.save()
            done = f"{self.state.step} of {self.task.order.steps} steps"
            raise JobError(FailureClass.TIMEOUT, f"stopped after {done}: `limits.seconds` is {limit}")

    def _shrink(self, evaluator: Evaluator) -> None:
        """Compute half as much at once from here on: the same steps, cut smaller."""
        if self.reuse is not None:
            self.reuse.give_up()
        mx.clear_cache()
        cutter = shrunk(self.task.cutter, self.task.order)
        if cutter is None:
            self._reporter.log("memory runs short, and rows are computed one at a time already", "warning")
            return
        self.task = replace(self.task, cutter=cutter)
        evaluator.cut(cutter.budget)
        cut = self.task.cut
        text = f"memory runs short: from step {self.state.step + 1} on at most {cut.tokens} tokens at once"
        self._reporter.log(text, "warning")
        self._reporter.shrunk(self.state.step, cut)

    def _step(self, gradient: GradientOfSum, update: Update) -> None:
        self._reporter.phase(Phase.TRAINING)
        began = time.monotonic()
        rate = self._rate()
        step = gradient.of_step(self._kept, self._batches())
        if math.isfinite(step.loss) and math.isfinite(step.norm):
            self._update(update, step, rate)
        else:
            self._skip(step)
        sums = StepSums(
            step.loss, step.tokens, step.read_tokens, step.computed_tokens, time.monotonic() - began
        )
        self._count(sums)
        self._report(rate, step.norm)

    def _batches(self) -> Iterator[tuple[Batch, mx.array]]:
        """The micro-batches of the next step with their keys; stops in between when told to."""
        rows = self.task.order.at(self.state.step)
        for place, micro_batch in enumerate(self.task.cutter.cut(rows)):
            self._reporter.check_stop()
            key = micro_batch_key(self.task.spec.seed, self.state.step, place)
            batch = build(self.task.train_rows, micro_batch)
            yield batch if self.reuse is None else self.reuse.extend(TRAINING, micro_batch, batch), key

    def _update(self, update: Update, step: StepGradient, rate: float) -> None:
        numbers = (mx.array(float(number)) for number in (step.tokens, step.norm, rate))
        self._kept = update(step.total, self._kept, *numbers)
        mx.eval(self._kept, self._optimizer.state)
        self._advance(tokens=self.state.tokens + step.tokens, skipped_in_a_row=0)

    def _skip(self, step: StepGradient) -> None:
        """Leave the parameters as they are; too often in a row, and the job has diverged."""
        in_a_row, limit = self.state.skipped_in_a_row + 1, self.task.spec.optimizer.max_skipped_steps
        what = f"loss {step.mean_loss:g} and gradient norm {step.norm:g}"
        if in_a_row >= limit:
            text = f"{what} in step {self.state.step + 1}, and no number {limit} times in a row"
            raise self._diverged(text)
        self._reporter.log(f"step {self.state.step + 1} was skipped: {what}", "warning")
        self._advance(skipped_in_a_row=in_a_row, skipped_steps=self.state.skipped_steps + 1)

    def _count(self, sums: StepSums) -> None:
        if math.isfinite(sums.loss):
            self._recent.append(sums)
        self.work.add(sums)
        if self.first_step_seconds is None:
            self.first_step_seconds = self._reporter.seconds()
        self._advance(step=self.state.step + 1)

    def _report(self, rate: float, norm: float) -> None:
        step, steps = self.state.step, self.task.order.steps
        if not self._recent or not self._reporter.is_progress_due(last=step == steps):
            return
        recent = Work()
        for sums in self._recent:
            recent.add(sums)
        per_step = (time.monotonic() - self._began) / (step - self._first_step)
        pace = Pace(
            loss=sum(sums.loss for sums in self._recent) / recent.tokens,
            learning_rate=rate,
            gradient_norm=norm if math.isfinite(norm) else None,
            tokens_per_second=recent.tokens / recent.seconds,
            padding_share=recent.padding_share,
            memory_bytes=active_bytes(),
            cache_bytes=cache_bytes(),
            peak_bytes=peak_bytes(),
            seconds_left=per_step * (steps - step),
            trained_seconds=self.trained_seconds(),
        )
        self._reporter.progress(step, steps, pace)

    def _rate(self) -> float:
        peak = self.task.spec.learning_rate
        return learning_rate(self.task.spec.schedule, peak, self.state.step, self.task.order.steps)

    def _check_parameters(self) -> None:
        finite = mx.stack([mx.isfinite(value).all() for value in self._kept.values()]).all()
        if not finite.item():
            raise self._diverged(f"the adapters after step {self.state.step} are no numbers")

    def _check_trained(self) -> None:
        if self.state.skipped_steps >= self.state.step > 0:
            raise self._diverged(f"all {self.state.step} steps were skipped, and nothing was trained")

    def _bad_evaluation(self, loss: float) -> JobError:
        if self.state.step == 0:
            text = f"the base gives a validation loss of {loss:g} before any training"
            return JobError(FailureClass.CONFIG, f"{text}: its weights or the `precision` are bad")
        return self._diverged(f"the validation loss after step {self.state.step} is {loss:g}")

    def _diverged(self, what: str) -> JobError:
        kept = (
            f"the last good checkpoint is of step {self._saved_step}" if self._saved_step else "no checkpoint"
        )
        text = f"{what}; {kept}. Try a lower `optimizer.learning_rate`"
        return JobError(FailureClass.DIVERGED, text)

    def _advance(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)
