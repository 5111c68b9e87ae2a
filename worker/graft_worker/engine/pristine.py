"""A model's modules as they were loaded, to be put back after a job: to the last attribute, and at no cost.

No array is copied. It holds as long as nothing writes into an array of the base in place, which only
training the base itself could do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mlx import nn


class Pristine:
    """Remembers every module, list, dict and set of `model`, with its class and content."""

    def __init__(self, model: nn.Module) -> None:
        self._put_back = [_remember(one) for one in _containers(model)]

    def restore(self) -> None:
        """Make the model what it was: same objects, same arrays, same settings."""
        for put_back in self._put_back:
            put_back()


def _containers(root: nn.Module) -> Iterator[Any]:
    """All that can be changed in place, each once."""
    seen: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, (dict, list, tuple, set)) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += one.values() if isinstance(one, dict) else one
        if isinstance(one, nn.Module):
            waiting += vars(one).values()


def _remember(one: Any) -> Callable[[], None]:
    match one:
        case nn.Module():
            return _remember_module(one)
        case dict():
            items = dict(one)

            def put_back() -> None:
                one.clear()
                one.update(items)
        case list():
            members = list(one)

            def put_back() -> None:
                one[:] = members
        case set():
            elements = set(one)

            def put_back() -> None:
                one.clear()
                one.update(elements)
        case _:  # a tuple stays what it is; what lies in it is remembered by itself

            def put_back() -> None:
                pass

    return put_back


def _remember_module(module: nn.Module) -> Callable[[], None]:
    cls, items, attributes = type(module), dict(module), dict(vars(module))

    def put_back() -> None:
        module.__class__ = cls
        # Around the module's own ways of setting, which sort what they are given.
        dict.clear(module)
        dict.update(module, items)
        vars(module).clear()
        vars(module).update(attributes)

    return put_back
