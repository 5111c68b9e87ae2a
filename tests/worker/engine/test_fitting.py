"""How a step is cut on a host: by the estimate, by what was tried, and without changing what is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from graft_scheduler import planning
from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import Precision
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, MemoryEstimate, estimate, estimate_micro_batch, estimate_peak
from graft_scheduler.messages import Done, Log, Start, TrainResult
from graft_scheduler.planning import StepCut, fastest_cut, smallest_cut
from graft_worker.engine import fitting
from graft_worker.engine.fitting import Allowance, Fitted, Probed, correct, fit, refit
from graft_worker.engine.loading import Base, load_base
from graft_worker.engine.rows import TokenRow
from graft_worker.engine.scalars import as_float
from graft_worker.engine.training import train
from tests.worker.engine.tiny import RecordingLink, make_model, make_tokenizer, write_rows

LENGTH = 81
"""Of every row, so that three of them are computed at once on the CPU."""
SIZES = {
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose activations are most of what it needs."""
    folder = tmp_path_factory.mktemp("deep")
    make_tokenizer(folder)
    make_model(folder, **SIZES)
    return folder


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("even")
    texts = ["abcdefgh" * 12, "hgfedcba" * 12, "aabbccdd" * 12, "dcbahgfe" * 12]
    write_rows(folder / "train.jsonl", [{"text": text} for text in texts * 4])
    write_rows(folder / "valid.jsonl", [{"text": "abcddcba" * 12}])
    return folder


@pytest.fixture
def job(make_job: Callable[..., TrainJob], deep: Path, even: Path) -> TrainJob:
    return make_job(
        model=str(deep),
        data=str(even),
        batch_size=6,
        steps=3,
        max_length=LENGTH,
        micro_batch_tokens=None,
        gradient_checkpointing=None,
        evaluation={"rows": 1},
    )


@pytest.fixture(scope="module")
def base(deep: Path) -> Base:
    return load_base(TrainJob.model_validate({"model": str(deep), "data": "d"}).model, deep, Precision.AUTO)


ROWS = [TokenRow(np.arange(LENGTH, dtype=np.int32) % np.int32(200), np.ones(LENGTH, dtype=np.bool_))] * 16


def fitted(job: TrainJob, base: Base, budget_bytes: int, rows: Sequence[TokenRow] = ROWS) -> Fitted:
    return fit(job, base, rows, Allowance(budget_bytes))


def budgets(job: TrainJob, base: Base) -> tuple[int, int]:
    """What the smallest cut needs, and the fastest."""
    question = fitted(job, base, 1 << 40).question
    assert question is not None
    fastest = fastest_cut(question)
    assert fastest is not None
    return smallest_cut(question).peak_bytes, fastest.peak_bytes


# --- the plan


def test_enough_memory_computes_as_much_at_once_as_is_of_use(job: TrainJob, base: Base) -> None:
    found = fitted(job, base, 1 << 40)

    assert found.cut == StepCut(256, gradient_checkpointing=False)
    assert not found.is_tight


