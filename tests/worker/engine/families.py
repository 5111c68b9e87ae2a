"""More families of models, for what only has to be built: their configs beside the common sizes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mlx import nn

from tests.worker.engine.architectures import ARCHITECTURES, COMMON, EXPERTS, MODULES

FAMILIES: dict[str, dict[str, Any]] = {
    **ARCHITECTURES,
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt_neox": {
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.5,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "tie_word_embeddings": False,
    },
    "gpt2": {
        "n_ctx": 512,
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "intermediate_size": None,
    },
    "gpt_bigcode": {
        "n_embd": 32,
        "n_inner": 128,
        "n_head": 2,
        "n_layer": 2,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": None,
        "intermediate_size": None,
    },
    "starcoder2": {},
    "stablelm": {
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "cohere": {},
    "cohere2": {"head_dim": 16, "sliding_window": 8},
    "olmo2": {},
    "olmo3": {
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granite": {
        "logits_scaling": 1.0,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "granitemoe": {
        "logits_scaling": 1.0,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "smollm3": {},
    "glm": {"head_dim": 16},
    "glm4": {
        "head_dim": 16,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
    },
    "helium": {"head_dim": 16, "attention_bias": False, "mlp_bias": False},
    "internlm2": {"bias": False, "tie_word_embeddings": False},
    "internlm3": {"tie_word_embeddings": False},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 40, "tie_word_embeddings": False},
    "deepseek": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 24,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 1,
        "tie_word_embeddings": False,
    },
    "deepseek_v2": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "rope_scaling": {"type": "yarn", "factor": 1.0, "mscale_all_dim": 0.0},
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 2,
        "first_k_dense_replace": 1,
        "tie_word_embeddings": False,
    },
    "dbrx": {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "tie_word_embeddings": False,
    },
    "exaone": {"num_layers": 2, "layer_norm_epsilon": 1e-5},
    "exaone4": {
        "head_dim": 16,
        "rope_scaling": None,
        "sliding_window": None,
        "sliding_window_pattern": None,
    },
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "tie_word_embeddings": False},
    "phimoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0] * 8,
            "short_factor": [1.0] * 8,
            "long_mscale": 1.0,
            "short_mscale": 1.0,
        },
    },
    "seed_oss": {"head_dim": 16, "attention_bias": True, "attention_out_bias": False},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
    },
    "ernie4_5": {"head_dim": 16, "use_bias": False},
    "hunyuan_v1_dense": {"head_dim": 16},
    "mimo": {"tie_word_embeddings": False, "num_nextn_predict_layers": 0},
    "minicpm": {"dim_model_base": 32, "scale_depth": 1.0, "scale_emb": 1.0},
    "gemma": {"head_dim": 16},
    "gemma3": {
        "text_config": {
            "model_type": "gemma3_text",
            **{name: size for name, size in COMMON.items() if name != "tie_word_embeddings"},
            **ARCHITECTURES["gemma3_text"],
        }
    },
    "ministral3": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 512,
        },
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": 32,
    },
    "qwen": {
        "kv_channels": 16,
        "layer_norm_epsilon": 1e-5,
        "no_bias": True,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "intermediate_size": 96,
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_ff_dim": 48,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    },
    "apertus": {"mlp_bias": False, "attention_bias": False, "post_norm": False, "qk_norm": True},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_qk_norm": False,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
    "mamba": {
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 2,
    },
}


def build_family(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model whose arrays may never be computed, and its config."""
    config = {"model_type": name, **COMMON, **FAMILIES[name]}
    config = {key: value for key, value in config.items() if value is not None or key in REQUIRED_NONE}
    module = import_module(f"mlx_lm.models.{MODULES.get(name, name)}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    return model, config


REQUIRED_NONE = frozenset({"rope_scaling", "sliding_window", "sliding_window_pattern"})
