"""The peak of a job: the dearest of the moments of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graft_scheduler.basemodels import BaseModel
from graft_scheduler.hyperparameters import LossKernel
from graft_scheduler.jobs import TrainJob
from graft_scheduler.memory.cuts import Cut, evaluated_cut, largest_cuts, most_chunk_tokens
from graft_scheduler.memory.moments import (
    Setting,
    Trained,
    gradient_parts,
    loss_parts,
    trained,
    update_parts,
)
from graft_scheduler.memory.passes import Pass
from graft_scheduler.memory.resident import quantised_to, weight_bytes
from graft_scheduler.memory.settings import setting_of
from graft_scheduler.memory.shape import FLOAT32_BYTES, Backend, Shape

CAUSES = (
    "weights",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "attention_scores",
    "logits",
    "workspace",
    "cache",
)
CACHE_SHARE = 10
"""MLX may keep one part in this many of a job's memory as freed buffers, which its peak leaves out."""
MIN_CACHE_BYTES = 32 << 20
MAX_CACHE_BYTES = 2 << 30
MARGINS = {Backend.METAL: 0.05, Backend.CUDA: 0.05, Backend.CPU: 0.0}
"""How much more is allowed for, of all but the weights: kernels of a GPU have workspaces of their own."""
DOUBT_SHARE = 0.25
"""How much more is allowed for, of all but the weights, where a model is only partly understood."""
TRIED_MOMENTS = frozenset({"gradient", "evaluation"})
"""Those that a runner tries before the first step."""
SAMPLE_TOKENS = 63
"""The kernels of the loss are compared on so many tokens before the first step."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """A peak, by what causes it."""

    parts: Mapping[str, int]
    """Bytes by cause; every cause is there, also those of 0 bytes."""
    moment: str = "gradient"
    """When it is reached: `loading`, `check`, `gradient`, `evaluation` or `update`."""
    doubt: str | None = None
    """What of the model is only guessed; the estimate is wider then."""
    untried_bytes: int = 0
    """The peak of the moments that a trial of the dearest micro-batch and evaluation does not reach."""

    @property
    def peak_bytes(self) -> int:
        """What MLX's arrays take, as `mx.get_peak_memory` has it."""
        return sum(self.parts.values()) - self.parts["cache"]

    @property
    def total_bytes(self) -> int:
        """With the buffers that MLX keeps for reuse: what a job has to be given."""
        return sum(self.parts.values())


def estimate_peak(
    model: BaseModel,
    job: TrainJob,
    longest_tokens: int | None = None,
    backend: Backend | None = None,
    shortest_tokens: int = 1,
) -> MemoryEstimate:
    """The most memory that a runner's arrays take while `job` trains on `model`.

    Without a `backend` it is the dearest one's: enough for any host. `longest_tokens` is the data's
    longest row; without it rows are taken to reach `max_length`. A job that leaves its cut to the
    host is taken to compute a whole step at once, with no gradient checkpointing. Where no row is
    much shorter than the longest, all rows of a step are computed together if they fit: one
    gradient lies there then, not two.
    """
    if backend is None:
        each = (estimate_peak(model, job, longest_tokens, one, shortest_tokens) for one in Backend)
        return max(each, key=_total)
    shape = Shape(model, job, backend)
    longest = max(1, min(longest_tokens or job.max_length, job.max_length) - 1)
    setting = setting_of(shape)
    learns = trained(setting)
    trained_at_once = largest_cuts(shape, longest, max(1, min(shortest_tokens - 1, longest)))
    moments = [("gradient", _at_gradient(shape, setting, learns, cut)) for cut in trained_at_once]
    evaluated = evaluated_cut(shape, longest)
    if not any(_covers(one, evaluated) for one in trained_at_once):
        moments.append(("evaluation", _at_evaluation(shape, setting, learns, evaluated)))
    moments += [("loading", _at_loading(shape)), ("update", _at_update(shape, setting, learns))]
    if shape.is_full:  # two gradients of all that learns lie there; of adapters they are small
        moments.append(("check", _at_check(shape, setting, learns)))
    estimates = [_with_margins(shape, parts, moment) for moment, parts in moments]
    untried = max(one.peak_bytes for one in estimates if one.moment not in TRIED_MOMENTS)
    return replace(max(estimates, key=_total), untried_bytes=untried)


def trained_bytes(model: BaseModel, job: TrainJob) -> int:
    """Of what learns, in float32."""
    return trained(setting_of(Shape(model, job, Backend.CPU))).bytes


def estimate_micro_batch(
    model: BaseModel, job: TrainJob, backend: Backend, rows: int, width: int, held_gradients: int = 1
) -> int:
    """The peak of MLX's arrays while the gradient of these lines is computed, in bytes."""
    shape = Shape(model, job, backend)
    setting = setting_of(shape)
    parts = _at_gradient(shape, setting, trained(setting), Cut(rows * width, width, held_gradients))
    return _with_margins(shape, parts, "gradient").peak_bytes


