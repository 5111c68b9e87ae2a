"""What a block of a model computes, as far as its memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Norm(StrEnum):
    RMS = "rms"
    LAYER = "layer"


class Activation(StrEnum):
    """Of an MLP's middle; the first three multiply a gate's with another projection."""

    SWIGLU = "swiglu"
    GEGLU = "geglu"
    ERF_GEGLU = "erf_geglu"
    GELU = "gelu"
    """Approximated with a tanh."""
    ERF_GELU = "erf_gelu"
    RELU2 = "relu2"
    SILU = "silu"

    @property
    def is_gated(self) -> bool:
        return self in {Activation.SWIGLU, Activation.GEGLU, Activation.ERF_GEGLU}


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with grouped keys and values."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    rotated: int
    """Of a head's width, what is rotated by position; 0 without rotation."""
    window: int | None = None
    has_head_norms: bool = False
    is_fused: bool = False
    """Queries, keys and values come from one product."""
    softcap: bool = False
    is_plain: bool = False
    """Made of single operations, and not of MLX's fused attention, on any device."""
    has_bias: bool = False
    has_output_bias: bool = False
    is_gated: bool = False
    """Queries come with a gate for the output, of their own width (Qwen3-Next)."""

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def value_width(self) -> int:
        return self.kv_heads * self.value_dim

    @property
    def output_width(self) -> int:
        return self.heads * self.value_dim


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A state-space or linear-attention mixer; what lies between its projections is estimated."""

    projected: tuple[int, ...]
    """Output widths of the products that read the block's input."""
    inner: int
    """Width of what the output product reads."""
    kept: float = 8.0
    """Arrays of the projected width that lie between, kept for the backward pass."""
    between: tuple[tuple[int, int], ...] = ()
    """Inputs and outputs of the products that lie between."""


@dataclass(frozen=True, slots=True)
class Mlp:
    width: int
    activation: Activation
    is_fused: bool = False
    """Gate and up come from one product."""
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A router and experts, of which each token passes some; perhaps one that all pass."""

    count: int
    per_token: int
    mlp: Mlp
    shared: Mlp | None = None
    has_shared_gate: bool = False
    """How much of the shared one counts is a product of its own."""
    is_router_linear: bool = True
    """The router is a linear layer, which an adapter fits on; DeepSeek's is only a matrix."""


@dataclass(frozen=True, slots=True)
class Block:
    """One layer of a model."""

    mixer: Attention | Recurrence
    feed: Mlp | Experts | None
    norm: Norm = Norm.RMS
    is_sandwiched: bool = False
    """What mixer and MLP make is normalised too (Gemma 2 and 3, OLMo 2)."""
    is_prenormed: bool = True
    is_parallel: bool = False
    """Mixer and MLP read the same input (Phi, Cohere, GPT-NeoX)."""
    normalises_twice: bool = False
    """Of a parallel block: each has a norm of its own for it (GPT-NeoX)."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model from its embeddings to its logits."""

    hidden: int
    vocabulary: int
    blocks: tuple[Block, ...]
    norm: Norm
    is_tied: bool
    softcap: bool = False
    scales_embeddings: bool = False
    doubt: str | None = None
    """What is only guessed of it; the estimate is wider then."""
    positions: int = 0
    """Rows of a table of positions (GPT-2); 0 where they are rotated."""