def test_a_plan_fits_its_budget_and_grows_with_it(job: TrainJob, base: Base) -> None:
    least, most = budgets(job, base)
    steps = [least + (most - least) * share // 8 for share in range(9)]

    found = [fitted(job, base, budget) for budget in steps]

    assert all(one.plan and one.plan.peak_bytes <= one.budget_bytes for one in found)
    assert not any(one.is_tight for one in found)
    times = [one.plan.relative_time for one in found if one.plan]
    assert times == sorted(times, reverse=True)
    assert found[0].cut.gradient_checkpointing
    assert found[-1].cut == StepCut(256, gradient_checkpointing=False)
    assert len({one.cut for one in found}) >= 3


def test_less_is_computed_at_once_before_anything_is_computed_twice(job: TrainJob, base: Base) -> None:
    _, most = budgets(job, base)

    found = fitted(job, base, most - (1 << 20))

    assert found.cut.micro_batch_tokens < 256
    assert not found.cut.gradient_checkpointing


def test_too_small_a_budget_gets_the_smallest_cut_and_says_so(job: TrainJob, base: Base) -> None:
    least, _ = budgets(job, base)

    found = fitted(job, base, least - 1)

    assert found.is_tight
    assert found.cut == StepCut(LENGTH, gradient_checkpointing=True)
    assert "no cut is smaller" in fitting.describe(found)


def test_what_a_job_asks_for_is_not_planned_away(job: TrainJob, base: Base) -> None:
    asked = job.model_copy(update={"micro_batch_tokens": 200, "gradient_checkpointing": False})

    assert fitted(asked, base, 1 << 20).cut == StepCut(200, gradient_checkpointing=False)


def test_what_earlier_attempts_taught_binds_the_plan(job: TrainJob, base: Base) -> None:
    learned = Allowance(1 << 40, most_tokens=100, must_recompute=True)

    assert fit(job, base, ROWS, learned).cut == StepCut(100, gradient_checkpointing=True)


def test_jobs_that_took_more_than_was_estimated_make_the_next_plan_smaller(job: TrainJob, base: Base) -> None:
    _, most = budgets(job, base)

    assert fit(job, base, ROWS, Allowance(most, factor=1.0)).cut == StepCut(256, gradient_checkpointing=False)
    assert fit(job, base, ROWS, Allowance(most, factor=1.3)).cut.micro_batch_tokens < 256


# --- the second plan


def test_a_small_gradient_does_not_hide_what_the_trial_does_not_reach(job: TrainJob, base: Base) -> None:
    first = fitted(job, base, 1 << 30)
    assert first.plan is not None

    tried = correct(first, gradient_bytes=1, evaluation_bytes=1, rows=1, width=10, held=1)

    assert tried.probed is not None
    assert tried.probed.corrected_bytes == first.plan.estimate.untried_bytes > 0


def test_a_plan_that_was_right_is_kept(job: TrainJob, base: Base) -> None:
    first = fitted(job, base, 1 << 30)

    assert refit(replace(first, probed=Probed(100, 100, 1 << 30))) is None
    assert refit(first) is None


def test_a_plan_that_was_too_low_is_made_again_with_what_was_measured(job: TrainJob, base: Base) -> None:
    _, most = budgets(job, base)
    first = fitted(job, base, most)

    again = refit(replace(first, probed=Probed(150, 100, most + (1 << 30))))

    assert again is not None
    assert again.plan is not None
    assert first.plan is not None
    assert again.cut != first.cut
    assert again.plan.relative_time > first.plan.relative_time
    assert again.plan.peak_bytes == round(again.plan.estimate.total_bytes * 1.5)


def run(
    make_start: Callable[..., Start], job: TrainJob, budget_bytes: int, name: str
) -> tuple[Done, TrainResult, list[str]]:
    link = RecordingLink()
    done = train(make_start(job, name, budget_bytes=budget_bytes), link)
    assert done.result is not None
    return done, done.result, [message.text for message in link.of(Log)]


def test_an_estimate_that_is_three_times_too_low_is_found_out_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, make_start: Callable[..., Start], job: TrainJob, base: Base
) -> None:
    monkeypatch.setattr(estimate, "MIN_CACHE_BYTES", 0)  # it is most of what so small a job needs
    _, most = budgets(job, base)
    plan = fitted(job, base, most).plan
    assert plan is not None
    enough_by_a_low_estimate = plan.estimate.peak_bytes * 8 // 10

    def too_low(
        model: BaseModel, job: TrainJob, longest: int, backend: Backend, shortest: int
    ) -> MemoryEstimate:
        found = estimate_peak(model, job, longest, backend, shortest)
        return replace(found, parts={cause: size // 3 for cause, size in found.parts.items()})

    def micro_batch_too_low(*args: Any) -> int:
        return estimate_micro_batch(*args) // 3

    monkeypatch.setattr(planning, "estimate_peak", too_low)
    monkeypatch.setattr(fitting, "estimate_micro_batch", micro_batch_too_low)
    _, result, lines = run(make_start, job, enough_by_a_low_estimate, "low")

    first = [line for line in lines if "; it took " in line]
    assert len(first) == 1
    assert first[0].startswith("at most 256 tokens are computed at once, without gradient checkpointing")
    cut = result.facts["cut"]
    assert (cut["micro_batch_tokens"], cut["gradient_checkpointing"]) != (256, False)


# --- what is learned


def gradient(done: Done) -> mx.array:
    """What one step of plain descent at a rate of 1 made of the B matrices, which start at 0."""
    assert done.output_dir is not None
    arrays = mx.load(str(Path(done.output_dir) / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    return mx.concatenate([arrays[name].reshape(-1) for name in sorted(arrays) if name.endswith("lora_b")])


def test_the_gradient_of_a_step_is_the_same_whatever_the_budget(
    make_start: Callable[..., Start], job: TrainJob, base: Base
) -> None:
    least, most = budgets(job, base)
    descent = {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "max_grad_norm": None}
    once = job.model_validate(
        {**job.model_dump(), "steps": 1, "optimizer": descent, "schedule": {"warmup": 0.0}}
    )
    shares = [least + (most - least) * share // 2 for share in range(3)]

    runs = [run(make_start, once, budget, f"once-{budget}") for budget in [*shares, 1 << 30]]

    cuts = {
        (result.facts["cut"]["micro_batch_tokens"], result.facts["cut"]["gradient_checkpointing"])
        for _, result, _ in runs
    }
    gradients = [gradient(done) for done, _, _ in runs]
    length = mx.linalg.norm(gradients[-1])
    assert len(cuts) >= 3
    assert as_float(length) > 0
    for one in gradients:
        assert as_float(mx.linalg.norm(one - gradients[-1]) / length) <= 1e-5


def test_the_validation_loss_is_the_same_whatever_the_budget(
    make_start: Callable[..., Start], job: TrainJob, base: Base
) -> None:
    least, _ = budgets(job, base)

    results = [run(make_start, job, budget, f"whole-{budget}")[1] for budget in (least, 1 << 30)]

    losses = [result.final_loss for result in results]
    assert losses[0] is not None
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert results[0].facts["cut"]["gradient_checkpointing"]
    assert not results[-1].facts["cut"]["gradient_checkpointing"]
