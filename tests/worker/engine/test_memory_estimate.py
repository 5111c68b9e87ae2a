"""The estimate of memory that placement uses, against real trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from graft_scheduler.basemodels import read_base_model
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, estimate_peak
from graft_scheduler.messages import Start
from graft_worker.engine.device import peak_of
from graft_worker.engine.loss import relative_difference
from graft_worker.engine.training import train
from tests.worker.engine.tiny import RecordingLink, make_model, make_tokenizer, write_rows

LONGEST = 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model large enough that its arrays, and not single numbers, are what memory holds."""
    folder = tmp_path_factory.mktemp("small")
    make_tokenizer(folder)
    make_model(folder, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=352)
    return folder


@pytest.fixture(scope="module")
def even_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are all as long as the longest, so that one micro-batch is what the estimate takes it for."""
    folder = tmp_path_factory.mktemp("even")
    for name, count in (("train", 8), ("valid", 1)):
        write_rows(folder / f"{name}.jsonl", [{"text": "abcdefgh" * 12}] * count)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "lora", "gradient_checkpointing": True},
        {"method": "lora", "compute": {"batching": "packed"}},
        {"method": "lora", "compute": {"loss": "plain"}},
        {"method": "qlora"},
        {"method": "dora"},
        {"method": "dora", "gradient_checkpointing": True},
        {"method": "full"},
        {"method": "full", "optimizer": {"name": "adafactor"}},
    ],
    ids=str,
)
def test_the_estimate_is_near_the_measured_peak(
    make_job: Callable[..., TrainJob],
    make_start: Callable[..., Start],
    small: Path,
    even_texts: Path,
    settings: dict[str, Any],
) -> None:
    sizes = {"batch_size": 8, "steps": 2, "max_length": LONGEST, "micro_batch_tokens": 1024}
    job = make_job(model=str(small), data=str(even_texts), **sizes, **settings)

    done = train(make_start(job), RecordingLink())
    measured = done.result.peak_memory_bytes if done.result else None

    base = read_base_model(small)
    estimated = estimate_peak(base, job, LONGEST, Backend.CPU, shortest_tokens=LONGEST).peak_bytes
    assert measured is not None
    assert 0.9 * measured < estimated < 1.1 * measured


def test_to_go_on_from_a_checkpoint_takes_no_more_than_to_begin(
    make_job: Callable[..., TrainJob], make_start: Callable[..., Start], small: Path, even_texts: Path
) -> None:
    sizes = {"batch_size": 2, "steps": 2, "max_length": LONGEST, "checkpoint": {"every": 1, "keep": 2}}
    job = make_job(model=str(small), data=str(even_texts), method="full", **sizes)
    whole = train(make_start(job, "whole"), RecordingLink()).result
    halfway = sorted((Path(make_start(job, "whole").work_dir) / "checkpoints").glob("step-*"))[0]

    resumed = train(make_start(job, "resumed", resume_dir=str(halfway)), RecordingLink()).result

    assert whole is not None
    assert resumed is not None
    assert whole.peak_memory_bytes is not None
    assert resumed.peak_memory_bytes is not None
    assert resumed.peak_memory_bytes <= 1.02 * whole.peak_memory_bytes


def test_two_gradients_are_compared_array_by_array() -> None:
    arrays = [[mx.full((512, 512), value) for value in range(1, 33)] for _ in range(2)]
    mx.eval(arrays)
    there = mx.get_active_memory()

    taken = peak_of(lambda: relative_difference(*arrays)) - there

    assert taken < 8 << 20  # of 32 MiB
