"""Families (`model_type`) by what neither keys of a config nor names of tensors tell of them."""

from __future__ import annotations

KNOWN = frozenset(
    [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "phi",
        "phi3",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmo2",
        "olmo3",
        "olmoe",
        "cohere",
        "cohere2",
        "gpt2",
        "gpt_neox",
        "starcoder2",
        "stablelm",
        "smollm3",
        "granite",
        "granitemoe",
        "glm",
        "glm4",
        "helium",
        "internlm2",
        "internlm3",
        "exaone",
        "exaone4",
        "seed_oss",
        "mimo",
        "minicpm",
        "ernie4_5",
        "hunyuan_v1_dense",
        "nemotron",
        "phimoe",
        "dots1",
        "gpt_oss",
        "qwen",
        "ministral3",
        "gpt_bigcode",
        "deepseek",
        "glm4_moe",
    ]
)
TOKEN_BY_TOKEN = frozenset(["dbrx"])
"""mlx-lm computes their experts for each token by itself."""
LAYER_NORMED = frozenset(
    [
        "gpt2",
        "gpt_neox",
        "gpt_bigcode",
        "gptj",
        "phi",
        "phixtral",
        "phi3small",
        "phimoe",
        "starcoder2",
        "stablelm",
        "cohere",
        "cohere2",
        "dbrx",
        "olmo",
        "nemotron",
    ]
)
UNGATED = frozenset(
    [
        "gpt2",
        "gpt_neox",
        "gpt_bigcode",
        "gptj",
        "phi",
        "phixtral",
        "starcoder2",
        "nemotron",
        "nemotron_h",
        "apertus",
        "nanochat",
        "rwkv7",
    ]
)
FUSED_QUERIES = frozenset(
    [
        "phi3",
        "phi3small",
        "gpt2",
        "gpt_neox",
        "gpt_bigcode",
        "qwen",
        "lille-130m",
        "openelm",
        "dbrx",
        "plamo2",
        "plamo3",
        "afm7",
        "phixtral",
        "bailing_moe",
        "hunyuan",
    ]
)
FUSED_GATES = frozenset(["phi3", "glm", "glm4", "plamo2", "plamo3"])
HEAD_NORMED = frozenset(
    [
        "qwen3",
        "qwen3_moe",
        "qwen3_next",
        "gemma3",
        "gemma3_text",
        "olmo2",
        "olmo3",
        "olmoe",
        "exaone4",
        "hunyuan_v1_dense",
        "lfm2",
        "lfm2_moe",
        "nanochat",
        "qwen3_5",
        "apertus",
    ]
)
SANDWICHED = frozenset(
    ["gemma2", "gemma3", "gemma3_text", "gemma3n", "olmo2", "olmo3", "exaone4", "glm4", "plamo2", "plamo3"]
)
POSTNORMED = frozenset(["olmo2", "olmo3", "exaone4"])
"""Nothing is normalised before it is read, only what was made of it."""
PARALLEL = frozenset(["phi", "phixtral", "gptj", "cohere", "cohere2", "gpt_neox"])
NORMED_APART = frozenset(["gpt_neox"])
"""Of those, the ones whose mixer and MLP have norms of their own."""
UNGROUPED = frozenset(["gpt_neox", "gptj", "gpt2", "olmo", "phixtral", "qwen"])
"""Whatever a config says of heads of keys and values, there are as many as of queries."""
ERF_GELU = frozenset(["gemma", "gpt_bigcode", "starcoder2"])
PLAIN_ATTENTION = frozenset({"gemma2"})
SCALED_EMBEDDINGS = frozenset(
    ["gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "granite", "granitemoe", "minicpm"]
)
BIASED_QUERIES = frozenset(
    [
        "qwen2",
        "qwen2_moe",
        "gpt2",
        "gpt_neox",
        "phi",
        "starcoder2",
        "qwen",
        "gpt_bigcode",
        "seed_oss",
        "dots1",
    ]
)
BIASED_OUTPUTS = frozenset(["gpt2", "gpt_neox", "phi", "starcoder2", "gpt_bigcode"])
BIASED_MLPS = frozenset(["gpt2", "gpt_neox", "phi", "starcoder2", "gpt_bigcode", "gptj", "gpt_oss"])
POSITIONED = frozenset(["gpt2", "gpt_bigcode"])
"""Positions are a table that is added to the embeddings; nothing is rotated."""
GATED_ATTENTION = frozenset(["qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text"])
SHARED_GATES = frozenset(["qwen2_moe", "qwen3_next", "qwen3_5_moe"])
RECURRENT_KINDS = frozenset({"linear_attention", "conv", "mamba", "recurrent", "M"})
