"""Which rows are held out for validation, and in which order rows are drawn: the same on any host."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def split(
    rows: Sequence[_Item], fraction: float, seed: int, keys: Sequence[int] | None = None
) -> tuple[list[_Item], list[_Item]]:
    """Training and validation rows, each in file order; at least one of each.

    Depends on nothing but the number of rows, `fraction`, `seed` and which rows are the same, as `keys`
    has it: those go to one side together. Rows that are all the same are on both sides, as is a single
    one: it can be learned, and its validation loss is then a training loss.
    """
    held_out = _held_out(keys if keys is not None else range(len(rows)), fraction, seed)
    if not held_out:
        return list(rows), list(rows)
    return (
        [row for index, row in enumerate(rows) if index not in held_out],
        [row for index, row in enumerate(rows) if index in held_out],
    )


def _held_out(keys: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Places of rows: all with a key or none, as many as `fraction` says, or less where that cannot be."""
    count = min(len(keys) - 1, max(1, round(len(keys) * fraction)))
    places: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    if len(places) < 2:
        return set()
    held_out: set[int] = set()
    for place in permutation(len(keys), f"split/{seed}"):
        if len(held_out) == count:
            break
        alike = places[keys[place]]
        if place not in held_out and len(held_out) + len(alike) <= count:
            held_out.update(alike)
    return held_out or set(min((len(alike), alike) for alike in places.values())[1])


def permutation(count: int, seed: str) -> list[int]:
    """The numbers below `count` in an order that only `seed` decides, on any host.

    Made from `random()` alone: of Python's generator, only that is promised to stay the same.
    """
    draw = random.Random(seed).random
    keys = [draw() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)
