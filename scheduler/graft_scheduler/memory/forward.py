"""The graph of a model's forward pass, as MLX builds it for mlx-lm's models with the engine's adapters."""

from __future__ import annotations

from collections.abc import Sequence

from graft_scheduler.anatomy import (
    Activation,
    Attention,
    Block,
    Experts,
    Mlp,
    Norm,
    Recurrence,
)
from graft_scheduler.memory import kernels
from graft_scheduler.memory import operations as op
from graft_scheduler.memory.arrays import Array, caused
from graft_scheduler.memory.layers import FLOAT32, Mode, Parameters, linears, norm


def forward_block(block: Block, x: Array, own: Parameters) -> Array:
    """One layer: mixer and MLP with their norms and residual sums."""
    hidden = x.shape[-1]
    if block.is_parallel:
        read = norm(x, block.norm, "input_norm", own)
        mixed = mix(block.mixer, read, own)
        assert block.feed is not None
        if block.normalises_twice:
            read = norm(x, block.norm, "feed_norm", own)
        fed = feed(block.feed, read, own)
        return op.add(op.add(mixed, fed), x)
    read = norm(x, block.norm, "input_norm", own) if block.is_prenormed else x
    mixed = mix(block.mixer, read, own)
    if block.is_sandwiched:
        mixed = norm(mixed, block.norm, "post_mixer_norm", own)
    h = op.add(x, mixed)
    if block.feed is None:
        return h
    read = norm(h, block.norm, "feed_norm", own) if block.is_prenormed else h
    fed = feed(block.feed, read, own)
    if block.is_sandwiched:
        fed = norm(fed, block.norm, "post_feed_norm", own)
    assert fed.shape[-1] == hidden
    return op.add(h, fed)


def mix(mixer: Attention | Recurrence, x: Array, own: Parameters) -> Array:
    if isinstance(mixer, Recurrence):
        return _recur(mixer, x, own)
    rows, length, hidden = x.shape
    asked = mixer.query_width * (2 if mixer.is_gated else 1)
    widths = [asked, mixer.key_width, mixer.value_width]
    if mixer.is_fused:
        (joined,) = linears([("qkv_proj", sum(widths), mixer.has_bias)], x, own)
        queries, keys, values = op.split(joined, widths)
    else:
        names = [
            ("q_proj", widths[0], mixer.has_bias),
            ("k_proj", widths[1], mixer.has_bias),
            ("v_proj", widths[2], mixer.has_bias),
        ]
        queries, keys, values = linears(names, x, own)
    gate = None
    if mixer.is_gated:
        queries, gate = op.split(queries, [mixer.query_width, mixer.query_width])
    queries = _heads(queries, mixer.heads, mixer.head_dim)
    keys = _heads(keys, mixer.kv_heads, mixer.head_dim)
    values = _heads(values, mixer.kv_heads, mixer.value_dim)
    if mixer.has_head_norms:
        queries = norm(queries, Norm.RMS, "q_norm", own)
        keys = norm(keys, Norm.RMS, "k_norm", own)
    queries = _rotate(queries, mixer.rotated, own.mode)
    keys = _rotate(keys, mixer.rotated, own.mode)
    attended = _attend(mixer, queries, keys, values, own.mode)
    flat = op.copied(attended, (rows, length, mixer.output_width))
    if gate is not None:
        flat = op.multiply(flat, op.sigmoid(op.copied(gate, flat.shape)))
    (out,) = linears([("o_proj", hidden, mixer.has_output_bias)], flat, own)
    return out


def _heads(array: Array, heads: int, width: int) -> Array:
    """(rows, length, heads * width) as (rows, heads, length, width), which lies in another order."""
    rows, length, _ = array.shape
    return op.strided(array, (rows, heads, length, width))


