"""Graphs without numbers against MLX itself: the same function, and the memory that it takes.

On the CPU and not compiled, as the engine computes there. The arrays are so large that computing
takes longer than sending off, as it does in a training.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import gemma, gemma2, gpt_neox, llama, starcoder2
from mlx_lm.models.base import create_attention_mask

from graft_scheduler.anatomy import Activation, Anatomy, Attention, Block, Mlp, Norm
from graft_scheduler.hyperparameters import OptimizerConfig, OptimizerName
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory import Backend, passes
from graft_scheduler.memory import operations as op
from graft_scheduler.memory.arrays import Array
from graft_scheduler.memory.cuts import chunk_tokens
from graft_scheduler.memory.forward import feed, forward_block, mix
from graft_scheduler.memory.layers import Mode, Parameters, norm
from graft_scheduler.memory.liveness import Memory, tape_of
from graft_scheduler.memory.settings import QUEUES
from graft_scheduler.memory.updates import update
from graft_scheduler.memory.vjp import vjp
from graft_worker.engine.adapters import attach
from graft_worker.engine.chunked import forward_only, with_gradient
from graft_worker.engine.head import Head
from graft_worker.engine.optimizers import GroupedOptimizer
from graft_worker.engine.recompute import recomputed

MOST_ABOVE = 1.05
LEAST = 0.6
"""Of what is expected. Less is in flight where a busy machine sends off as slowly as it computes: then
more arrays are taken over by what reads them, and the peak is lower."""
ROWS, LENGTH, HIDDEN, WIDTH = 2, 192, 256, 640
HEADS, GROUPS, HEAD_DIM, RANK = 8, 2, 32, 16
VOCABULARY = 8192
SHAPE = (ROWS, LENGTH, HIDDEN)
LARGE = (16, 1024, HIDDEN)
"""For what computes little: sending it off must take less time."""
MODE = Mode(itemsize=4, branch=4, is_fused=False)

Function = Callable[[Array], Array]


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    mx.disable_compile()
    yield
    mx.enable_compile()


def measured(work: Callable[[], Any]) -> int:
    """The most that MLX holds beside what was there, while what `work` returns is computed."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(work())
    return mx.get_peak_memory() - before


def evaluated(outputs: Sequence[Array], owned: Sequence[Array] = ()) -> int:
    """The same of a graph without numbers."""
    memory = Memory(QUEUES[Backend.CPU])
    memory.evaluate(tape_of(outputs), owned)
    return memory.peak_bytes


def gradient_of(function: Function, shape: tuple[int, ...] = SHAPE) -> list[Array]:
    """The sum of what `function` makes of an array, and its gradient with respect to that."""
    x = op.copy(op.ready(shape, 4))
    loss = op.total(function(x))
    return [loss, *vjp([loss], [op.ready((), 4)], [x])]


def real_gradient_of(
    function: Callable[[mx.array], mx.array], shape: tuple[int, ...] = SHAPE
) -> Callable[[], Any]:
    x = mx.random.normal(shape)
    mx.eval(x)
    return lambda: mx.value_and_grad(lambda one: function(one).sum())(x)


def assert_near(measured_bytes: int, expected_bytes: int) -> None:
    """The estimate is no lower than what MLX takes, and not much higher."""
    assert LEAST * expected_bytes <= measured_bytes <= MOST_ABOVE * expected_bytes


def frozen() -> Parameters:
    return Parameters(MODE, RANK, frozenset())


def drawn(module: nn.Module) -> nn.Module:
    module.freeze()
    mx.eval(module.parameters())
    return module


# --- layers


def test_an_rms_norm() -> None:
    layer = drawn(nn.RMSNorm(HIDDEN))

    expected = evaluated(gradient_of(lambda x: norm(x, Norm.RMS, "norm", frozen()), LARGE))

    assert_near(measured(real_gradient_of(layer, LARGE)), expected)


def test_a_layer_norm() -> None:
    layer = drawn(nn.LayerNorm(HIDDEN))

    expected = evaluated(gradient_of(lambda x: norm(x, Norm.LAYER, "norm", frozen()), LARGE))

    assert_near(measured(real_gradient_of(layer, LARGE)), expected)


