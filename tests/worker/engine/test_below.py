"""Blocks below the adapted ones: computed once for a micro-batch, bounded, not to be noticed in a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from graft_scheduler.hyperparameters import LossKernel
from graft_scheduler.jobs import TrainJob
from graft_scheduler.messages import Done, Evaluated, Progress, Start
from graft_worker.engine import training
from graft_worker.engine.adapters import attach
from graft_worker.engine.batches import build_alone
from graft_worker.engine.below import BELOW, Below, Kept
from graft_worker.engine.loss import find_ending, loss_and_gradient, token_loss
from graft_worker.engine.resident import Resident
from graft_worker.engine.rows import TokenRow
from graft_worker.engine.training import train
from tests.worker.engine.architectures import ARCHITECTURES, VOCABULARY, make_architecture
from tests.worker.engine.tiny import RecordingLink, make_model, make_tokenizer

MakeStart = Callable[..., Start]
MakeJob = Callable[..., TrainJob]
DEEP = 8
"""Blocks of the model here."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    make_tokenizer(folder)
    make_model(folder, num_hidden_layers=DEEP)
    return folder


@pytest.fixture
def job(deep: Path, make_job: MakeJob, texts: Path) -> MakeJob:
    """A short job on the last two blocks, with names that a runner may go by."""

    def make(**changes: Any) -> TrainJob:
        settings = {
            "model": {"source": str(deep), "digest": f"sha256:{'a' * 64}"},
            "data": {"source": str(texts), "digest": f"sha256:{'b' * 64}"},
            "steps": 2,
            "adapter": {"rank": 4, "layers": 2},
            "evaluation": {"every": 1},
            **changes,
        }
        return make_job(**settings)

    return make


class Counted:
    """How many forward passes the lowest block of the model has computed, seen from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0

        def watching(model: nn.Module, *arguments: Any) -> Any:
            adapted = attach(model, *arguments)
            first = model.layers[0]
            cls = type(first)

            def call(block: nn.Module, *inputs: Any, **named: Any) -> Any:
                self.calls += 1
                return cls.__call__(block, *inputs, **named)

            first.__class__ = type(cls.__name__, (cls,), {"__call__": call})
            return adapted

        monkeypatch.setattr(training, "attach", watching)


def run(start: Start, resident: Resident | None = None) -> tuple[Done, RecordingLink]:
    link = RecordingLink()
    return train(start, link, resident), link


def weights(done: Done) -> dict[str, mx.array]:
    arrays = mx.load(f"{done.output_dir}/adapters.safetensors")
    assert isinstance(arrays, dict)
    return arrays


def are_equal(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(mx.array_equal(one[name], other[name]).item() for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": {"rank": 4, "layers": 2, "dropout": 0.2}, "gradient_checkpointing": True},
        {"compute": {"batching": "packed", "loss": "plain"}},
        {"method": "full"},
    ],
)
def test_what_is_kept_changes_no_bit(
    job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    asked, resident = job(**changes), Resident()
    with monkeypatch.context() as without:
        without.setattr(training, "LEAST_SHARE", 2.0)
        plain, plain_link = run(make_start(asked, "plain"))

    first, first_link = run(make_start(asked, "first"), resident)
    run(make_start(asked, "second"), resident)
    again, again_link = run(make_start(asked, "again"), resident)

    assert plain.result is not None
    assert first.result is not None
    assert plain.result.facts["below"]["kept_bytes"] == 0
    assert first.result.facts["below"]["kept_bytes"] > 0
    assert first.result.facts["below"]["blocks"] == DEEP - 2
    assert are_equal(weights(first), weights(plain))
    assert are_equal(weights(again), weights(plain))
    losses = [[one.loss for one in link.of(Evaluated)] for link in (plain_link, first_link, again_link)]
    assert losses[0] == losses[1] == losses[2]


def test_a_trial_with_the_rows_of_another_computes_no_frozen_block(
    job: MakeJob, make_start: MakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident, counted = Resident(), Counted(monkeypatch)
    run(make_start(job(), "first"), resident)
    alone = resident.kept.held_bytes
    run(make_start(job(), "second"), resident)
    assert resident.kept.held_bytes > alone > 0  # the first could not know that others would follow
    counted.calls = 0

    run(
        make_start(job(adapter={"rank": 2, "layers": 2}, optimizer={"learning_rate": 1e-4}), "second"),
        resident,
    )

    assert counted.calls <= 1  # the head is looked for with a single token


def test_kept_outputs_are_bounded_by_what_the_job_is_given(job: MakeJob, make_start: MakeStart) -> None:
    resident = Resident()
    ample, _ = run(make_start(job(), "ample", budget_bytes=1 << 30), resident)
    assert ample.result is not None
    assert resident.kept.held_bytes > 0

    tight, _ = run(make_start(job(), "tight", budget_bytes=1 << 20), resident)

    assert tight.result is not None
    assert resident.kept.held_bytes == 0
    assert are_equal(weights(tight), weights(ample))


def test_the_oldest_stay_when_there_is_less_room() -> None:
    kept, array = Kept(), mx.zeros((4,), dtype=mx.float32)
    kept.limit(40)
    for name in "ab":
        assert kept.has_room(array.nbytes)
        kept.add(name, array)
    assert not kept.has_room(array.nbytes)

    kept.limit(20)

    assert kept.find("a") is array
    assert kept.find("b") is None
    assert kept.held_bytes == array.nbytes


def test_a_job_whose_memory_runs_short_keeps_nothing(job: MakeJob, make_start: MakeStart) -> None:
    resident, link = Resident(), RecordingLink(shrink_when=lambda message: isinstance(message, Progress))

    train(make_start(job()), link, resident)

    assert resident.kept.held_bytes == 0


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_families_can_be_entered_above_their_frozen_blocks(architecture: str) -> None:
    model, _ = make_architecture(architecture)
    model.freeze()
    if len(model.layers) < 2:
        pytest.skip("it has no two blocks")
    spec = {"model": "m", "data": "d", "adapter": {"rank": 2, "layers": 1}}
    adapted = attach(model, TrainJob.model_validate(spec), mx.float32)
    parameters = adapted.take()
    tokens = [(7 * place) % VOCABULARY for place in range(12)]
    row = TokenRow(np.array(tokens, dtype=np.int32), np.ones(12, dtype=np.bool_))
    arrays = build_alone(row).arrays
    below = Below(adapted.frozen_blocks)
    ending = find_ending(adapted, parameters, LossKernel.CHUNKED, arrays)

    with below.passed(), token_loss(adapted, ending, below) as loss:
        hidden = below.outputs(lambda: loss.evaluation(arrays))
        assert hidden is not None
        expected = loss_and_gradient(loss.training, adapted, parameters, arrays)
        found = loss_and_gradient(loss.training, adapted, parameters, {**arrays, BELOW: hidden})

    assert all(mx.array_equal(one, other).item() for one, other in zip(expected, found, strict=True))
