"""Rank `auto`: after training, every module keeps only what the validation loss needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from graft_scheduler.states import FailureClass
from graft_worker.engine.adapters import Parameters
from graft_worker.engine.evaluation import Evaluator
from graft_worker.engine.loop import Task
from graft_worker.engine.loss import TokenLoss
from graft_worker.engine.reports import Reporter
from graft_worker.engine.survey import A, B, survey
from graft_worker.engine.svd import Components, Floats
from graft_worker.link import JobError

MAX_EVALUATIONS = 12
"""Of the validation loss, that of the whole included."""

Evaluate = Callable[[Parameters], float]
Kept = dict[str, int]
"""How many components each module keeps, by its path in the model."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of the adapters."""

    parameters: Parameters
    """Of one rank for all, as mlx-lm's files have it: with zeros where a module keeps less."""
    rank: int
    """The largest that a module keeps; without a cut, that of training."""
    kept: Kept
    loss: float
    full_loss: float
    """Before the cut, and over the same rows."""
    evaluations: int


class Branches:
    """All modules' components, out of which adapters of any ranks are made."""

    def __init__(self, parameters: Parameters, components: Mapping[str, Components]) -> None:
        self._parameters = parameters
        self._components = components
        self._trained_rank = max(value.shape[1] for name, value in parameters.items() if name.endswith(A))
        self._counts = {path: len(parts.scores) for path, parts in components.items()}
        self.rank = max(self._counts.values())
        """The largest that can be kept; less than that of training where all modules are small."""

    def uniform(self, rank: int) -> Kept:
        """The same for every module, or all that it has."""
        return {path: min(rank, count) for path, count in self._counts.items()}

    def without_lowest(self, kept: Kept, count: int) -> Kept:
        """`kept` without the `count` components that are worth least for their size."""
        ranked = sorted(
            (parts.scores[place] / (parts.a[..., 0].size + parts.b[:, 0].size), -place, path)
            for path, parts in self._components.items()
            for place in range(min(kept[path], len(parts.scores)))
        )
        left = dict.fromkeys(kept, 0)
        for _, _, path in ranked[count:]:
            left[path] += 1
        return left

    def parameters(self, kept: Kept) -> Parameters:
        """Adapters of the largest rank in `kept`, in the order and layout of those in training."""
        if min(kept.values()) >= self._trained_rank:
            return self._parameters
        width = max(kept.values())
        made: Parameters = {}
        for path, parts in self._components.items():
            a, b = parts.first(kept[path], width)
            made[path + A] = _array(a, self._parameters[path + A])
            made[path + B] = _array(b, self._parameters[path + B])
        return {name: made[name] for name in self._parameters}


def check_can_cut(parameters: Parameters) -> None:
    """Go on if all of `parameters` are plain pairs of A and B.

    Raises:
        JobError: a layer of the model's own making has others; class `config`.
    """
    for name in parameters:
        if not name.endswith((A, B)):
            text = (
                f"`{name}` cannot be cut; leave its module out of `adapter.targets`, or give `adapter.rank`"
            )
            raise JobError(FailureClass.CONFIG, f"{text} a number")


def cut_ranks(
    task: Task, parameters: Parameters, loss: TokenLoss, evaluator: Evaluator, reporter: Reporter
) -> Cut:
    """Cut `parameters` to the smallest adapters that keep the validation loss within the job's tolerance.

    Leaves the model with what it returns.

    Raises:
        Stopped: the link said so.
    """
    adapted = task.adapted

    def evaluate(candidate: Parameters) -> float:
        adapted.put(candidate)
        return evaluator(reporter.check_stop).loss

    branches = Branches(parameters, survey(task, parameters, loss, reporter.check_stop))
    cut = search(branches, evaluate, task.spec.adapter.rank_tolerance)
    adapted.put(cut.parameters)
    reporter.log(describe(cut, task.spec.adapter.trained_rank, adapted.modules))
    return cut


def cut_to(branches: Branches, rank: int) -> Parameters:
    """Every module cut to the same `rank`."""
    return branches.parameters(branches.uniform(rank))


def search(branches: Branches, evaluate: Evaluate, tolerance: float) -> Cut:
    """First the smallest rank for all modules, which is that of the file; then what each can do without.

    Every loss but that of the whole is at most (1 + `tolerance`) times it.
    """
    whole = branches.parameters(branches.uniform(branches.rank))
    full_loss = evaluate(whole)
    best = Cut(whole, branches.rank, branches.uniform(branches.rank), full_loss, full_loss, 1)
    limit, evaluations = full_loss * (1 + tolerance), 1

    def fits(kept: Kept) -> bool:
        nonlocal best, evaluations
        candidate = branches.parameters(kept)
        loss = evaluate(candidate)
        evaluations += 1
        if loss <= limit:  # never true of NaN
            best = Cut(candidate, max(kept.values()), kept, loss, full_loss, evaluations)
            return True
        return False

    low, high = 0, branches.rank  # none at all is never tried, and all fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(branches.uniform(middle)) else (middle, high)
    uniform = best.kept
    low, high = 0, sum(uniform.values())  # to drop nothing fits, and all of it is never tried
    while high - low > 1 and evaluations < MAX_EVALUATIONS:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(branches.without_lowest(uniform, middle)) else (low, middle)
    return Cut(best.parameters, best.rank, best.kept, best.loss, full_loss, evaluations)


def saved_form(cut: Cut, config: dict[str, Any]) -> tuple[Parameters, dict[str, Any]]:
    """The arrays and the `adapter_config.json` to save, given that of the training.

    A module that keeps nothing in any layer is in neither.
    """
    lora = config["lora_parameters"]
    keys = [key for key, ranks in kept_by_key(cut.kept, lora["keys"]).items() if any(ranks)]
    parameters = {
        name: value
        for name, value in cut.parameters.items()
        if key_of(name.rpartition(".")[0], lora["keys"]) in keys
    }
    return parameters, {**config, "lora_parameters": {**lora, "rank": cut.rank, "keys": keys}}


def describe(cut: Cut, trained_rank: int, keys: Sequence[str]) -> str:
    """What every module kept, in one line."""
    losses = f"validation loss {cut.full_loss:.4f} before, {cut.loss:.4f} after"
    if min(cut.kept.values()) >= trained_rank:
        return f"nothing was cut: every module needs its rank of {trained_rank} ({losses})"
    kept = ", ".join(f"{key} {_range(ranks)}" for key, ranks in kept_by_key(cut.kept, keys).items())
    return f"cut from rank {trained_rank} to {cut.rank}; {losses}; kept by layer: {kept}"


def kept_by_key(kept: Kept, keys: Sequence[str]) -> dict[str, list[int]]:
    """What the layers keep of each module of `keys`, which are paths inside a block."""
    found: dict[str, list[int]] = {key: [] for key in keys}
    for path, rank in kept.items():
        found[key_of(path, keys)].append(rank)
    return found


def key_of(path: str, keys: Sequence[str]) -> str:
    """Which of `keys` the module at `path` in the model is: the longest that it ends in."""
    fitting = [key for key in keys if path.endswith(f".{key}")]
    if not fitting:
        raise ValueError(f"the module {path} is none of {', '.join(keys)}")
    return max(fitting, key=len)


def _range(ranks: Sequence[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}-{high}"


def _array(value: Floats, like: mx.array) -> mx.array:
    """`value` in the layout of training: a plain module without experts, those of experts transposed."""
    layout = value[0] if like.ndim == 2 else value.swapaxes(1, 2)
    return mx.array(np.ascontiguousarray(layout))
