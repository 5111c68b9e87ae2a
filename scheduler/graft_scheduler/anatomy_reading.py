"""From a model's config, and the names and shapes of its tensors where they are known, to its anatomy.

What a family does is told by its config's keys and its tensors' names rather than by a list of
families, so that most new ones are understood; of the others the nearest known is taken, and said so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from graft_scheduler.anatomy import (
    Activation,
    Anatomy,
    Attention,
    Block,
    Experts,
    Mlp,
    Norm,
    Recurrence,
)
from graft_scheduler.anatomy_families import (
    BIASED_MLPS,
    BIASED_OUTPUTS,
    BIASED_QUERIES,
    ERF_GELU,
    FUSED_GATES,
    FUSED_QUERIES,
    GATED_ATTENTION,
    HEAD_NORMED,
    KNOWN,
    LAYER_NORMED,
    NORMED_APART,
    PARALLEL,
    PLAIN_ATTENTION,
    POSITIONED,
    POSTNORMED,
    RECURRENT_KINDS,
    SANDWICHED,
    SCALED_EMBEDDINGS,
    SHARED_GATES,
    TOKEN_BY_TOKEN,
    UNGATED,
)

GATED_NAMES = r"gate|w1|w3|\.v1|up_proj|c_fc_1|swi"
"""Of an MLP's tensors, those that only gated ones have; where they are known at all."""


def read_anatomy(
    config: Mapping[str, Any], sizes: Mapping[str, int], tensors: Iterable[str], *, is_tied: bool
) -> Anatomy:
    """The model of this flat `config`; `sizes` are what `basemodels` reads of it."""
    kind = str(config.get("model_type", ""))
    config, sizes = _unnested(config, sizes)
    reader = _Reader(kind, config, sizes, tensors)
    blocks = tuple(reader.block(number) for number in range(sizes["num_layers"]))
    return Anatomy(
        hidden=sizes["hidden_size"],
        vocabulary=sizes["vocab_size"],
        blocks=blocks,
        norm=reader.norm,
        is_tied=is_tied,
        softcap=bool(config.get("final_logit_softcapping")),
        scales_embeddings=kind in SCALED_EMBEDDINGS,
        doubt=reader.doubt(blocks),
        positions=_count(config, "n_positions", "n_ctx") if kind in POSITIONED else 0,
    )


