"""Models for tests, from a config and sizes: plain values, no files."""

from __future__ import annotations

from typing import Any

from graft_scheduler.basemodels import BaseModel, WeightFacts, describe

BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 704,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}


def make_model(dtype: str = "float32", tensors: tuple[str, ...] = (), **changes: Any) -> BaseModel:
    """The small Llama with these changes to its config, as if it lay in a folder with a tokenizer."""
    config = {**LLAMA, **changes}
    parameters = count_parameters(config)
    weights = WeightFacts(_stored_bytes(config, parameters, dtype), parameters, dtype, tensors)
    return describe(config, weights, {"tokenizer.json"}, True, "a test's model")


def count_parameters(config: dict[str, Any]) -> int:
    """Of a Llama with this config, or one like it."""
    hidden, experts = config["hidden_size"], config.get("num_experts", 1)
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    attention = 2 * hidden * queries + 2 * hidden * keys
    feed = 3 * hidden * config["intermediate_size"] * experts + (hidden * experts if experts > 1 else 0)
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return int(embeddings + config["num_hidden_layers"] * (attention + feed + 2 * hidden) + hidden)


def _stored_bytes(config: dict[str, Any], parameters: int, dtype: str) -> int:
    quantization = config.get("quantization")
    if quantization is None:
        return parameters * BITS[dtype] // 8
    scales = 2 * parameters * BITS[dtype] // 8 // quantization["group_size"]
    return int(parameters * quantization["bits"] // 8 + scales)
