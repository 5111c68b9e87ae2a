"""Arrays without numbers: graphs of MLX's primitives and their gradients.

`vjp` builds a backward pass in the order in which MLX does (mlx/transforms.cpp), so that
`liveness` can say how much memory its evaluation takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from math import prod

Shape = tuple[int, ...]
Backward = Callable[["Array", list["Array"], tuple[int, ...]], list["Array"]]
"""Of (output, cotangents of it and its siblings, places of inputs): the cotangents of those inputs."""


_cause: ContextVar[str] = ContextVar("cause", default="activations")
KEPT_CAUSES = frozenset({"attention_scores", "logits"})
"""What the backward pass of such an array makes is of the same cause; of all others it is workspace."""


@contextmanager
def caused(name: str) -> Iterator[None]:
    """Arrays made within are there for this reason."""
    token = _cause.set(name)
    try:
        yield
    finally:
        _cause.reset(token)


class Storage(Enum):
    """Where an array's values lie."""

    NEW = "new"
    """In memory of its own."""
    VIEW = "view"
    """In that of its source."""
    REUSE = "reuse"
    """In an input's that nobody needs any more and that is as large; else in its own."""


class Array:
    """What a primitive makes of its inputs; without inputs it lies in memory already."""

    __slots__ = (
        "backward",
        "cause",
        "inputs",
        "is_ready",
        "itemsize",
        "outputs",
        "shape",
        "source",
        "storage",
        "strided_bytes",
        "temporary_bytes",
    )

    def __init__(
        self,
        shape: Shape,
        itemsize: int,
        inputs: tuple[Array, ...] = (),
        storage: Storage = Storage.NEW,
        backward: Backward | None = None,
        temporary_bytes: int = 0,
    ) -> None:
        self.shape = shape
        self.itemsize = itemsize
        self.inputs = inputs
        self.storage = storage
        self.backward = backward
        self.temporary_bytes = temporary_bytes
        """Taken while it is computed, beside itself."""
        self.cause = _cause.get()
        self.is_ready = not inputs
        self.strided_bytes = 0
        """What a copy of it takes, if its elements do not lie in the order of its axes."""
        self.source = inputs[0] if storage is Storage.VIEW else None
        self.outputs: tuple[Array, ...] = (self,)
        """All that the primitive makes."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize


def siblings(*arrays: Array) -> tuple[Array, ...]:
    """Declare these the outputs of one primitive."""
    for array in arrays:
        array.outputs = arrays
    return arrays


def vjp(outputs: Sequence[Array], cotangents: Sequence[Array], primals: Sequence[Array]) -> list[Array]:
    """The cotangents of `primals`; those that do not matter get zeros."""
    from graft_scheduler.memory.operations import add, zeros_like

    differentiated = {id(primal) for primal in primals}
    seen = set(differentiated)
    tape: list[Array] = []
    for output in outputs:
        _record(output, seen, differentiated, tape)
    found: dict[int, Array] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        found[id(output)] = cotangent
    for array in reversed(tape):
        places = tuple(place for place, one in enumerate(array.inputs) if id(one) in differentiated)
        if not any(id(one) in found for one in array.outputs):
            continue
        given = [found.pop(id(one)) if id(one) in found else zeros_like(one) for one in array.outputs]
        assert array.backward is not None, "no gradient goes through this primitive"
        with caused(array.cause if array.cause in KEPT_CAUSES else "workspace"):
            cotangents_of_inputs = array.backward(array, given, places)
        for place, cotangent in zip(places, cotangents_of_inputs, strict=True):
            name = id(array.inputs[place])
            found[name] = add(found[name], cotangent) if name in found else cotangent
    return [found[id(primal)] if id(primal) in found else zeros_like(primal) for primal in primals]


def _record(output: Array, seen: set[int], differentiated: set[int], tape: list[Array]) -> None:
    """What lies between the primals and `output`, inputs first."""
    if id(output) in seen:
        return
    stack = [(output, 0)]
    seen.update(id(one) for one in output.outputs)
    while stack:
        array, place = stack.pop()
        if place < len(array.inputs):
            stack.append((array, place + 1))
            following = array.inputs[place]
            if id(following) not in seen:
                seen.update(id(one) for one in following.outputs)
                stack.append((following, 0))
        elif array.backward is not None and any(id(one) in differentiated for one in array.inputs):
            tape.append(array)
            differentiated.update(id(one) for one in array.outputs)
