"""In which order MLX evaluates a graph, and the most memory that it holds meanwhile."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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
        inputs = array.inputs
        for number in range(start, len(inputs)):
            one = inputs[number]
            if one.is_ready:
                continue
            if len(tape) - place >= MAX_WIDTH:
                waiting.append((array, number))
                break
            first = one.outputs[0]
            left = uses[first] = uses[first] - 1
            if not left:
                del uses[first]
                tape.append(one)
    return tape[:0:-1]


def _count_uses(goal: Array) -> dict[Array, int]:
    """How often what a primitive makes is read, by the first of its outputs."""
    uses: dict[Array, int] = {}
    stack = [goal]
    while stack:
        for one in stack.pop().inputs:
            if one.is_ready:
                continue
            first = one.outputs[0]
            if first in uses:
                uses[first] += 1
            else:
                uses[first] = 1
                stack.append(one)
    return uses


@dataclass(frozen=True, slots=True)
class Tape:
    """What has to be computed for some outputs, in its order."""

    arrays: Sequence[Array]
    readers: Mapping[Array, int]
    """How often an array is read; once more if it is an output."""


def tape_of(outputs: Sequence[Array]) -> Tape:
    """To evaluate more than once."""
    arrays = order(outputs)
    readers = Counter(chain.from_iterable(array.inputs for array in arrays))
    readers.update(outputs)
    return Tape(arrays, readers)


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


def kept_parts(tape: Tape, until: Array) -> dict[str, int]:
    """What is held where `until` was computed on the way, by cause."""
    memory = Memory(AT_ONCE)
    memory.evaluate(tape, until=until)
    return memory.live


def peak_parts(tape: Tape, queue: Queue, owned: Sequence[Array] = ()) -> dict[str, int]:
    """What is held at the peak of an evaluation, by cause.

    Where only so much may wait to be given back, that is the peak without any waiting and, as the
    cause `waiting`, what waiting without bounds would add.
    """
    memory = Memory(queue)
    memory.evaluate(tape, owned)
    if queue.most_bytes is None:
        return memory.parts
    at_once = Memory(AT_ONCE)
    at_once.evaluate(tape, owned)
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

    def evaluate(self, tape: Tape, owned: Sequence[Array] = (), until: Array | None = None) -> None:
        """Compute the outputs, which stay; all that only they were made of goes, and what is `owned` too.

        Stops where `until` was computed, with all that is still to be read.
        """
        readers = dict(tape.readers)
        buffers = {one: self._allocate(one.nbytes, "optimizer") for one in owned}
        for array in tape.arrays:
            self._compute(array, readers, buffers)
            if array is until:
                break
        self._finish(self._sent)
        self._sent = 0

    def _compute(self, array: Array, readers: dict[Array, int], buffers: dict[Array, Buffer]) -> None:
        outputs = array.outputs
        for one in outputs:
            buffers[one] = self._place(one, readers, buffers)
        if self._queue.lag:
            self._send(array, buffers)
        elif array.temporary_bytes:
            self._free(self._allocate(array.temporary_bytes, array.cause, arrays=0))
        for one in outputs:
            if not readers.get(one):
                self._leave(buffers.pop(one))
        for one in array.inputs:
            left = readers[one] = readers[one] - 1
            if not left and one in buffers:
                self._leave(buffers.pop(one))

    def _send(self, array: Array, buffers: Mapping[Array, Buffer]) -> None:
        """Keep what it reads and makes until it was computed."""
        own = buffers[array]
        held = []
        for one in (*array.inputs, *array.outputs[1:]):
            buffer = buffers.get(one)
            if buffer is not None and buffer is not own:
                buffer.pending += 1
                held.append(buffer)
        if array.temporary_bytes:
            temporary = self._allocate(array.temporary_bytes, array.cause, arrays=0)
            temporary.pending = 1
            held.append(temporary)
        queue = self._queue
        self._sent += queue.steps_per_view if array.storage is Storage.VIEW else queue.steps_per_primitive
        self._holds.append((self._sent, held))
        self._finish(self._sent - queue.lag)

    def _place(self, array: Array, readers: Mapping[Array, int], buffers: Mapping[Array, Buffer]) -> Buffer:
        storage = array.storage
        if storage is Storage.VIEW:
            assert array.source is not None
            buffer = buffers.get(array.source)
            if buffer is None:  # of what lay there before
                return Buffer(0)
            buffer.arrays += 1
            return buffer
        nbytes = array.nbytes
        if storage is Storage.REUSE:
            for one in array.inputs:
                if readers[one] == 1:
                    buffer = buffers.get(one)
                    if buffer is not None and _is_free(buffer, one, nbytes):
                        buffer.arrays += 1
                        return buffer
        return self._allocate(nbytes, array.cause)

    def _allocate(self, nbytes: int, cause: str, arrays: int = 1) -> Buffer:
        self.live_bytes += nbytes
        self._live[cause] = self._live.get(cause, 0) + nbytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self._at_peak = None
        return Buffer(nbytes, cause, arrays)

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


def _is_free(buffer: Buffer, array: Array, nbytes: int) -> bool:
    """Whether something as large may lie there, where nobody else reads the array."""
    return buffer.nbytes == nbytes and buffer.arrays == 1 and not array.strided_bytes and not buffer.pending