def _rotate(array: Array, rotated: int, mode: Mode) -> Array:
    rows, heads, length, width = array.shape
    if not rotated:
        return array
    if mode.is_fused:
        return kernels.rotation(array)
    half = (rows, heads, length, rotated // 2)
    table = op.made_of([op.ready((length,), FLOAT32)], (length, rotated // 2), FLOAT32)
    cos, sin = op.free_unary(table), op.free_unary(table)
    first, second = op.part(array, half), op.part(array, half)
    turned = [
        op.subtract(op.multiply(first, cos), op.multiply(second, sin)),
        op.add(op.multiply(first, sin), op.multiply(second, cos)),
    ]
    if rotated < width:
        turned.append(op.part(array, (rows, heads, length, width - rotated)))
    return op.concatenate(turned, array.shape)


def _attend(mixer: Attention, queries: Array, keys: Array, values: Array, mode: Mode) -> Array:
    if mode.is_fused and not mixer.is_plain:
        return _attend_fused(mixer, queries, keys, values, mode)
    return _attend_plainly(mixer, queries, keys, values, mode)


def _attend_plainly(mixer: Attention, queries: Array, keys: Array, values: Array, mode: Mode) -> Array:
    rows, heads, length, width = queries.shape
    groups, kv = heads // mixer.kv_heads, mixer.kv_heads
    scaled = op.multiply(queries, op.SCALAR)
    if groups > 1:
        scaled = op.view(scaled, (rows, kv, groups, length, width))
        keys = op.view(keys, (rows, kv, 1, length, width))
        values = op.view(values, (rows, kv, 1, length, mixer.value_dim))
    turned = op.turned(keys)
    turned = op.broadcast(turned, (*scaled.shape[:-2], *turned.shape[-2:]))
    with caused("attention_scores"):
        weights = _weigh(mixer, op.matmul(scaled, turned), mode)
    values = op.broadcast(values, (*weights.shape[:-2], *values.shape[-2:]))
    found = op.matmul(weights, values)
    return op.view(found, (rows, heads, length, mixer.value_dim))


def _weigh(mixer: Attention, scores: Array, mode: Mode) -> Array:
    """From scores (rows, ..., length, length) to the shares that values are mixed by."""
    rows, length = scores.shape[0], scores.shape[-1]
    if mixer.softcap:
        scores = op.multiply(op.tanh(op.divide(scores, op.SCALAR)), op.SCALAR)
    if mixer.is_plain or _has_mask(mixer, length, mode):
        mask = op.ready((rows, 1, length, length) if mode.is_packed else (length, length), 1)
    else:
        mask = op.made_of([op.ready((length,), FLOAT32)], (length, length), 1)
    if len(mask.shape) == 4 and len(scores.shape) == 5:
        mask = op.view(mask, (rows, 1, 1, length, length))
    return op.softmax(op.where(mask, scores, op.SCALAR))


def _has_mask(mixer: Attention, length: float, mode: Mode) -> bool:
    """Whether something else than the causal order says who sees whom."""
    return mode.is_packed or (mixer.window is not None and length > mixer.window)


def _attend_fused(mixer: Attention, queries: Array, keys: Array, values: Array, mode: Mode) -> Array:
    """One primitive; its gradient is one too where the head's width allows it, else the plain one's."""
    inputs = [queries, keys, values]
    rows, heads, length, _ = queries.shape
    shape = (rows, heads, length, mixer.value_dim)
    if mixer.head_dim in mode.fused_attention_dims and mixer.head_dim == mixer.value_dim:
        if mode.adds_masks and _has_mask(mixer, length, mode):
            with caused("attention_scores"):
                mask = op.made_of(
                    [op.ready((length, length), 1)], (rows, heads, length, length), mode.itemsize
                )
            inputs.append(mask)
        return kernels.attention(inputs, shape)

    def plain(given: Sequence[Array]) -> list[Array]:
        return [_attend_plainly(mixer, given[0], given[1], given[2], mode)]

    return kernels.with_fallback(inputs, shape, plain)


def _recur(mixer: Recurrence, x: Array, own: Parameters) -> Array:
    rows, length, hidden = x.shape
    outs = linears([(f"in_proj_{i}", width, False) for i, width in enumerate(mixer.projected)], x, own)
    joined = op.concatenate(list(outs), (rows, length, sum(mixer.projected)))
    current = joined
    for _ in range(round(mixer.kept / 3)):
        current = op.multiply(op.sigmoid(current), current)
    for number, (inputs, outputs) in enumerate(mixer.between):
        read = op.part(current, (rows, length, inputs))
        (made,) = linears([(f"between_{number}", outputs, False)], read, own)
        current = op.concatenate([current, made], (rows, length, current.shape[-1] + outputs))
    inner = op.part(current, (rows, length, min(mixer.inner, current.shape[-1])))
    if inner.shape[-1] < mixer.inner:
        inner = op.concatenate([inner, inner], (rows, length, mixer.inner))
    (out,) = linears([("out_proj", hidden, False)], inner, own)
    return out


def feed(mlp: Mlp | Experts, x: Array, own: Parameters) -> Array:
    if isinstance(mlp, Experts):
        return _feed_experts(mlp, x, own)
    hidden = x.shape[-1]
    if mlp.activation.is_gated:
        if mlp.is_fused:
            (joined,) = linears([("gate_up_proj", 2 * mlp.width, mlp.has_bias)], x, own)
            gate, up = op.split(joined, [mlp.width, mlp.width])
        else:
            names = [("gate_proj", mlp.width, mlp.has_bias), ("up_proj", mlp.width, mlp.has_bias)]
            gate, up = linears(names, x, own)
        middle = gated(mlp.activation, gate, up, own.mode)
    else:
        (up,) = linears([("up_proj", mlp.width, mlp.has_bias)], x, own)
        middle = activated(mlp.activation, up)
    (out,) = linears([("down_proj", hidden, mlp.has_bias)], middle, own)
    return out


def gated(activation: Activation, gate: Array, up: Array, mode: Mode) -> Array:
    if activation is Activation.SWIGLU and mode.is_fused:
        return kernels.frugal_swiglu(gate, up)
    if activation is Activation.SWIGLU:
        return op.multiply(op.multiply(gate, op.sigmoid(gate)), up)
    inner = Activation.ERF_GELU if activation is Activation.ERF_GEGLU else Activation.GELU
    return op.multiply(activated(inner, gate), up)


def activated(activation: Activation, x: Array) -> Array:
    if activation is Activation.GELU:
        inner = op.multiply(op.SCALAR, op.add(x, op.multiply(op.SCALAR, op.cube(x))))
        return op.multiply(op.multiply(op.SCALAR, x), op.add(op.SCALAR, op.tanh(inner)))
    if activation is Activation.ERF_GELU:
        share = op.add(op.SCALAR, op.erf(op.divide(x, op.SCALAR)))
        return op.divide(op.multiply(x, share), op.SCALAR)
    if activation is Activation.RELU2:
        return op.square(op.relu(x))
    return op.multiply(x, op.sigmoid(x))


def _feed_experts(experts: Experts, x: Array, own: Parameters) -> Array:
    """As mlx-lm's `SwitchGLU`. Small arrays are there for their place in MLX's order."""
    rows, length, hidden = x.shape
    asked = (rows, length, experts.per_token)
    flat = op.view(op.view(x, (rows, length, 1, 1, hidden)), (rows * length, 1, hidden))
    gates = _route(experts, x, own)
    weights = op.softmax(gates)
    best = op.made_of([op.unary(gates)], gates.shape, FLOAT32)
    chosen = op.stop_gradient(op.detached(best, asked))
    scores = op.gather([weights, chosen], asked, own.mode.itemsize)
    out = _feed_sorted(experts, flat, chosen, own)
    each = op.view(op.view(out, (*asked, 1, hidden)), (*asked, hidden))
    weighted = op.multiply(each, op.view(scores, (*asked, 1)))
    y = op.view(op.total(weighted, -2), (rows, length, hidden))
    if experts.shared is None:
        return y
    scope, own.scope = own.scope, f"{own.scope}shared_expert."
    shared = feed(experts.shared, x, own)
    own.scope = scope
    if experts.has_shared_gate:
        (share,) = linears([("shared_expert_gate", 1, False)], x, own)
        shared = op.multiply(op.sigmoid(share), shared)
    return op.add(y, shared)


def _feed_sorted(experts: Experts, x: Array, chosen: Array, own: Parameters) -> Array:
    """Every token (n, 1, hidden) through each of its experts: sorted by them, and back."""
    mlp, itemsize, hidden = experts.mlp, own.mode.itemsize, x.shape[-1]
    count = (x.shape[0] * experts.per_token,)
    whole, flat = (*count, 1, 1, hidden), (*count, 1, hidden)
    asked = op.detached(op.stop_gradient(chosen), count)
    order = op.made_of([asked], count, FLOAT32)
    tokens = op.made_of([order, op.detached(op.SCALAR, count)], count, FLOAT32)
    read = op.view(op.gather([x, tokens], whole, itemsize), flat)
    places = op.detached(op.made_of([asked, order], count, FLOAT32), count)
    up = _expert_linear("experts.up_proj", read, mlp.width, experts, places, own)
    gate = _expert_linear("experts.gate_proj", read, mlp.width, experts, places, own)
    middle = gated(mlp.activation, gate, up, own.mode)
    out = _expert_linear("experts.down_proj", middle, hidden, experts, places, own)
    back = op.made_of([order], count, FLOAT32)
    return op.view(op.gather([out, back], whole, itemsize), flat)


def _route(experts: Experts, x: Array, own: Parameters) -> Array:
    """How much each expert is meant, for every token."""
    if experts.is_router_linear:
        return linears([("gate", experts.count, experts.mlp.has_bias)], x, own)[0]
    return op.matmul(x, op.turned(own.weight("gate.weight", (experts.count, x.shape[-1]))))


def _expert_linear(
    name: str, x: Array, outputs: float, experts: Experts, chosen: Array, own: Parameters
) -> Array:
    inputs = x.shape[-1]
    weight = op.turned(own.weight(name, (experts.count, outputs, inputs)))
    y = kernels.gathered_matmul(x, weight, outputs, chosen)
    if experts.mlp.has_bias:
        bias = own.weight(f"{name}.bias", (experts.count, outputs))
        y = op.add(y, op.gather([bias, chosen], y.shape, y.itemsize))
    if not own.has_adapter(name):
        return y
    a = own.adapter(f"{name}.lora_a", (experts.count, own.rank, inputs))
    b = own.adapter(f"{name}.lora_b", (experts.count, outputs, own.rank))
    z = kernels.gathered_matmul(op.astype(x, own.mode.branch), op.turned(a), own.rank, chosen)
    z = kernels.gathered_matmul(z, op.turned(b), outputs, chosen)
    return op.add(y, op.astype(op.multiply(op.SCALAR, z), y.itemsize))
