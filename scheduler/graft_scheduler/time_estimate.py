"""How much a job has to compute, and how long that will take: pure functions of plain values."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.chips import guessed_flops_per_second
from graft_scheduler.hyperparameters import Method
from graft_scheduler.jobs import TrainJob
from graft_scheduler.lengths import Lengths
from graft_scheduler.memory import is_target

EVALUATIONS = 10
"""In a job that does not say how often, besides the one before the first step."""
MULTIPLY_ADD = 2
SCORE_PRODUCTS = 2
"""Attention multiplies queries by keys, and scores by values."""


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """How long a job will train."""

    seconds: float
    flops_per_second: float
    basis: str
    """Where the speed comes from, in words."""
    is_measured: bool


def estimate_time(
    flops: float, backend: str, device: str, measured: float | None = None, samples: int = 0
) -> TimeEstimate | None:
    """By the speed that jobs like it had on such a chip; else by the chip's public figures.

    Nothing where neither is known.
    """
    if measured is not None:
        jobs = f"{samples} job{'' if samples == 1 else 's'}"
        return TimeEstimate(flops / measured, measured, f"measured on {jobs} like it", is_measured=True)
    guessed = guessed_flops_per_second(backend, device)
    if guessed is None:
        return None
    source = "a count of its cores" if backend == "cpu" else "the chip's public figures"
    return TimeEstimate(flops / guessed, guessed, f"a guess from {source}", is_measured=False)


def flops(job: TrainJob, model: BaseModel, lengths: Lengths, valid_rows: int | None = None) -> float:
    """Floating-point operations of the whole training, evaluations included; padding is not.

    `lengths` are those that rows probably have. Without `valid_rows`, as many are taken as the job
    would hold out. Counts what gradient checkpointing computes again only where the job demands it.
    """
    token = _Token(job, model, _weighted_length(lengths))
    trained = trained_rows(job, lengths.rows) * lengths.mean
    evaluated = evaluations(job, lengths) * _evaluated_rows(job, lengths, valid_rows) * lengths.mean
    return trained * token.trained() + evaluated * token.forward()


def trained_rows(job: TrainJob, rows: int) -> float:
    """How many rows all steps read together."""
    if job.steps is not None:
        return float(job.steps * job.batch_rows)
    return (job.epochs or 1.0) * rows


def steps(job: TrainJob, rows: int) -> int:
    """Optimizer steps of the job on so many training rows."""
    return max(1, ceil(trained_rows(job, rows) / job.batch_rows))


def evaluations(job: TrainJob, lengths: Lengths) -> int:
    """How often the validation rows are read: before the first step, and on the way."""
    total = steps(job, lengths.rows)
    every = job.evaluation.every or max(1, total // EVALUATIONS)
    return 1 + max(1, total // every)


def _evaluated_rows(job: TrainJob, lengths: Lengths, valid_rows: int | None) -> float:
    share = job.data.valid_fraction
    found = lengths.rows * share / (1 - share) if valid_rows is None else valid_rows
    return found if job.evaluation.rows is None else min(found, job.evaluation.rows)


def _weighted_length(lengths: Lengths) -> float:
    """Of the row that a token stands in, on average: what its attention reads."""
    return sum(one * one for one in lengths.tokens) / sum(lengths.tokens)


@dataclass(frozen=True, slots=True)
class _Token:
    """The operations for one token, in a row of this length."""

    job: TrainJob
    model: BaseModel
    row_tokens: float

    @property
    def trained_share(self) -> float:
        """Of the blocks: those that the backward pass goes through."""
        return min(self.job.adapter.layers or self.model.num_layers, self.model.num_layers) / (
            self.model.num_layers
        )

    @property
    def blocks(self) -> float:
        """Products with the weights of all blocks, of which a token passes some experts only."""
        return MULTIPLY_ADD * active_block_parameters(self.model)

    @property
    def attention(self) -> float:
        width = self.model.num_heads * self.model.head_dim
        return MULTIPLY_ADD * SCORE_PRODUCTS * width * self.row_tokens * self.model.num_layers

    @property
    def head(self) -> float:
        return MULTIPLY_ADD * float(self.model.vocab_size * self.model.hidden_size)

    @property
    def branches(self) -> float:
        """Of the adapters, in the blocks that have them."""
        if self.job.method is Method.FULL:
            return 0.0
        rank, layers = self.job.adapter.trained_rank, self.trained_share * self.model.num_layers
        return MULTIPLY_ADD * rank * layers * _adapted_width(self.job, self.model)

    def forward(self) -> float:
        return self.blocks + self.attention + self.head + self.branches

    def trained(self) -> float:
        """Forward, backward, and what is computed again."""
        is_full = self.job.method is Method.FULL
        share, per_weight = self.trained_share, 2 if is_full else 1
        learns_head = is_full and self.job.adapter.layers is None
        backward = (
            self.blocks * share * per_weight
            + self.attention * share * 2  # both factors of each product get a gradient
            + self.head * (2 if learns_head else 1)
            + self.branches * 2
        )
        again = (self.blocks + self.attention) * share + self.branches
        return self.forward() + backward + (again if self.job.gradient_checkpointing else 0.0)


def active_block_parameters(model: BaseModel) -> float:
    """Parameters outside the embeddings that one token is multiplied by."""
    embeddings = model.vocab_size * model.hidden_size * (1 if model.is_tied else 2)
    expert = 3 * model.hidden_size * model.intermediate_size
    idle = (model.num_experts - min(model.experts_per_token, model.num_experts)) * expert * model.num_layers
    least = 3 * model.hidden_size * model.hidden_size * model.num_layers
    return float(max(model.parameters - embeddings - idle, least))


def _adapted_width(job: TrainJob, model: BaseModel) -> int:
    """Inputs and outputs, together, of the linear layers of a block that get an adapter."""
    hidden, queries = model.hidden_size, model.num_heads * model.head_dim
    keys, mlp = model.num_kv_heads * model.head_dim, model.intermediate_size * model.experts_per_token
    widths = {
        "self_attn.q_proj": hidden + queries,
        "self_attn.k_proj": hidden + keys,
        "self_attn.v_proj": hidden + keys,
        "self_attn.o_proj": queries + hidden,
        "mlp.gate_proj": hidden + mlp,
        "mlp.up_proj": hidden + mlp,
        "mlp.down_proj": mlp + hidden,
    }
    targets = job.adapter.targets
    if targets is None:
        return sum(widths.values())
    named = [name for name in widths if any(is_target(target, name) for target in targets)]
    return sum(widths[name] for name in named) or max(widths.values())
