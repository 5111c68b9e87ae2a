"""What single moments of a training hold, measured on graphs of a few blocks and carried on to all.

From graphs with some and with twice as many blocks of a kind follows what every other one costs:
the peak grows by about the same from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from graft_scheduler.anatomy import Anatomy, Attention, Block
from graft_scheduler.hyperparameters import BY_ELEMENT, OptimizerName
from graft_scheduler.memory.arrays import Array, Shape
from graft_scheduler.memory.forward import Mode, Parameters
from graft_scheduler.memory.liveness import Queue, peak_parts
from graft_scheduler.memory.passes import Pass, evaluation, gradient
from graft_scheduler.memory.updates import update

SHOWN_BLOCKS = 3
"""Trained blocks of one kind that a small graph has, and by as many more a large one is longer."""
SHOWN_KEPT = 2
"""The same where arrays are only counted."""
SHOWN_FROZEN = 1
CACHED = 8192

Parts = dict[str, int]
"""Bytes by cause."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that decides the graphs of a job, but the micro-batch."""

    anatomy: Anatomy
    mode: Mode
    rank: int
    targets: frozenset[str] | None
    trained_blocks: int
    queue: Queue
    optimizer: OptimizerName


@dataclass(frozen=True, slots=True)
class Trained:
    """What learns, in float32."""

    bytes: int
    state_bytes: int
    """Of the optimizer."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Blocks that cost the same."""

    block: Block
    is_trained: bool


def gradient_parts(setting: Setting, one: Pass, *, is_packed: bool = False) -> Parts:
    """Of a micro-batch's loss and gradient, at their peak; the parameters themselves not counted."""
    mode = replace(setting.mode, is_packed=is_packed)
    return _over_blocks(replace(setting, mode=mode), one, _gradient_of)


def loss_parts(setting: Setting, one: Pass) -> Parts:
    """The same without a gradient."""
    return _over_blocks(setting, one, _loss_of)


def update_parts(setting: Setting, optimizer: OptimizerName) -> Parts:
    """Of an optimizer's step: its state, the old and the new, and new parameters."""
    return _over_blocks(replace(setting, optimizer=optimizer), _NO_PASS, _update_of)


def trained(setting: Setting) -> Trained:
    """How much learns, and what its optimizer remembers."""
    parts = _over_blocks(setting, _NO_PASS, _trained_of, SHOWN_KEPT)
    return Trained(parts["parameters"], parts["state"])


_NO_PASS = Pass(1, 2, 2, None, 0)


def _gradient_of(setting: Setting, one: Pass) -> Parts:
    own = _parameters(setting)
    return peak_parts(gradient(setting.anatomy, own, one), setting.queue)


def _loss_of(setting: Setting, one: Pass) -> Parts:
    return peak_parts(evaluation(setting.anatomy, _parameters(setting), one), setting.queue)


def _update_of(setting: Setting, one: Pass) -> Parts:
    outputs, owned = update(setting.optimizer, _kept_shapes(setting), is_fused=setting.mode.is_fused)
    return peak_parts(outputs, setting.queue, owned)


def _trained_of(setting: Setting, one: Pass) -> Parts:
    _, owned = update(setting.optimizer, _kept_shapes(setting))
    numbers = sum(Array(shape, 4).nbytes for shape in _kept_shapes(setting))
    return {"parameters": numbers, "state": sum(array.nbytes for array in owned)}


def _kept_shapes(setting: Setting) -> list[Shape]:
    """Of what is trained as it lies in memory: adapters end to end where their optimizer allows it."""
    own = _parameters(setting)
    one = Pass(1, 2, 2, 32, setting.trained_blocks)
    evaluation(setting.anatomy, own, one)
    if setting.mode.learns_base or setting.optimizer not in BY_ELEMENT:
        return [array.shape for array in own.found.values()]
    groups: dict[str, int] = {}
    for name, array in own.found.items():
        group = name.rpartition(".")[2]
        groups[group] = groups.get(group, 0) + array.nbytes // array.itemsize
    return [(size,) for size in groups.values()]


def _parameters(setting: Setting) -> Parameters:
    return Parameters(setting.mode, setting.rank, setting.targets)


def _over_blocks(
    setting: Setting, one: Pass, measure: Callable[[Setting, Pass], Parts], few: int | None = None
) -> Parts:
    """What `measure` finds for all blocks, from graphs of `few` of each kind and of twice as many."""
    few = few or SHOWN_BLOCKS
    blocks = setting.anatomy.blocks
    frozen = len(blocks) - setting.trained_blocks
    kinds = [_Kind(_alike(block, one.width), number >= frozen) for number, block in enumerate(blocks)]
    shown, more = _shown(kinds, few)
    first = _measured(_with(setting, shown), _of(one, shown), measure)
    found = dict(first)
    waiting = found.pop("waiting", 0)
    for kind, count in more.items():
        longer = [*shown, *[kind] * few]
        with_more = dict(_measured(_with(setting, longer), _of(one, longer), measure))
        waiting = max(waiting, with_more.pop("waiting", 0))  # of the last primitives, however many there are
        added = {cause: max(0, size - first.get(cause, 0)) for cause, size in with_more.items()}
        grown = max(0, sum(with_more.values()) - sum(first.values()) + first.get("waiting", 0))
        share = grown / sum(added.values()) if any(added.values()) else 0.0
        for cause, size in added.items():
            found[cause] = found.get(cause, 0) + round(size * share * count / few)
    if waiting:
        found["workspace"] = found.get("workspace", 0) + waiting
    return found


def _alike(block: Block, width: int) -> Block:
    """With nothing that makes no difference at this width, so that there are few kinds."""
    mixer = block.mixer
    if not isinstance(mixer, Attention) or mixer.window is None or mixer.window < width:
        return block
    return replace(block, mixer=replace(mixer, window=None))


def _shown(kinds: Sequence[_Kind], few: int) -> tuple[list[_Kind], dict[_Kind, int]]:
    """The blocks of a graph in their order, and how many more of which kinds the model has."""
    counts: dict[_Kind, int] = {}
    shown: list[_Kind] = []
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    left = {kind: _shown_of(kind, count, few) for kind, count in counts.items()}
    more = {kind: count - left[kind] for kind, count in counts.items() if kind.is_trained}
    for kind in kinds:
        if left[kind]:
            shown.append(kind)
            left[kind] -= 1
    return shown, {kind: count for kind, count in more.items() if count}


def _shown_of(kind: _Kind, count: int, few: int) -> int:
    if not kind.is_trained:
        return min(count, SHOWN_FROZEN)
    return count if count <= 2 * few else few


def _with(setting: Setting, shown: Sequence[_Kind]) -> Setting:
    return replace(
        setting,
        anatomy=replace(setting.anatomy, blocks=tuple(kind.block for kind in shown)),
        trained_blocks=sum(kind.is_trained for kind in shown),
    )


def _of(one: Pass, shown: Sequence[_Kind]) -> Pass:
    return replace(one, trained_blocks=sum(kind.is_trained for kind in shown))


@lru_cache(CACHED)
def _measured(setting: Setting, one: Pass, measure: Callable[[Setting, Pass], Parts]) -> Parts:
    return measure(setting, one)
