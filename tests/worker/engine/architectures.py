"""Tiny random models of the architectures that the engine has to be right on."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path

VOCABULARY = 262
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 5.0},
    "gemma3_text": {**GEMMA, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {"tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "qwen3_moe": {
        **EXPERTS,
        "head_dim": 16,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "mamba2": {
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5,
        "time_step_limit": [0.0, 10.0],
        "time_step_rank": 2,
    },
    "qwen3_next": {
        **EXPERTS,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [],
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 2,
    },
}
RECURRENT = ("mamba2", "qwen3_next")
MODULES = {"mistral": "llama"}


def make_architecture(name: str, seed: int = 7, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A random model and its config; every array is drawn, norms too, so that all of it matters."""
    config = {"model_type": name, **COMMON, **ARCHITECTURES[name], **changes}
    module = import_module(f"mlx_lm.models.{MODULES.get(name, name)}")
    mx.random.seed(seed)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map_with_path(_jitter, model.parameters()))
    mx.eval(model.parameters())
    return model, config


def save_architecture(folder: Path, name: str, **changes: Any) -> None:
    """The model as files that `mlx_lm.load` reads."""
    model, config = make_architecture(name, **changes)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))


def _jitter(path: str, value: mx.array) -> mx.array:
    if "norm" in path:
        return value + 0.1 * mx.random.normal(value.shape)
    return value
