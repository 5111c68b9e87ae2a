"""What single moments of a training hold, measured on graphs of a few blocks and carried on to all.

The real peak grows by about as much from block to block, but not evenly, as MLX's order changes with the
graph. Carried on like this it does not fall with their number; with gradient checkpointing the whole graph
of a small model is looked at, and may fall as the real peak does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from graft_scheduler.anatomy import Anatomy, Attention, Block
from graft_scheduler.hyperparameters import BY_ELEMENT, OptimizerName
from graft_scheduler.memory.arrays import Array, Shape
from graft_scheduler.memory.layers import Mode, Parameters
from graft_scheduler.memory.liveness import AT_ONCE, Queue, Tape, kept_parts, peak_parts, tape_of
from graft_scheduler.memory.passes import Pass, evaluation, gradient
from graft_scheduler.memory.updates import update

SHOWN_BLOCKS = 3
"""Trained blocks of one kind that a graph has, and frozen ones where fewer are trained."""
SHOWN_RECOMPUTED, SHOWN_RECOMPUTED_AT_ONCE = 7, 10
"""Blocks of the largest graph where they are computed again: up to here MLX's order, and so what lies
there, changes much with their number."""
SHOWN_COUNTED = 2
"""Blocks of one kind where arrays are only counted."""
CACHED = 8192
CACHED_GRAPHS = 2
"""The same one is asked first for its peak and then for what it keeps."""

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
    """Of a micro-batch's loss and gradient, at their peak; the parameters themselves not counted.

    Every further block adds what it keeps for its backward pass, or the gradients that this leaves
    where they are more.
    """
    setting = replace(setting, mode=replace(setting.mode, is_packed=is_packed))
    kinds = _kinds(setting, one)
    shown, more = _shown(kinds, SHOWN_BLOCKS)
    found, waiting = _peak(setting, one, shown, _gradient_of)
    if more and setting.queue.most_bytes is not None:  # a longer graph may have more
        longer = [*shown, *(kind for kind in more for _ in range(SHOWN_BLOCKS))]
        waiting = max(waiting, _peak(setting, one, longer, _gradient_of)[1])
    counts = Counter(kind for kind in kinds if kind.is_trained)
    added = {kind: _added(setting, one, shown, kind) for kind in counts if kind in more or one.recomputes}
    for kind, count in more.items():
        _add(found, added[kind], count)
    if one.recomputes:
        larger = _recomputed_bytes(setting, one, [kind for kind in kinds if kind.is_trained], added)
        _add(found, {"workspace": max(0, larger - _total(found))})
    return _with_waiting(setting, found, waiting)


def loss_parts(setting: Setting, one: Pass) -> Parts:
    """The same without a gradient: a further block adds nothing."""
    shown, _ = _shown(_kinds(setting, one), SHOWN_BLOCKS)
    return _with_waiting(setting, *_peak(setting, one, shown, _loss_of))


def update_parts(setting: Setting, optimizer: OptimizerName) -> Parts:
    """Of an optimizer's step: its state, the old and the new, and new parameters."""
    setting = replace(setting, optimizer=optimizer)
    shown, more = _shown(_kinds(setting, _NO_PASS), SHOWN_BLOCKS)
    found, waiting = _peak(setting, _NO_PASS, shown, _update_of)
    _carry_on(setting, shown, more, found, _update_of)
    return _with_waiting(setting, found, waiting)


def trained(setting: Setting) -> Trained:
    """How much learns, and what its optimizer remembers."""
    shown, more = _shown(_kinds(setting, _NO_PASS), SHOWN_COUNTED)
    found, _ = _peak(setting, _NO_PASS, shown, _trained_of)
    _carry_on(setting, shown, more, found, _trained_of)
    return Trained(found["parameters"], found["state"])


@dataclass(frozen=True, slots=True)
class _Graph:
    """Of a micro-batch's gradient."""

    tape: Tape
    hidden: Array
    left_bytes: int
    """What it leaves: the loss and the gradients."""


@lru_cache(CACHED_GRAPHS)
def _gradient(setting: Setting, one: Pass) -> _Graph:
    outputs, hidden = gradient(setting.anatomy, _parameters(setting), one)
    return _Graph(tape_of(outputs), hidden, sum(array.nbytes for array in outputs))


_NO_PASS = Pass(1, 2, 2, None, 0)


def _gradient_of(setting: Setting, one: Pass) -> Parts:
    return peak_parts(_gradient(setting, one).tape, setting.queue)


def _kept_of(setting: Setting, one: Pass) -> Parts:
    """What is held where the forward pass ends, and as the cause `left` where the backward pass does."""
    graph = _gradient(setting, one)
    return kept_parts(graph.tape, graph.hidden) | {"left": graph.left_bytes}


def _loss_of(setting: Setting, one: Pass) -> Parts:
    return peak_parts(tape_of(evaluation(setting.anatomy, _parameters(setting), one)), setting.queue)


