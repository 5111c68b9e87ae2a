"""Arrays without numbers: the nodes of a graph of MLX's primitives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from math import prod

Shape = tuple[float, ...]
"""Not always whole: some micro-batch may hold 1.7 of the longest lines' worth of tokens."""
Backward = Callable[["Array", list["Array"], tuple[int, ...]], list["Array"]]
"""Of (output, cotangents of it and its siblings, places of inputs): the cotangents of those inputs."""

_cause: ContextVar[str] = ContextVar("cause", default="activations")


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
        "shape",
        "siblings",
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
        self.siblings: tuple[Array, ...] = ()
        """All that the primitive makes, this array too; empty where it makes nothing else."""

    @property
    def outputs(self) -> tuple[Array, ...]:
        """All that the primitive makes."""
        return self.siblings or (self,)

    @property
    def nbytes(self) -> int:
        return round(prod(self.shape) * self.itemsize)


def siblings(*arrays: Array) -> tuple[Array, ...]:
    """Declare these the outputs of one primitive."""
    for array in arrays:
        array.siblings = arrays
    return arrays