def _unnested(
    config: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[Mapping[str, Any], Mapping[str, int]]:
    """DBRX keeps its sizes in two objects of their own."""
    feed, attention = config.get("ffn_config"), config.get("attn_config")
    if not isinstance(feed, dict) or not isinstance(attention, dict):
        return config, sizes
    width = _count(feed, "ffn_hidden_size")
    found = {
        "num_kv_heads": _count(attention, "kv_n_heads"),
        "num_experts": _count(feed, "moe_num_experts"),
        "experts_per_token": _count(feed, "moe_top_k"),
        "intermediate_size": width,
    }
    return {**config, "intermediate_size": width}, {**sizes, **{k: v for k, v in found.items() if v}}


def _count(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that is a number; 0 without."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0


class _Reader:
    """Answers single questions about one model."""

    def __init__(
        self, kind: str, config: Mapping[str, Any], sizes: Mapping[str, int], tensors: Iterable[str]
    ) -> None:
        self.kind, self.config, self.sizes = kind, config, sizes
        self.parts = {re.sub(r"\.\d+\.", ".N.", name) for name in tensors}
        layered = kind in LAYER_NORMED or self._has(r"layer_?norm\.bias|norm1\.bias|ln_1\.bias")
        self.norm = Norm.LAYER if layered else Norm.RMS

    def doubt(self, blocks: tuple[Block, ...]) -> str | None:
        """What is not known for certain of this model."""
        if any(isinstance(block.mixer, Recurrence) for block in blocks):
            return f"of {self.kind}, what lies between a recurrent layer's projections is only estimated"
        if self.kind in TOKEN_BY_TOKEN:
            return f"the experts of {self.kind} are computed token by token: that takes several times as much"
        if self.config.get("kv_lora_rank"):
            return f"the compressed keys and values of {self.kind} are counted as full ones"
        if self.kind in KNOWN:
            return None
        return f"the family {self.kind} is not known here, and is taken for what its tensors look like"

    def block(self, number: int) -> Block:
        mixer = self._recurrence() if self._is_recurrent(number) else self._attention(number)
        feed = None if self.kind in {"mamba", "mamba2"} else self._feed(number)
        sandwiched = self.kind in SANDWICHED or self._has(r"post_feedforward_layernorm|post_mlp_layernorm")
        return Block(
            mixer,
            feed,
            self.norm,
            is_sandwiched=sandwiched,
            is_prenormed=self.kind not in POSTNORMED,
            is_parallel=self._is_parallel(),
            normalises_twice=self.kind in NORMED_APART,
        )

    def _has(self, pattern: str) -> bool:
        return any(re.search(pattern, part) for part in self.parts)

    def _is_parallel(self) -> bool:
        if self.kind in {"stablelm", "gpt_neox"}:
            return bool(self.config.get("use_parallel_residual", self.kind == "gpt_neox"))
        return self.kind in PARALLEL

    def _is_recurrent(self, number: int) -> bool:
        if self.kind in {"mamba", "mamba2"}:
            return True
        attending = self.config.get("full_attn_idxs")
        if isinstance(attending, (list, tuple)):
            return number not in attending
        kinds = self.config.get("layer_types") or self.config.get("layers_block_type") or ()
        if isinstance(kinds, (list, tuple)) and number < len(kinds):
            return str(kinds[number]) in RECURRENT_KINDS
        every = self.config.get("full_attention_interval")
        return isinstance(every, int) and every > 1 and (number + 1) % every != 0

    def _attention(self, number: int) -> Attention:
        sizes, config = self.sizes, self.config
        head_dim, value_dim = sizes["head_dim"], sizes["head_dim"]
        kv_heads = 1 if self._flag("multi_query", self.kind == "gpt_bigcode") else sizes["num_kv_heads"]
        if config.get("kv_lora_rank"):
            head_dim = (
                int(config.get("qk_nope_head_dim", 0)) + int(config.get("qk_rope_head_dim", 0)) or head_dim
            )
            value_dim = int(config.get("v_head_dim", head_dim))
            kv_heads = sizes["num_heads"]
        fused = self.kind in FUSED_QUERIES or self._has(r"qkv(_proj)?\.|query_key_value|c_attn")
        return Attention(
            heads=sizes["num_heads"],
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            rotated=self._rotated(head_dim),
            window=self._window(number),
            has_head_norms=self.kind in HEAD_NORMED or self._has(r"q_norm|q_layernorm|query_layernorm"),
            is_fused=fused,
            softcap=bool(config.get("attn_logit_softcapping")) and self.kind in PLAIN_ATTENTION,
            is_plain=self.kind in PLAIN_ATTENTION,
            has_bias=self._flag("attention_bias", self.kind in BIASED_QUERIES) or self._has(r"q_proj\.bias"),
            has_output_bias=self._biases_output(),
            is_gated=self.kind in GATED_ATTENTION,
        )

    def _biases_output(self) -> bool:
        if self.parts:
            return self._has(r"att.*\.(o_proj|out_proj|dense|c_proj)\.bias")
        return self.kind in BIASED_OUTPUTS or self._flag("attention_bias", False)

    def _flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name)
        return value if isinstance(value, bool) else default

    def _rotated(self, head_dim: int) -> int:
        if self.kind in POSITIONED:
            return 0
        share = self.config.get("partial_rotary_factor") or self.config.get("rotary_pct") or 1.0
        if self.kind == "gpt_neox":
            share = self.config.get("rotary_pct", 0.25)
        rotated = int(head_dim * float(share)) if isinstance(share, (int, float)) else head_dim
        return rotated - rotated % 2

    def _window(self, number: int) -> int | None:
        window = self.config.get("sliding_window")
        if not isinstance(window, int) or self.config.get("use_sliding_window") is False:
            return None
        kinds = self.config.get("layer_types")
        if isinstance(kinds, (list, tuple)) and number < len(kinds):
            return window if str(kinds[number]).startswith("sliding") else None
        every = self.config.get("sliding_window_pattern")
        if isinstance(every, int) and every > 0:
            return None if (number + 1) % every == 0 else window
        return window

    def _recurrence(self) -> Recurrence:
        config, hidden = self.config, self.sizes["hidden_size"]
        if "linear_num_value_heads" in config:  # gated delta nets
            keys = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
            values = int(config["linear_num_value_heads"]) * int(config["linear_value_head_dim"])
            return Recurrence(
                (2 * keys + 2 * values, 2 * int(config["linear_num_value_heads"])), values, kept=12.0
            )
        if config.get("full_attn_idxs") or "conv" in (config.get("layer_types") or ()):  # LFM2's
            return Recurrence((3 * hidden,), hidden, kept=3.0)
        inner = _count(config, "intermediate_size", "mamba_d_inner") or 2 * hidden
        state = _count(config, "state_size") or 128
        if self.kind == "mamba":
            rank = _count(config, "time_step_rank") or -(-hidden // 16)
            between = ((inner, rank + 2 * state), (rank, inner))
            return Recurrence((2 * inner,), inner, kept=12.0, between=between)
        heads = 0
        if self.kind == "mamba2":
            heads = _count(config, "num_heads")
            inner = heads * _count(config, "head_dim") or inner
        groups = _count(config, "n_groups") or 1
        return Recurrence((2 * inner + 2 * groups * state + heads,), inner, kept=12.0)

    def _feed(self, number: int) -> Mlp | Experts:
        dense = Mlp(self._dense_width(), self._activation(), self._fuses_gate(), self._biased_mlp())
        sizes, config = self.sizes, self.config
        if sizes["num_experts"] <= 1 or self._is_dense_layer(number):
            return dense
        expert = Mlp(sizes["intermediate_size"], self._activation(), has_bias=self._biased_mlp())
        shared_width = config.get("shared_expert_intermediate_size")
        if not shared_width and config.get("n_shared_experts"):
            shared_width = int(config["n_shared_experts"]) * sizes["intermediate_size"]
        shared = Mlp(int(shared_width), self._activation()) if shared_width else None
        return Experts(
            sizes["num_experts"],
            sizes["experts_per_token"],
            expert,
            shared,
            has_shared_gate=shared is not None and self.kind in SHARED_GATES,
            is_router_linear="n_routed_experts" not in config,
        )

    def _dense_width(self) -> int:
        if "block_ff_dim" in self.config or "block_auto_adjust_ff_dim" in self.config:
            return self._adjusted_width()
        if self.kind == "qwen":
            return _count(self.config, "intermediate_size") // 2
        for name in ("intermediate_size", "n_inner", "ffn_dim", "d_ff"):
            value = self.config.get(name)
            if isinstance(value, list) and value:
                value = max(value)
            if isinstance(value, int) and value > 0:
                return value
        return self.sizes["intermediate_size"]

    def _adjusted_width(self) -> int:
        """LFM2's, which may follow from another width."""
        config = self.config
        width = _count(config, "block_ff_dim", "intermediate_size")
        if not config.get("block_auto_adjust_ff_dim"):
            return width
        width = int(float(config.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        multiple = _count(config, "block_multiple_of") or 1
        return -(-width // multiple) * multiple

    def _is_dense_layer(self, number: int) -> bool:
        config = self.config
        if number in (config.get("mlp_only_layers") or ()):
            return True
        if number < int(config.get("first_k_dense_replace") or 0):
            return True
        step = config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1
        if isinstance(step, list):
            return number < len(step) and not step[number]
        return isinstance(step, int) and step > 1 and (number + 1) % step != 0

    def _activation(self) -> Activation:
        name = str(
            self.config.get("hidden_activation")
            or self.config.get("hidden_act")
            or self.config.get("activation_function")
            or self.config.get("hidden_activation_function")
            or ""
        )
        if self.kind in UNGATED or (self.parts and not self._has(GATED_NAMES)):
            if "relu" in name:
                return Activation.RELU2
            if name in {"silu", "swish"}:
                return Activation.SILU
            return Activation.ERF_GELU if self.kind in ERF_GELU else Activation.GELU
        if "gelu" in name or self.kind.startswith("gemma"):
            return Activation.ERF_GEGLU if self.kind in ERF_GELU else Activation.GEGLU
        return Activation.SWIGLU

    def _fuses_gate(self) -> bool:
        return self.kind in FUSED_GATES or self._has(r"mlp\.gate_up_proj")

    def _biased_mlp(self) -> bool:
        return self.kind in BIASED_MLPS or self._flag("mlp_bias", False)