def _update_of(setting: Setting, one: Pass) -> Parts:
    outputs, owned = update(setting.optimizer, _kept_shapes(setting), is_fused=setting.mode.is_fused)
    return peak_parts(tape_of(outputs), setting.queue, owned)


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


Measure = Callable[[Setting, Pass], Parts]


def _peak(setting: Setting, one: Pass, shown: Sequence[_Kind], measure: Measure) -> tuple[Parts, int]:
    """What `measure` finds for these blocks, and how many bytes wait on top of that."""
    found = dict(_measured(_with(setting, shown), _of(one, shown), measure))
    return found, found.pop("waiting", 0)


def _with_waiting(setting: Setting, found: Parts, waiting: int) -> Parts:
    most = setting.queue.most_bytes
    return found if most is None else _add(found, {"workspace": min(waiting, most)})


def _added(setting: Setting, one: Pass, shown: Sequence[_Kind], kind: _Kind) -> Parts:
    """What one more of these blocks adds to the peak of a gradient."""
    fewer, _ = _peak(setting, one, shown, _kept_of)
    more, _ = _peak(setting, one, [*shown, kind], _kept_of)
    kept = _grown(fewer, more)
    left = kept.pop("left")
    return kept if _total(kept) >= left else {"gradients": left}


def _recomputed_bytes(
    setting: Setting, one: Pass, blocks: Sequence[_Kind], added: Mapping[_Kind, Parts]
) -> int:
    """The peak as the whole graph of few blocks has it, else carried on from one of more blocks."""
    at_once = setting.queue.most_bytes is not None
    queue, most = (AT_ONCE, SHOWN_RECOMPUTED_AT_ONCE) if at_once else (setting.queue, SHOWN_RECOMPUTED)
    setting = replace(setting, queue=queue)
    if len(blocks) <= most:
        return _total(_peak(setting, one, blocks, _gradient_of)[0])
    counts = Counter(blocks)
    each = -(-most // len(counts))
    found, _ = _peak(setting, one, [*counts] * each, _gradient_of)
    return _total(found) + sum(_total(added[kind]) * (count - each) for kind, count in counts.items())


def _carry_on(
    setting: Setting, shown: Sequence[_Kind], more: Mapping[_Kind, int], found: Parts, measure: Measure
) -> None:
    """Add the other blocks, from what as many as are shown of each kind add to them."""
    first = dict(found)
    for kind, count in more.items():
        few = sum(one == kind for one in shown)
        longer, _ = _peak(setting, _NO_PASS, [*shown, *[kind] * few], measure)
        _add(found, {cause: size * count // few for cause, size in _grown(first, longer).items()})


def _grown(fewer: Parts, more: Parts) -> Parts:
    return {cause: max(0, size - fewer.get(cause, 0)) for cause, size in more.items()}


def _add(found: Parts, added: Parts, count: int = 1) -> Parts:
    for cause, size in added.items():
        found[cause] = found.get(cause, 0) + size * count
    return found


def _total(parts: Parts) -> int:
    return sum(parts.values())


def _kinds(setting: Setting, one: Pass) -> list[_Kind]:
    blocks = setting.anatomy.blocks
    frozen = len(blocks) - setting.trained_blocks
    return [_Kind(_alike(block, one.width), number >= frozen) for number, block in enumerate(blocks)]


def _alike(block: Block, width: int) -> Block:
    """With nothing that makes no difference at this width, so that there are few kinds."""
    mixer = block.mixer
    if not isinstance(mixer, Attention) or mixer.window is None or mixer.window < width:
        return block
    return replace(block, mixer=replace(mixer, window=None))


def _shown(kinds: Sequence[_Kind], few: int) -> tuple[list[_Kind], dict[_Kind, int]]:
    """The blocks of a graph in their order, and how many more of which kinds the model has."""
    counts = Counter(kinds)
    trained = {kind.block: count for kind, count in counts.items() if kind.is_trained}
    left = {kind: min(count, few) for kind, count in counts.items() if kind.is_trained}
    more = {kind: count - left[kind] for kind, count in counts.items() if kind.is_trained}
    # Frozen blocks take nothing that trained ones do not: they are shown where there are few of those.
    for kind, count in counts.items():
        if not kind.is_trained:
            left[kind] = min(count, max(few - trained.get(kind.block, 0), 0))
    shown: list[_Kind] = []
    for kind in kinds:
        if left[kind]:
            shown.append(kind)
            left[kind] -= 1
    return shown, {kind: count for kind, count in more.items() if count}


def _with(setting: Setting, shown: Sequence[_Kind]) -> Setting:
    return replace(
        setting,
        anatomy=replace(setting.anatomy, blocks=tuple(kind.block for kind in shown)),
        trained_blocks=sum(kind.is_trained for kind in shown),
    )


def _of(one: Pass, shown: Sequence[_Kind]) -> Pass:
    return replace(one, trained_blocks=sum(kind.is_trained for kind in shown))


@lru_cache(CACHED)
def _measured(setting: Setting, one: Pass, measure: Measure) -> Parts:
    return measure(setting, one)