def cache_of(peak_bytes: int) -> int:
    """How much MLX may keep of what was freed, in a job of this peak."""
    return min(max(peak_bytes // CACHE_SHARE, MIN_CACHE_BYTES), MAX_CACHE_BYTES)


def cache_in(budget_bytes: int | None) -> int:
    """The same for a job that is given so much in all; the engine sets it so."""
    return cache_of(0 if budget_bytes is None else budget_bytes * CACHE_SHARE // (CACHE_SHARE + 1))


def _total(estimate: MemoryEstimate) -> int:
    return estimate.total_bytes


def _with_margins(shape: Shape, parts: dict[str, int], moment: str) -> MemoryEstimate:
    doubt = shape.model.anatomy.doubt
    share = (DOUBT_SHARE if doubt is not None else 0.0) + MARGINS[shape.backend]
    parts["workspace"] += round((sum(parts.values()) - parts["weights"]) * share)
    parts["cache"] = cache_of(sum(parts.values()))
    return MemoryEstimate(parts, moment, doubt)


def _at_loading(shape: Shape) -> dict[str, int]:
    """Some of a base that is quantised on load is whole for a while, beside what becomes of it."""
    whole = 0
    if quantised_to(shape) is not None:
        whole = min(shape.model.largest_module, shape.model.parameters) * shape.item_bytes
    return _parts(weights=weight_bytes(shape), workspace=whole)


def _at_gradient(shape: Shape, setting: Setting, learns: Trained, cut: Cut) -> dict[str, int]:
    """Between the loss of the largest micro-batch and the end of its backward pass."""
    one = _pass(shape, cut, recomputes=bool(shape.job.gradient_checkpointing))
    parts = _sum(_resident(shape, learns), gradient_parts(setting, one, is_packed=cut.is_packed))
    parts["gradients"] += learns.bytes * (cut.held_gradients - 1)
    return parts


def _at_evaluation(shape: Shape, setting: Setting, learns: Trained, cut: Cut) -> dict[str, int]:
    return _sum(_resident(shape, learns), loss_parts(setting, _pass(shape, cut)))


def _at_update(shape: Shape, setting: Setting, learns: Trained) -> dict[str, int]:
    """A new copy of all that is trained, and what lies between it and the old one."""
    parts = _resident(shape, learns)
    parts["optimizer"] = 0
    parts["gradients"] = learns.bytes
    return _sum(parts, update_parts(setting, shape.job.optimizer.name))


def _at_check(shape: Shape, setting: Setting, learns: Trained) -> dict[str, int]:
    """Two gradients of a few tokens, by one kernel of the loss and by the other."""
    if shape.job.compute.loss is LossKernel.PLAIN:
        return _parts()
    size = min(SAMPLE_TOKENS, shape.job.max_length)
    chunk = most_chunk_tokens(shape.model.vocab_size)
    trained_blocks = shape.trained_layers
    plain = gradient_parts(setting, Pass(1, size, size, None, trained_blocks))
    chunked = gradient_parts(setting, Pass(1, size, size, chunk, trained_blocks))
    chunked["gradients"] = chunked.get("gradients", 0) + learns.bytes
    return _sum(_resident(shape, learns), max((plain, chunked), key=lambda one: sum(one.values())))


def _pass(shape: Shape, cut: Cut, *, recomputes: bool = False) -> Pass:
    chunk = None
    if shape.job.compute.loss is LossKernel.CHUNKED:
        chunk = most_chunk_tokens(shape.model.vocab_size)
    return Pass(cut.rows, cut.width, cut.tokens, chunk, shape.trained_layers, recomputes)


def _covers(trained_at_once: Cut, evaluated: Cut) -> bool:
    """Whether a gradient of the one takes more than the loss of the other: it computes that first."""
    return trained_at_once.tokens >= evaluated.tokens and trained_at_once.width >= evaluated.width


def _resident(shape: Shape, learns: Trained) -> dict[str, int]:
    """What lies there from the first step to the last."""
    weights, masters = weight_bytes(shape), learns.bytes
    if shape.is_full and shape.item_bytes == FLOAT32_BYTES:
        weights -= min(weights, masters)  # the masters are the model's own
    copies = 0 if shape.is_full or shape.computed_bytes == FLOAT32_BYTES else masters // 2
    return _parts(weights=weights, adapters=masters + copies, optimizer=learns.state_bytes)


def _sum(parts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    found = dict(parts)
    for cause, size in more.items():
        found[cause] += size
    return found


def _parts(**bytes_by_cause: int) -> dict[str, int]:
    return dict.fromkeys(CAUSES, 0) | bytes_by_cause