MLPS: dict[Activation, Callable[[], nn.Module]] = {
    Activation.SWIGLU: lambda: llama.MLP(llama_args()),
    Activation.GEGLU: lambda: gemma2.MLP(HIDDEN, WIDTH),
    Activation.ERF_GEGLU: lambda: gemma.MLP(HIDDEN, WIDTH),
}


@pytest.mark.parametrize("activation", list(MLPS))
def test_a_gated_mlp(activation: Activation) -> None:
    layer = drawn(MLPS[activation]())

    expected = evaluated(gradient_of(lambda x: feed(Mlp(WIDTH, activation), x, frozen())))

    assert_near(measured(real_gradient_of(layer)), expected)


@pytest.mark.parametrize("activation", [Activation.GELU, Activation.ERF_GELU])
def test_a_biased_mlp_that_learns(activation: Activation) -> None:
    layer: Any = starcoder2.MLP(HIDDEN, WIDTH) if activation is Activation.ERF_GELU else NeoxMlp()
    mx.eval(layer.parameters())
    x = mx.random.normal(SHAPE)
    mx.eval(x)

    def loss(parameters: dict[str, Any]) -> mx.array:
        layer.update(parameters)
        found: mx.array = layer(x).square().sum()
        return found

    own = Parameters(replace(MODE, learns_base=True), RANK, frozenset())
    total = op.total(op.square(feed(Mlp(WIDTH, activation, has_bias=True), op.ready(SHAPE, 4), own)))
    expected = evaluated([total, *vjp([total], [op.ready((), 4)], list(own.found.values()))])

    parameters = layer.parameters()
    assert_near(measured(lambda: mx.value_and_grad(loss)(parameters)), expected)


