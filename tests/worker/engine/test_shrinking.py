"""Computing less at once: smaller micro-batches down to single rows, and the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.hyperparameters import Batching
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Checkpoint, Done, Log, Planned, Progress, RunnerMessage, Shrunk, Start
from graft_scheduler.recovery import CutReport, MemoryLimit, smaller
from graft_scheduler.states import FailureClass
from graft_worker.engine.batches import plan_order
from graft_worker.engine.cutting import Budget, plan_cutter
from graft_worker.engine.gradients import GradientOfSum, StepGradient
from graft_worker.engine.shrinking import cut_report, shrunk
from graft_worker.engine.training import train
from graft_worker.link import JobError
from tests.worker.engine.test_cutting import make_rows
from tests.worker.engine.tiny import RecordingLink

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]


def final_loss(done: Done) -> float:
    assert done.result is not None
    assert done.result.final_loss is not None
    return done.result.final_loss


def shrink_at(*steps: int) -> RecordingLink:
    """Asks to shrink once these steps are reported."""

    def is_asked(message: RunnerMessage) -> bool:
        return isinstance(message, Progress) and message.step in steps

    return RecordingLink(shrink_when=is_asked)


@settings(deadline=None, max_examples=50)
@given(
    widths=st.lists(st.integers(1, 600), min_size=1, max_size=60),
    tokens=st.integers(1, 8000),
    batching=st.sampled_from(Batching),
    batch_size=st.integers(1, 16),
    compiled=st.booleans(),
)
def test_shrinking_halves_what_is_computed_at_once_until_rows_are_alone(
    widths: list[int], tokens: int, batching: Batching, batch_size: int, compiled: bool
) -> None:
    rows = make_rows(widths)
    order = plan_order(widths, batch_size, 1.0, None, 0)
    budget = Budget(tokens, width_multiple=32 if compiled else 1)
    cutter = plan_cutter(rows, order, budget, batching, compiled=compiled)
    longest = budget.padded(max(widths))

    shrinks = 0
    while (half := shrunk(cutter, order)) is not None:
        before = cut_report(cutter, order, checkpointing=False).tokens
        cut = cut_report(half, order, checkpointing=False)
        assert cut.tokens <= max(longest, before // 2)
        computed = [
            row
            for step in range(order.steps)
            for one in half.cut(order.at(step))
            for line in one.lines
            for row in line
        ]
        assert sorted(computed) == list(range(len(widths)))
        cutter, shrinks = half, shrinks + 1
        assert shrinks < 20

    assert cut_report(cutter, order, checkpointing=False).tokens == longest


def test_a_job_that_is_shrunk_on_the_way_learns_the_same(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job(steps=6, batch_size=8, evaluation={"every": 3})
    undisturbed = train(make_start(job, "a"), RecordingLink())
    link = shrink_at(1, 6)

    done = train(make_start(job, "b"), link)

    assert final_loss(done) == pytest.approx(final_loss(undisturbed), abs=1e-5)
    (told,) = link.of(Shrunk)
    before = CutReport.model_validate(link.of(Planned)[0].facts["cut"])
    assert told.cut.tokens <= before.tokens // 2
    assert done.result is not None
    assert done.result.facts["cut"] == told.cut.model_dump()


def test_a_job_that_computes_single_rows_says_that_it_cannot_shrink(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    link = shrink_at(1)

    train(make_start(make_job(micro_batch_tokens=1, steps=2)), link)

    assert not link.of(Shrunk)
    assert any("one at a time already" in log.text for log in link.of(Log))


def test_a_learned_limit_is_obeyed_and_told_and_changes_nothing(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job(steps=4, batch_size=8)
    undisturbed = train(make_start(job, "a"), RecordingLink())
    limit = MemoryLimit(micro_batch_tokens=20, gradient_checkpointing=True, failures=1)
    link = RecordingLink()

    done = train(make_start(job, "b").model_copy(update={"memory_limit": limit}), link)

    cut = CutReport.model_validate(link.of(Planned)[0].facts["cut"])
    assert (cut.micro_batch_tokens, cut.gradient_checkpointing) == (20, True)
    assert final_loss(done) == pytest.approx(final_loss(undisturbed), abs=1e-5)
    assert done.result is not None
    assert done.result.facts["memory_limit"] == limit.model_dump(mode="json")


def test_progress_tells_what_mlx_keeps_in_freed_buffers(make_job: MakeJob, make_start: MakeStart) -> None:
    link = RecordingLink()

    train(make_start(make_job(steps=3)), link)

    assert all(one.cache_bytes is not None and one.cache_bytes >= 0 for one in link.of(Progress))


def test_nothing_of_a_step_that_ran_out_of_memory_is_kept_and_the_next_attempt_ends_alike(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(steps=5, batch_size=8, checkpoint={"every": 1})
    undisturbed = train(make_start(job, "a"), RecordingLink())
    of_step, steps = GradientOfSum.of_step, iter(range(1, 100))

    def fails_in_step_three(self: GradientOfSum, *arguments: Any) -> StepGradient:
        if next(steps) == 3:
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)")
        return of_step(self, *arguments)

    link = RecordingLink()
    with monkeypatch.context() as patch:
        patch.setattr(GradientOfSum, "of_step", fails_in_step_three)
        with pytest.raises(JobError) as error:
            train(make_start(job, "b"), link)
    *_, newest = link.of(Checkpoint)
    cut = CutReport.model_validate(link.of(Planned)[0].facts["cut"])
    start = make_start(job, "c", resume_dir=newest.path, memory_limit=smaller(MemoryLimit(), cut))
    done = train(start, RecordingLink())

    assert error.value.failure is FailureClass.MEMORY
    assert [checkpoint.step for checkpoint in link.of(Checkpoint)] == [1, 2]
    assert final_loss(done) == pytest.approx(final_loss(undisturbed), abs=1e-5)
