"""A training job from start to result: what it learns, says, and refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from graft_scheduler.jobs import CountJob, TrainJob
from graft_scheduler.memory import cache_in
from graft_scheduler.messages import (
    Checkpoint,
    Done,
    Evaluated,
    Log,
    PhaseChanged,
    Planned,
    Progress,
    Ready,
    RunnerMessage,
    Start,
)
from graft_scheduler.states import FailureClass, Phase, StopReason
from graft_worker.engine import device
from graft_worker.engine.gradients import norm
from graft_worker.engine.scalars import as_float
from graft_worker.engine.training import train
from graft_worker.link import JobError
from tests.worker.engine.tiny import (
    CHAT_TEMPLATE,
    RecordingLink,
    make_model,
    make_tokenizer,
    text_rows,
    write_rows,
)

MakeJob = Callable[..., TrainJob]
MakeStart = Callable[..., Start]


def weights_of(done: Done) -> dict[str, mx.array]:
    assert done.output_dir is not None
    arrays = mx.load(f"{done.output_dir}/adapters.safetensors")
    assert isinstance(arrays, dict)
    return arrays


def largest_difference(one: Done, other: Done) -> float:
    first, second = weights_of(one), weights_of(other)
    return max(as_float(mx.abs(first[name] - second[name]).max()) for name in first)


def refusal(start: Start) -> JobError:
    with pytest.raises(JobError) as error:
        train(start, RecordingLink())
    return error.value


def test_the_loss_goes_down(make_job: MakeJob, make_start: MakeStart) -> None:
    done = train(make_start(make_job(steps=30)), RecordingLink())

    result = done.result
    assert result is not None
    assert result.initial_loss is not None
    assert result.final_loss is not None
    assert result.final_loss < result.initial_loss - 1.0
    assert result.best_loss == pytest.approx(result.final_loss, abs=0.2)
    assert result.perplexity == pytest.approx(math.exp(result.final_loss))


def test_a_job_tells_what_it_does(make_job: MakeJob, make_start: MakeStart) -> None:
    link = RecordingLink()

    done = train(make_start(make_job()), link)

    phases = [message.phase for message in link.of(PhaseChanged)]
    assert phases[:3] == [Phase.PREPARING, Phase.EVALUATING, Phase.TRAINING]
    assert phases[-2:] == [Phase.EVALUATING, Phase.SAVING]
    ready, planned = link.of(Ready)[0], link.of(Planned)[0]
    assert set(ready.versions) == {"mlx", "mlx-lm", "python"}
    assert ready.seconds > 0
    assert (planned.first_step, planned.steps, planned.train_rows, planned.valid_rows) == (0, 6, 24, 4)
    progress = link.of(Progress)
    assert (progress[0].step, progress[-1].step) == (1, 6)
    assert progress[-1].seconds_left == 0
    assert link.of(Evaluated)[0].step == 0
    assert link.of(Evaluated)[-1].step == 6
    assert link.of(Checkpoint)[-1].step == 6
    assert done.result is not None
    assert done.result.facts["dtype"] == "float32"
    assert done.result.facts["rows"]["train"] == {"used": 24, "cut": 0, "dropped": 0, "unrendered": 0}
    assert done.result.peak_memory_bytes is not None
    assert done.result.first_step_seconds is not None


def test_progress_is_told_at_most_four_times_a_second(make_job: MakeJob, make_start: MakeStart) -> None:
    link = RecordingLink()

    done = train(make_start(make_job(steps=30, evaluation={"every": 30})), link)

    assert done.result is not None
    assert 2 <= len(link.of(Progress)) <= 2 + 4 * done.result.training_seconds + 1


def test_validation_runs_before_during_and_after_as_often_as_asked(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    link = RecordingLink()

    train(make_start(make_job(steps=5, evaluation={"every": 2, "rows": 2})), link)

    assert [message.step for message in link.of(Evaluated)] == [0, 2, 4, 5]
    assert link.of(Planned)[0].valid_rows == 2


def test_neither_evaluations_nor_checkpoints_move_the_training(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    adapter = {"rank": 4, "dropout": 0.3}
    often = make_job(adapter=adapter, evaluation={"every": 1}, checkpoint={"every": 1})
    seldom = make_job(adapter=adapter, evaluation={"every": 6}, checkpoint={"every": 6})

    one, other = (
        train(make_start(often, "a"), RecordingLink()),
        train(make_start(seldom, "b"), RecordingLink()),
    )

    assert largest_difference(one, other) == 0.0


def test_the_micro_batch_does_not_change_what_is_learned(make_job: MakeJob, make_start: MakeStart) -> None:
    settings = {
        "steps": 1,
        "batch_size": 8,
        "optimizer": {"name": "sgd", "learning_rate": 1.0, "max_grad_norm": None},
        "schedule": {"name": "constant", "warmup": 0.0},
    }
    whole = train(make_start(make_job(**settings, micro_batch_tokens=10_000), "a"), RecordingLink())
    rows = train(make_start(make_job(**settings, micro_batch_tokens=1), "b"), RecordingLink())

    assert largest_difference(whole, rows) <= 1e-6 * as_float(norm(weights_of(whole)))


def test_recomputing_activations_does_not_change_what_is_learned(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    adapter = {"rank": 4, "dropout": 0.3}
    plain = train(make_start(make_job(adapter=adapter), "a"), RecordingLink())
    again = train(make_start(make_job(adapter=adapter, gradient_checkpointing=True), "b"), RecordingLink())

    assert largest_difference(plain, again) <= 1e-5


def test_epochs_set_the_number_of_steps(make_job: MakeJob, make_start: MakeStart) -> None:
    link = RecordingLink()

    done = train(make_start(make_job(steps=None, epochs=0.5, batch_size=5)), link)

    assert link.of(Planned)[0].steps == 3
    assert done.result is not None
    assert done.result.steps == 3


def test_without_validation_rows_some_training_rows_are_held_out(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", text_rows(10))
    link = RecordingLink()

    train(make_start(make_job(steps=1, data={"source": str(path), "valid_fraction": 0.2})), link)

    assert (link.of(Planned)[0].train_rows, link.of(Planned)[0].valid_rows) == (8, 2)


def test_a_single_row_can_be_learned(make_job: MakeJob, make_start: MakeStart, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", text_rows(1))

    done = train(make_start(make_job(steps=2, data=str(path))), RecordingLink())

    assert done.result is not None


def test_rows_that_are_cut_or_left_out_are_told(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "p" * 4, "completion": "c" * 3},
        {"prompt": "p" * 4, "completion": "c" * 20},
        {"prompt": "p" * 30, "completion": "c"},
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "valid.jsonl", rows[:1])
    link = RecordingLink()

    done = train(make_start(make_job(steps=1, max_length=13, data=str(tmp_path))), link)

    lines = [message.text for message in link.of(Log) if message.level == "warning"]
    assert lines == [
        "1 training rows are longer than 13 tokens and were cut",
        "1 training rows were left out: nothing to learn in their first 13 tokens",
    ]
    assert done.result is not None
    assert done.result.facts["rows"]["train"] == {"used": 2, "cut": 1, "dropped": 1, "unrendered": 0}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"prompt": "p" * 99, "completion": "c"}] * 3, "have nothing to learn in their first 64 tokens"),
        ([{"text": ""}], "`text` is empty"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}, {"text": "a"}], "is a text row"),
        ([{"text": 3.5}], "`text` is a number; it must be a string"),
        ([{"prompt": "a", "completion": 3.5}], "`completion` is a number; it must be a string"),
        (
            [{"messages": [{"role": "assistant", "content": 3.5}]}],
            "messages[0].content` is a number",
        ),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path, rows: list[object], complaint: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)

    error = refusal(make_start(make_job(data=str(path))))

    assert error.failure is FailureClass.DATA
    assert complaint in error.text


def test_a_validation_file_without_rows_is_refused(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    write_rows(tmp_path / "train.jsonl", text_rows(4))
    (tmp_path / "valid.jsonl").touch()

    error = refusal(make_start(make_job(data=str(tmp_path))))

    assert error.failure is FailureClass.DATA
    assert error.text == f"{tmp_path / 'valid.jsonl'}: has no rows"


def test_chats_and_a_model_without_a_chat_template_are_refused(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, chat_template=None)
    make_model(tmp_path)
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    path = write_rows(tmp_path / "rows.jsonl", rows)

    error = refusal(make_start(make_job(model=str(tmp_path), data=str(path))))

    assert error.failure is FailureClass.CONFIG
    assert "has no chat template; use a chat model, or prompt and completion rows" in error.text


def warnings_of(start: Start) -> list[str]:
    """What a job warns of."""
    link = RecordingLink()
    assert train(start, link).result is not None
    return [message.text for message in link.of(Log) if message.level == "warning"]


def test_rows_that_are_all_too_long_are_cut_and_do_not_teach_where_to_stop(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": letter * 40} for letter in "abcd"])

    lines = warnings_of(make_start(make_job(steps=1, max_length=16, data=str(path))))

    assert lines == [
        "3 training rows are longer than 16 tokens and were cut",
        "1 validation rows are longer than 16 tokens and were cut",
        "the model will not learn where to stop: what is learned of the training rows never holds </s>",
    ]


def test_a_base_without_an_end_token_learns_but_not_where_to_stop(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, eos=False)
    make_model(tmp_path)

    lines = warnings_of(make_start(make_job(model=str(tmp_path), steps=1)))

    assert lines == ["the model will not learn where to stop: its tokenizer has no end token"]


def test_chats_whose_turns_have_no_end_do_not_teach_where_to_stop(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path, chat_template=CHAT_TEMPLATE.replace("</s>", ""))
    make_model(tmp_path)
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)

    lines = warnings_of(make_start(make_job(model=str(tmp_path), data=str(path), steps=1)))

    assert lines == [
        "the model will not learn where to stop: what is learned of the training rows never holds </s>"
    ]


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(
    make_job: MakeJob, make_start: MakeStart, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    make_tokenizer(folder)
    make_model(folder, vocab_size=64)

    error = refusal(make_start(make_job(model=str(folder))))

    assert error.failure is FailureClass.CONFIG
    assert "the model knows only 64 tokens" in error.text


def test_a_job_of_another_kind_is_refused(make_start: MakeStart) -> None:
    assert refusal(make_start(CountJob())).failure is FailureClass.INTERNAL


def test_a_rate_that_is_far_too_high_ends_the_job_and_keeps_the_last_good_checkpoint(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    job = make_job(
        steps=40,
        optimizer={"name": "sgd", "learning_rate": 10.0, "max_grad_norm": None},
        adapter={"rank": 4, "scale": 1e15},
        schedule={"name": "constant", "warmup": 0.0},
        checkpoint={"every": 1},
        evaluation={"every": 40},
    )
    link = RecordingLink()

    with pytest.raises(JobError, match="in step 6, and no number 5 times in a row") as error:
        train(make_start(job), link)

    assert error.value.failure is FailureClass.DIVERGED
    assert "the last good checkpoint is of step 1" in error.value.text
    assert [checkpoint.step for checkpoint in link.of(Checkpoint)] == [1]


def test_a_base_that_gives_no_numbers_ends_the_job_at_once(
    make_job: MakeJob, make_start: MakeStart, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    make_tokenizer(folder)
    make_model(folder)
    arrays = mx.load(str(folder / "model.safetensors"))
    assert isinstance(arrays, dict)
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * float("nan")
    mx.eval(arrays)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)

    error = refusal(make_start(make_job(model=str(folder))))

    assert error.failure is FailureClass.CONFIG
    assert "validation loss of nan before any training: its weights or the `precision` are bad" in error.text


def test_a_job_whose_time_is_up_keeps_a_checkpoint(make_job: MakeJob, make_start: MakeStart) -> None:
    job = make_job(steps=10_000, limits={"seconds": 1}, evaluation={"every": 5000})
    link = RecordingLink()

    with pytest.raises(JobError, match=r"of 10000 steps: `limits\.seconds` is 1") as error:
        train(make_start(job, trained_seconds=0.7), link)

    assert error.value.failure is FailureClass.TIMEOUT
    assert len(link.of(Checkpoint)) == 1


def test_a_stop_is_heard_during_an_evaluation(make_job: MakeJob, make_start: MakeStart) -> None:
    def stop_when(message: RunnerMessage) -> StopReason | None:
        is_second = isinstance(message, PhaseChanged) and message.phase is Phase.EVALUATING and evaluated
        evaluated.extend([message] if isinstance(message, Evaluated) else [])
        return StopReason.YIELD if is_second else None

    evaluated: list[Any] = []
    link = RecordingLink(stop_when)

    done = train(make_start(make_job(evaluation={"every": 3})), link)

    assert done.stopped is StopReason.YIELD
    assert [message.step for message in link.of(Evaluated)] == [0]
    assert [message.step for message in link.of(Checkpoint)] == [3]


def test_the_limits_of_mlx_are_those_of_the_budget_and_restored_after(
    make_job: MakeJob, make_start: MakeStart
) -> None:
    found: list[int] = []

    def look(message: RunnerMessage) -> StopReason | None:
        if isinstance(message, Planned):
            found.append(mx.set_memory_limit(1 << 30))
            mx.set_memory_limit(found[-1])
        return None

    before = mx.set_memory_limit(5 << 30)
    mx.set_memory_limit(before)

    train(make_start(make_job(steps=1), budget_bytes=3 << 30), RecordingLink(look))

    after = mx.set_memory_limit(before)
    assert found == [(3 << 30) - cache_in(3 << 30)]
    assert after == before


@pytest.mark.parametrize(
    "text",
    [
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU...)",
        "[malloc] Unable to allocate 17179869184 bytes.",
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum",
        "cudaMallocAsync failed: out of memory",
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(text: str) -> None:
    with pytest.raises(JobError) as error, device.prepared(None):
        raise RuntimeError(text)

    assert error.value.failure is FailureClass.MEMORY
    with pytest.raises(RuntimeError, match="shapes"), device.prepared(None):
        raise RuntimeError("shapes (2,3) and (4,5) cannot be multiplied")


def test_memory_is_wired_only_where_the_host_says_so(
    make_job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def set_limit(limit: int) -> int:
        limits.append(limit)
        return 7

    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    given = {"budget_bytes": 1 << 30}
    train(make_start(make_job(steps=1), "untouched", **given), RecordingLink())
    assert limits == []

    train(make_start(make_job(steps=1), "wired", wired_bytes=1 << 30, **given), RecordingLink())

    assert limits == [1 << 30, 7]