class NeoxMlp(nn.Module):
    """As GPT-NeoX's, of any width."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX has no types here
        self.up, self.down = nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, HIDDEN)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(nn.gelu_approx(self.up(x)))


def test_a_parallel_block_with_two_norms() -> None:
    args = gpt_neox.ModelArgs("gpt_neox", 512, HIDDEN, HEADS, 1, 1e-5, VOCABULARY, 10000, 0.25)
    layer = drawn(gpt_neox.TransformerBlock(args))
    mixer = Attention(
        HEADS, HEADS, HEAD_DIM, HEAD_DIM, HEAD_DIM // 4, is_fused=True, has_bias=True, has_output_bias=True
    )
    mlp = Mlp(4 * HIDDEN, Activation.GELU, has_bias=True)
    block = Block(mixer, mlp, Norm.LAYER, is_parallel=True, normalises_twice=True)

    expected = evaluated(gradient_of(lambda x: forward_block(block, x, frozen())))

    assert_near(measured(real_gradient_of(lambda x: layer(x, "causal"))), expected)


ATTENTION = Attention(HEADS, GROUPS, HEAD_DIM, HEAD_DIM, HEAD_DIM)


def llama_args(**changes: Any) -> llama.ModelArgs:
    args: llama.ModelArgs = llama.ModelArgs.from_dict(
        {
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "num_hidden_layers": 1,
            "intermediate_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS,
            "head_dim": HEAD_DIM,
            "rms_norm_eps": 1e-5,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    return args


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("groups", [GROUPS, HEADS])
def test_attention(groups: int, window: int | None) -> None:
    layer = drawn(llama.Attention(llama_args(num_key_value_heads=groups)))
    mixer = replace(ATTENTION, kv_heads=groups, window=window)

    def function(x: mx.array) -> mx.array:
        found: mx.array = layer(x, create_attention_mask(x, window_size=window))
        return found

    expected = evaluated(gradient_of(lambda x: mix(mixer, x, frozen())))

    assert_near(measured(real_gradient_of(function)), expected)


BLOCK = Block(ATTENTION, Mlp(WIDTH, Activation.SWIGLU))
ANATOMY = Anatomy(HIDDEN, VOCABULARY, (BLOCK, BLOCK, BLOCK), Norm.RMS, is_tied=True)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("settings", [{}, {"dropout": 0.1}, {"targets": ["q_proj", "down_proj"]}], ids=str)
def test_blocks_with_adapters(
    make_job: Callable[..., TrainJob], settings: dict[str, Any], recomputes: bool
) -> None:
    job = make_job(adapter={"rank": RANK, **settings})
    model = drawn(llama.Model(llama_args(num_hidden_layers=3)))
    adapted = attach(model, job, mx.float32)
    given = adapted.take()
    x = mx.random.normal(SHAPE)
    mx.eval(given, x)

    def function(parameters: dict[str, mx.array]) -> mx.array:
        adapted.put(parameters)
        found = x
        for block in adapted.blocks:
            found = block(found, "causal", None)
        return found.sum()

    def work() -> Any:
        with recomputed(adapted.blocks if recomputes else ()):
            return mx.value_and_grad(function)(given)

    targets = settings.get("targets")
    mode = replace(MODE, dropout="dropout" in settings)
    own = Parameters(mode, RANK, None if targets is None else frozenset(targets))
    hidden = op.ready(SHAPE, 4)
    for number, block in enumerate(ANATOMY.blocks):
        own.scope = f"{number}."
        hidden = passes._recomputed(block, hidden, own) if recomputes else forward_block(block, hidden, own)
    loss = op.total(hidden)
    expected = evaluated([loss, *vjp([loss], [op.ready((), 4)], list(own.found.values()))])

    assert_near(measured(work), expected)


# --- losses


TOKENS = 2100


def head_of(weight: mx.array) -> Head:
    layer = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    layer.weight = weight
    layer.freeze()
    return Head(layer, "lm_head", "__call__", nn.Linear)


def loss_inputs() -> tuple[mx.array, mx.array, mx.array, mx.array]:
    weight, hidden = mx.random.normal((VOCABULARY, HIDDEN)), mx.random.normal((TOKENS, HIDDEN))
    targets, used = mx.random.randint(0, VOCABULARY, (TOKENS,)), mx.ones((TOKENS,))
    mx.eval(weight, hidden, targets, used)
    return weight, hidden, targets, used


def test_the_plain_loss() -> None:
    weight, hidden, targets, used = loss_inputs()

    def loss(hidden: mx.array) -> mx.array:
        losses = nn.losses.cross_entropy((hidden @ weight.T).astype(mx.float32), targets)
        return mx.where(used > 0, losses, 0.0).sum()

    expected = evaluated(gradient_of(lambda x: passes._plain_loss(ANATOMY, frozen(), x), (TOKENS, HIDDEN)))

    assert_near(measured(lambda: mx.value_and_grad(loss)(hidden)), expected)


def sizes() -> list[int]:
    chunk = chunk_tokens(VOCABULARY)
    return [min(chunk, TOKENS - place) for place in range(0, TOKENS, chunk)]


def test_the_chunked_loss() -> None:
    weight, hidden, targets, used = loss_inputs()
    kernel = with_gradient(head_of(weight), VOCABULARY)

    expected = evaluated(
        gradient_of(lambda x: passes._chunks_with_gradient(ANATOMY, frozen(), x, sizes()), (TOKENS, HIDDEN))
    )

    found = measured(lambda: mx.value_and_grad(lambda one: kernel(one, targets, used))(hidden))
    assert_near(found, expected)


def test_the_chunked_loss_of_an_evaluation() -> None:
    weight, hidden, targets, used = loss_inputs()
    kernel = forward_only(head_of(weight), VOCABULARY)

    expected = evaluated([passes._forward_chunks(ANATOMY, frozen(), op.ready((TOKENS, HIDDEN), 4), sizes())])

    assert_near(measured(lambda: kernel(hidden, targets, used)), expected)


# --- updates


@pytest.mark.parametrize("name", list(OptimizerName))
def test_an_update(name: OptimizerName) -> None:
    side = 512 if name is OptimizerName.MUON else 2048  # its products take long to compute, others do not
    shapes = [(side, side), (side, side * 3 // 2)]
    config = OptimizerConfig(name=name, momentum=0.9 if name is OptimizerName.SGD else None)
    parameters = {f"p{number}": mx.random.normal(shape) for number, shape in enumerate(shapes)}
    gradient = {path: mx.random.normal(one.shape) for path, one in parameters.items()}
    optimizer = GroupedOptimizer(config, parameters)
    step = optimizer.updater(1.0)
    numbers = [mx.array(1.0), mx.array(1.0), mx.array(1e-3)]
    mx.eval(parameters, gradient, optimizer.state, numbers)

    def work() -> Any:
        return step(gradient, parameters, *numbers), optimizer.state

    outputs, owned = update(name, shapes)
    state_bytes = sum(one.nbytes for one in owned)
    expected = evaluated(outputs, owned) - state_bytes

    assert_near(measured(work), expected)
