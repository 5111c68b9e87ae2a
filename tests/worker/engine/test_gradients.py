"""Token-weighted gradients: the same for any cut, kernel and architecture, recomputed or not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import llama

from graft_scheduler.hyperparameters import Batching, LossKernel
from graft_scheduler.jobs import TrainJob
from graft_worker.engine.activations import frugal_activations, frugal_swiglu
from graft_worker.engine.adapters import Adapted, Parameters, attach
from graft_worker.engine.batches import MicroBatch, build
from graft_worker.engine.cutting import Budget, exact_cutter
from graft_worker.engine.dropout import micro_batch_key
from graft_worker.engine.gradients import GradientOfSum, StepGradient, norm
from graft_worker.engine.layout import Layout, choose_layout
from graft_worker.engine.loss import find_ending, token_loss
from graft_worker.engine.packing import PACKING_TOLERANCES, difference
from graft_worker.engine.recompute import recomputed
from graft_worker.engine.rows import TokenRow
from graft_worker.engine.scalars import as_float
from tests.worker.engine.architectures import ARCHITECTURES, RECURRENT, VOCABULARY, make_architecture

LENGTHS = (5, 9, 17, 40, 41, 63, 70)
EXACT = 1e-5
"""The relative L2 difference that counts as equal."""


def random_rows(lengths: Sequence[int] = LENGTHS) -> list[TokenRow]:
    random = np.random.default_rng(3)
    return [
        TokenRow(random.integers(6, VOCABULARY, length).astype(np.int32), random.random(length) < 0.6)
        for length in lengths
    ]


@dataclass
class Subject:
    """A tiny model with something to train on it, all of it random."""

    adapted: Adapted
    parameters: Parameters

    def gradient(
        self,
        rows: Sequence[TokenRow],
        micro_batches: Sequence[MicroBatch],
        kernel: LossKernel = LossKernel.PLAIN,
        *,
        step: int = 0,
    ) -> StepGradient:
        sample = build(rows, one_line(rows, 0)).arrays
        ending = find_ending(self.adapted, self.parameters, kernel, sample)
        with token_loss(self.adapted, ending) as loss:
            assert loss.problem is None
            function = GradientOfSum(self.adapted, loss.training, Layout(None))
            batches = [
                (build(rows, micro_batch), micro_batch_key(0, step, place))
                for place, micro_batch in enumerate(micro_batches)
            ]
            return function.of_step(self.parameters, batches)


def make_subject(architecture: str = "llama", *, seed: int = 1, **settings: Any) -> Subject:
    model, _ = make_architecture(architecture)
    model.freeze()
    spec = {"model": "m", "data": "d", "adapter": {"rank": 4, "scale": 2.0}, **settings}
    adapted = attach(model, TrainJob.model_validate(spec), mx.float32)
    model.train()
    parameters = {
        name: value + 0.1 * mx.random.normal(value.shape, key=mx.random.key(seed + place))
        for place, (name, value) in enumerate(adapted.masters.items())
    }
    return Subject(adapted, parameters)


def cut(rows: Sequence[TokenRow], batching: Batching, tokens: int, multiple: int = 1) -> list[MicroBatch]:
    return exact_cutter(rows, Budget(tokens, multiple), batching).cut(range(len(rows)))


def one_line(rows: Sequence[TokenRow], number: int) -> MicroBatch:
    return MicroBatch(((number,),), rows[number].width, 1, max(1, rows[number].targets))


def relative_difference(one: Parameters, other: Parameters) -> float:
    return as_float(norm({name: one[name] - other[name] for name in one})) / as_float(norm(one))


def assert_equal(one: StepGradient, other: StepGradient) -> None:
    assert one.tokens == other.tokens
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert relative_difference(one.total, other.total) <= EXACT


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_cut_and_kernel_gives_the_same_gradient(architecture: str) -> None:
    subject = make_subject(architecture)
    rows = random_rows()
    alone = subject.gradient(rows, [one_line(rows, number) for number in range(len(rows))])

    for kernel in LossKernel:
        assert_equal(alone, subject.gradient(rows, cut(rows, Batching.PADDED, 10_000), kernel))
        for tokens, multiple in ((1, 1), (70, 32), (200, 1), (200, 32)):
            micro_batches = cut(rows, Batching.BUCKETED, tokens, multiple)
            assert_equal(alone, subject.gradient(rows, micro_batches, kernel))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in RECURRENT])
@pytest.mark.parametrize("kernel", LossKernel)
def test_packing_gives_the_same_gradient(architecture: str, kernel: LossKernel) -> None:
    subject = make_subject(architecture)
    rows = random_rows()
    alone = subject.gradient(rows, [one_line(rows, number) for number in range(len(rows))])

    packed = cut(rows, Batching.PACKED, 128)

    assert any(len(line) > 1 for micro_batch in packed for line in micro_batch.lines)
    assert_equal(alone, subject.gradient(rows, packed, kernel))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_check_before_packing_tells_who_may_be_packed(architecture: str) -> None:
    model, _ = make_architecture(architecture)

    may_be_packed = difference(model, VOCABULARY) <= PACKING_TOLERANCES[mx.float32]

    assert may_be_packed == (architecture not in RECURRENT)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_every_method_has_the_same_gradient_by_both_kernels(architecture: str, method: str) -> None:
    subject = make_subject(architecture, method=method)
    rows = random_rows()
    micro_batches = cut(rows, Batching.BUCKETED, 100)

    plain = subject.gradient(rows, micro_batches)

    assert_equal(plain, subject.gradient(rows, micro_batches, LossKernel.CHUNKED))
    assert_equal(plain, subject.gradient(rows, cut(rows, Batching.PADDED, 1000), LossKernel.CHUNKED))


def test_the_gradient_is_that_of_the_sum_over_tokens() -> None:
    subject = make_subject()
    rows = random_rows([12, 30])
    micro_batches = cut(rows, Batching.PADDED, 1000)
    found = subject.gradient(rows, micro_batches)
    name = "model.layers.0.mlp.up_proj.lora_b"
    step = 1e-2
    direction = mx.sign(found.total[name])
    start = subject.parameters[name]

    def loss(shift: float) -> float:
        subject.parameters[name] = start + shift * direction
        return subject.gradient(rows, micro_batches).loss

    slope = (loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(mx.abs(found.total[name]).sum().item(), rel=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_many_small_chunks_add_up_to_one(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    subject = make_subject(architecture)
    rows = random_rows()
    micro_batches = cut(rows, Batching.PADDED, 10_000)
    whole = subject.gradient(rows, micro_batches, LossKernel.CHUNKED)

    monkeypatch.setattr("graft_worker.engine.chunked.chunk_tokens", lambda vocabulary: 7)

    assert_equal(whole, subject.gradient(rows, micro_batches, LossKernel.CHUNKED))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3_moe", "mamba2"])
def test_recomputed_activations_give_the_same_gradient(architecture: str, dropout: float) -> None:
    subject = make_subject(architecture, adapter={"rank": 4, "scale": 2.0, "dropout": dropout})
    rows = random_rows([12, 30])
    micro_batches = cut(rows, Batching.PADDED, 1000)
    kept = subject.gradient(rows, micro_batches)

    with recomputed(subject.adapted.blocks):
        again = subject.gradient(rows, micro_batches)

    assert_equal(kept, again)


class Gathering(nn.Module):
    """A block whose mask has no gradient, like that of fused attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX has no types here
        self.weight = mx.ones((2, 3, 3))

    def __call__(self, x: mx.array, mask: mx.array, scale: mx.array | None = None) -> mx.array:
        y = mx.gather_mm(x, self.weight, rhs_indices=mask)
        return y if scale is None else y * scale


