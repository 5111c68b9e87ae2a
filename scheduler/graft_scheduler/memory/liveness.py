"""In which order MLX evaluates a graph, and the most memory that it holds meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from graft_scheduler.memory.arrays import Array, Storage

MAX_WIDTH = 20
"""As many arrays MLX looks at side by side before it follows one of them down (`MLX_BFS_MAX_WIDTH`)."""


def order(outputs: Sequence[Array]) -> list[Array]:
    """What has to be computed for `outputs`, in MLX's order (mlx/transforms.cpp, `eval_impl`):
    breadth first from the outputs and backwards, an array after all that read it.
    """
    goal = Array((), 0, tuple(outputs))
    uses = _count_uses(goal)
    tape = [goal]
    waiting: list[tuple[Array, int]] = []
    place = 0
    while uses and (place < len(tape) or waiting):
        if place >= len(tape):
            array, start = waiting.pop()
        else:
            array, start = tape[place], 0
            place += 1
        for number in range(start, len(array.inputs)):
            one = array.inputs[number]
            if one.is_ready:
                continue
            if len(tape) - place >= MAX_WIDTH:
                waiting.append((array, number))
                break
            left = uses[id(one)] - 1
            for sibling in one.outputs:
                uses[id(sibling)] = left
            if left == 0:
                for sibling in one.outputs:
                    del uses[id(sibling)]
                tape.append(one)
    return tape[:0:-1]


def _count_uses(goal: Array) -> dict[int, int]:
    uses: dict[int, int] = {}
    stack = [(goal, 0)]
    while stack:
        array, place = stack.pop()
        if place == len(array.inputs):
            continue
        stack.append((array, place + 1))
        one = array.inputs[place]
        known = uses.get(id(one))
        for sibling in one.outputs:
            uses[id(sibling)] = 1 if known is None else known + 1
        if known is None and not one.is_ready:
            stack.append((one, 0))
    return uses


@dataclass(slots=True)
class Buffer:
    """Memory that one or more arrays lie in."""

    nbytes: int
    cause: str = ""
    arrays: int = 1
    pending: int = 0
    """Primitives that were sent off and may not have read it yet."""


@dataclass(frozen=True, slots=True)
class Queue:
    """How far MLX sends primitives off before it waits (mlx/transforms.cpp, mlx/backend/*).

    Memory of what was sent off is not free before it was computed.
    """

    lag: int
    """That many steps are not yet computed when a primitive is sent off."""
    steps_per_primitive: int = 1
    steps_per_view: int = 0
    most_bytes: int | None = None
    """Of what waits to be given back; MLX waits itself where it reaches the limit that it was set."""


AT_ONCE = Queue(lag=0, steps_per_view=1)
"""Every primitive is computed before the next is looked at."""


def kept_parts(outputs: Sequence[Array], until: Array) -> dict[str, int]:
    """What is held where `until` was computed on the way to `outputs`, by cause."""
    memory = Memory(AT_ONCE)
    memory.evaluate(outputs, until=until)
    return memory.live


def peak_parts(outputs: Sequence[Array], queue: Queue, owned: Sequence[Array] = ()) -> dict[str, int]:
    """What is held at the peak of evaluating `outputs`, by cause.

    Where only so much may wait to be given back, that is the peak without any waiting and, as the
    cause `waiting`, what waiting without bounds would add.
    """
    memory = Memory(queue)
    memory.evaluate(outputs, owned)
    if queue.most_bytes is None:
        return memory.parts
    at_once = Memory(AT_ONCE)
    at_once.evaluate(outputs, owned)
    return at_once.parts | {"waiting": max(0, memory.peak_bytes - at_once.peak_bytes)}


class Memory:
    """Evaluates graphs without numbers, and keeps account of the memory that takes."""

    def __init__(self, queue: Queue) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0
        self._live: dict[str, int] = {}
        self._at_peak: dict[str, int] | None = None
        self._queue = queue
        self._sent = 0
        self._holds: deque[tuple[int, list[Buffer]]] = deque()

    @property
    def live(self) -> dict[str, int]:
        """What is held now, by cause."""
        return dict(self._live)

    @property
    def parts(self) -> dict[str, int]:
        """What was held when it was most, by cause."""
        return dict(self._live if self._at_peak is None else self._at_peak)

    def evaluate(
        self, outputs: Sequence[Array], owned: Sequence[Array] = (), until: Array | None = None
    ) -> None:
        """Compute `outputs`, which stay; all that only they were made of goes, and what is `owned` too.

        Stops where `until` was computed, with all that is still to be read.
        """
        tape = order(outputs)
        readers: dict[int, int] = {}
        for array in tape:
            for one in array.inputs:
                readers[id(one)] = readers.get(id(one), 0) + 1
        for one in outputs:
            readers[id(one)] = readers.get(id(one), 0) + 1
        buffers = {id(one): self._allocate(one.nbytes, "optimizer") for one in owned}
        for array in tape:
            self._compute(array, readers, buffers)
            if array is until:
                break
        self._finish(self._sent)
        self._sent = 0

    def _compute(self, array: Array, readers: dict[int, int], buffers: dict[int, Buffer]) -> None:
        for one in array.outputs:
            buffers[id(one)] = self._place(one, readers, buffers)
        own = buffers[id(array)]
        held = []
        for one in (*array.inputs, *array.outputs[1:]):
            buffer = buffers.get(id(one))
            if buffer is not None and buffer is not own:
                buffer.pending += 1
                held.append(buffer)
        if array.temporary_bytes:
            temporary = self._allocate(array.temporary_bytes, array.cause)
            temporary.arrays, temporary.pending = 0, 1
            held.append(temporary)
        queue = self._queue
        self._sent += queue.steps_per_view if array.storage is Storage.VIEW else queue.steps_per_primitive
        self._holds.append((self._sent, held))
        self._finish(self._sent - queue.lag)
        for one in array.outputs:
            if not readers.get(id(one)):
                self._leave(buffers.pop(id(one)))
        for one in array.inputs:
            readers[id(one)] -= 1
            if readers[id(one)] == 0 and id(one) in buffers:
                self._leave(buffers.pop(id(one)))

    def _place(self, array: Array, readers: dict[int, int], buffers: dict[int, Buffer]) -> Buffer:
        if array.storage is Storage.VIEW:
            assert array.source is not None
            buffer = buffers.get(id(array.source))
            if buffer is None:  # of what lay there before
                return Buffer(0)
            buffer.arrays += 1
            return buffer
        if array.storage is Storage.REUSE:
            for one in array.inputs:
                buffer = buffers.get(id(one))
                if (
                    buffer is not None
                    and buffer.nbytes == array.nbytes
                    and buffer.arrays == 1
                    and not one.strided_bytes
                    and not buffer.pending
                    and readers[id(one)] == 1
                ):
                    buffer.arrays += 1
                    return buffer
        return self._allocate(array.nbytes, array.cause)

    def _allocate(self, nbytes: int, cause: str) -> Buffer:
        self.live_bytes += nbytes
        self._live[cause] = self._live.get(cause, 0) + nbytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self._at_peak = None
        return Buffer(nbytes, cause)

    def _finish(self, steps: int) -> None:
        """So many steps are computed."""
        while self._holds and self._holds[0][0] <= steps:
            for buffer in self._holds.popleft()[1]:
                buffer.pending -= 1
                self._free(buffer)

    def _leave(self, buffer: Buffer) -> None:
        buffer.arrays -= 1
        self._free(buffer)

    def _free(self, buffer: Buffer) -> None:
        if buffer.nbytes and not buffer.arrays and not buffer.pending:
            if self._at_peak is None and self.live_bytes == self.peak_bytes:
                self._at_peak = dict(self._live)
            self.live_bytes -= buffer.nbytes
            self._live[buffer.cause] -= buffer.nbytes
            buffer.nbytes = 0
