"""How the rows of a step are cut into micro-batches: never what the step learns, only how fast.

Without compilation every micro-batch has the shape that suits it. With it a job has at most
`MAX_SHAPES`, chosen beforehand from the steps that are to come; rows are padded to one of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from graft_scheduler.hyperparameters import Batching
from graft_scheduler.memory.cuts import HEIGHTS, PACKED_WIDTH, WIDTH_MULTIPLE
from graft_worker.engine.batches import MicroBatch, RowOrder
from graft_worker.engine.compilation import MAX_SHAPES
from graft_worker.engine.rows import TokenRow

MAX_WIDTHS = 12
"""What rows may be padded to in a compiled job; a single row of each is one of its shapes."""
PLANNED_STEPS = 256
"""So many steps are looked at to choose shapes."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be computed at once, and what else a micro-batch costs."""

    tokens: int
    """Padding included; a row that is longer is computed alone."""
    width_multiple: int = WIDTH_MULTIPLE
    overhead_tokens: int = 0
    """What starting one more micro-batch costs, as so many tokens."""

    def padded(self, width: int) -> int:
        """`width` rounded up to the next allowed one."""
        return -(-width // self.width_multiple) * self.width_multiple


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What is compiled once."""

    height: int
    width: int
    slots: int

    @property
    def size(self) -> int:
        """Tokens that computing it takes."""
        return self.height * self.width


class Fit(Protocol):
    """Which shape so many rows, of at most this width, with so many learned tokens, are computed in."""

    def __call__(self, count: int, width: int, learned: int) -> Shape | None:
        """`None` if they may not be computed at once; never for a single row."""


@dataclass(frozen=True, slots=True)
class Exact:
    """Any shape that the budget allows."""

    budget: Budget

    def __call__(self, count: int, width: int, learned: int) -> Shape | None:
        shape = Shape(count, self.budget.padded(width), learned)
        return shape if count == 1 or shape.size <= self.budget.tokens else None


@dataclass(frozen=True, slots=True)
class Laddered:
    """The next of some widths and heights, with room for a number of quarters of it to be learned."""

    widths: tuple[int, ...]
    budget: Budget

    def __call__(self, count: int, width: int, learned: int) -> Shape | None:
        if count > HEIGHTS[-1]:
            return None
        height = HEIGHTS[bisect_left(HEIGHTS, count)]
        padded = self.widths[bisect_left(self.widths, width)]
        size = height * padded
        quarters = max(1, -(-learned * 4 // size))
        shape = Shape(height, padded, -(-quarters * size // 4))
        return shape if count == 1 or size <= self.budget.tokens else None


@dataclass(frozen=True, slots=True)
class Listed:
    """The cheapest of a few."""

    shapes: tuple[Shape, ...]

    def __call__(self, count: int, width: int, learned: int) -> Shape | None:
        holding = [
            shape
            for shape in self.shapes
            if shape.height >= count and shape.width >= width and shape.slots >= learned
        ]
        return min(holding, key=lambda shape: (shape.size, shape.slots), default=None)


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts steps; the same step always alike."""

    widths: tuple[int, ...]
    learned: tuple[int, ...]
    """Tokens of each row that are learned."""
    budget: Budget
    batching: Batching
    fit: Fit

    def cut(self, rows: Iterable[int]) -> list[MicroBatch]:
        """The micro-batches of a step with these rows."""
        chosen = sorted(rows, key=lambda row: (self.widths[row], row))
        match self.batching:
            case Batching.PADDED:
                return self._padded(chosen)
            case Batching.BUCKETED:
                return self._bucketed(chosen)
            case Batching.PACKED:
                return self._packed(chosen)

    def _padded(self, chosen: list[int]) -> list[MicroBatch]:
        width = self.budget.padded(self.widths[chosen[-1]])
        size = max(1, self.budget.tokens // width)
        groups = [chosen[place : place + size] for place in range(0, len(chosen), size)]
        shapes = [Shape(len(group), width, self._learned(group)) for group in groups]
        return [_micro_batch(_lines(group), shape) for group, shape in zip(groups, shapes, strict=True)]

    def _bucketed(self, chosen: list[int]) -> list[MicroBatch]:
        """The cheapest cut of the sorted rows into neighbours: the best last group of every beginning."""
        best: list[tuple[int, int, Shape | None]] = [(0, 0, None)]
        for end in range(1, len(chosen) + 1):
            width, learned = self.widths[chosen[end - 1]], 0
            options: list[tuple[int, int, Shape | None]] = []
            for start in range(end - 1, -1, -1):
                learned += self.learned[chosen[start]]
                shape = self.fit(end - start, width, learned)
                if shape is None:
                    break
                options.append((best[start][0] + shape.size + self.budget.overhead_tokens, start, shape))
            best.append(min(options))
        batches, end = [], len(chosen)
        while end:
            _, start, shape = best[end]
            assert shape is not None  # only the empty beginning has none
            batches.append(_micro_batch(_lines(chosen[start:end]), shape))
            end = start
        return batches[::-1]

    def _packed(self, chosen: list[int]) -> list[MicroBatch]:
        """Lines filled first-fit, longest rows first, and as many lines at once as the budget allows."""
        lines: list[list[int]] = []
        room: list[int] = []
        for row in reversed(chosen):
            place = next((i for i, left in enumerate(room) if left >= self.widths[row]), len(lines))
            if place == len(lines):
                lines.append([])
                room.append(self.packed_width)
            lines[place].append(row)
            room[place] -= self.widths[row]
        batches = []
        for place in range(0, len(lines), self.packed_height):
            group = [tuple(line) for line in lines[place : place + self.packed_height]]
            filled = self.packed_width - min(room[place : place + self.packed_height])
            shape = self.fit(len(group), filled, sum(self._learned(line) for line in group))
            assert shape is not None  # the budget holds as many lines, and one is always allowed
            batches.append(_micro_batch(group, shape, is_packed=True))
        return batches

    @property
    def packed_width(self) -> int:
        """What lines are filled up to."""
        longest = self.budget.padded(max(self.widths))
        return max(longest, min(PACKED_WIDTH, self.budget.tokens))

    @property
    def packed_height(self) -> int:
        """How many lines are computed at once."""
        return max(1, self.budget.tokens // self.budget.padded(self.packed_width))

    def _learned(self, rows: Iterable[int]) -> int:
        return sum(self.learned[row] for row in rows)


def exact_cutter(rows: Sequence[TokenRow], budget: Budget, batching: Batching) -> Cutter:
    """Every micro-batch in the shape that suits it."""
    widths, learned = tuple(row.width for row in rows), tuple(row.targets for row in rows)
    return Cutter(widths, learned, budget, batching, Exact(budget))


def plan_cutter(
    rows: Sequence[TokenRow], order: RowOrder, budget: Budget, batching: Batching, *, compiled: bool
) -> Cutter:
    """The cutter of a job; with `compiled`, its shapes are chosen for the first steps of `order`."""
    exact = exact_cutter(rows, budget, batching)
    if not compiled or batching is Batching.PADDED:
        return exact
    if batching is Batching.PACKED:
        height, width = exact.packed_height, exact.packed_width
        return replace(exact, fit=Listed((Shape(height, width, height * width),)))
    return replace(exact, fit=Listed(_choose_shapes(exact, order)))


def _choose_shapes(exact: Cutter, order: RowOrder) -> tuple[Shape, ...]:
    """Single rows of every width, and what the steps to come would spend most of their work in."""
    widths = choose_widths([exact.budget.padded(width) for width in exact.widths], MAX_WIDTHS)
    singles = [Shape(1, width, width) for width in widths]
    laddered = replace(exact, fit=Laddered(widths, exact.budget))
    work: Counter[Shape] = Counter()
    for step in range(min(order.steps, PLANNED_STEPS)):
        for one in laddered.cut(order.at(step)):
            work[Shape(one.height, one.width, one.slots)] += one.height * one.width
    others = [shape for shape in work if shape not in singles]
    wanted = sorted(others, key=lambda shape: (-work[shape], shape))
    return tuple(sorted(singles + wanted[: MAX_SHAPES - len(singles)]))


def choose_widths(widths: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of `widths`, the largest among them, that the others are padded up to most cheaply."""
    weights = Counter(widths)
    values = sorted(weights)
    if len(values) <= count:
        return tuple(values)
    rows = [weights[value] for value in values]
    # best[k][end]: the least that padding values[:end] to k of them costs, and where the last group begins.
    best: list[list[tuple[int, int]]] = [[(0, 0)] + [(sum(rows) * values[-1] + 1, 0)] * len(values)]
    for _ in range(count):
        row = [(0, 0)]
        for end in range(1, len(values) + 1):
            options, held = [], 0
            for start in range(end - 1, -1, -1):
                held += rows[start]
                options.append((best[-1][start][0] + held * values[end - 1], start))
            row.append(min(options))
        best.append(row)
    chosen, end = [], len(values)
    for k in range(count, 0, -1):
        chosen.append(values[end - 1])
        end = best[k][end][1]
        if end == 0:
            break
    return tuple(reversed(chosen))


def _lines(rows: Iterable[int]) -> list[tuple[int, ...]]:
    return [(row,) for row in rows]


def _micro_batch(lines: Sequence[tuple[int, ...]], shape: Shape, *, is_packed: bool = False) -> MicroBatch:
    return MicroBatch(tuple(lines), shape.width, shape.height, shape.slots, is_packed)