@pytest.mark.parametrize("by_name", [False, True])
def test_no_gradient_of_a_mask_is_asked_for(by_name: bool) -> None:
    block, mask = Gathering(), mx.array([1, 0])
    x, scale = mx.random.normal((2, 1, 3)), mx.array(3.0)

    def loss(x: mx.array, scale: mx.array) -> mx.array:
        return (block(x, mask=mask, scale=scale) if by_name else block(x, mask, scale)).square().sum()

    kept = mx.grad(loss, argnums=(0, 1))(x, scale)
    with recomputed([block]):
        again = mx.grad(loss, argnums=(0, 1))(x, scale)

    assert all(mx.array_equal(one, other) for one, other in zip(kept, again, strict=True))


def test_recomputation_changes_no_class_may_nest_and_is_undone() -> None:
    blocks = make_subject().adapted.blocks
    block_class = type(blocks[0])
    call = block_class.__call__

    with ExitStack() as contexts:
        contexts.enter_context(recomputed(blocks[:1]))
        once = type(blocks[0])
        contexts.enter_context(recomputed(blocks[:1]))
        assert once is not block_class
        assert type(blocks[0]) is once
        assert type(blocks[1]) is block_class

    assert type(blocks[0]) is block_class
    assert block_class.__call__ is call


def test_dropout_depends_on_the_key_and_not_on_the_global_random_state() -> None:
    subject = make_subject(adapter={"rank": 4, "scale": 2.0, "dropout": 0.4})
    rows = random_rows([12, 30])
    micro_batches = cut(rows, Batching.PADDED, 1000)
    first = subject.gradient(rows, micro_batches)
    mx.random.seed(99)
    again = subject.gradient(rows, micro_batches)
    other = subject.gradient(rows, micro_batches, step=1)

    assert again.loss == first.loss
    assert other.loss != first.loss


def test_arrays_end_to_end_are_the_same_arrays() -> None:
    subject = make_subject(method="dora")
    layout = choose_layout(TrainJob.model_validate({"model": "m", "data": "d"}), subject.adapted.shapes)

    kept = layout.pack(subject.parameters)

    assert kept.keys() == {"lora_a", "lora_b", "m"}
    again = layout.unpack(kept)
    assert list(again) == list(subject.parameters)
    assert all(mx.array_equal(again[name], subject.parameters[name]) for name in again)


def test_layers_that_read_the_same_array_read_it_together() -> None:
    alone = make_subject(adapter={"rank": 4, "scale": 2.0, "dropout": 0.5})
    together = make_subject()
    together.adapted.put(together.parameters)
    alone.adapted.put(together.parameters)
    alone.adapted.model.eval()
    tokens = mx.array([[5, 6, 7, 8]])

    assert mx.allclose(together.adapted.model(tokens), alone.adapted.model(tokens), rtol=1e-5, atol=1e-5)
    block = together.adapted.blocks[0]
    attention, mlp = block.self_attn, block.mlp
    assert attention.q_proj._shared is attention.k_proj._shared is attention.v_proj._shared
    assert mlp.gate_proj._shared is mlp.up_proj._shared
    assert not hasattr(attention.o_proj, "_shared")
    assert attention.q_proj._shared._input is None


def test_a_frugal_swiglu_is_a_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows()
    micro_batches = cut(rows, Batching.PADDED, 10_000)
    subject = make_subject()
    usual = subject.gradient(rows, micro_batches)
    monkeypatch.setattr("graft_worker.engine.activations.is_gpu", lambda: True)

    with frugal_activations(subject.adapted.model):
        assert vars(llama)["swiglu"] is frugal_swiglu
        assert_equal(usual, subject.gradient(rows, micro_batches))

    assert vars(llama)["swiglu"] is not frugal_swiglu
