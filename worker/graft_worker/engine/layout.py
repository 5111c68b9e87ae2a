"""How trainable arrays are kept between steps: each by its name, or end to end in a few long ones.

Adapters are hundreds of small arrays, and a GPU needs as long to start on a small one as on a large.
Optimizers that treat every number alike (adam, adamw, sgd, lion) work on them end to end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from graft_scheduler.hyperparameters import BY_ELEMENT, Method
from graft_scheduler.jobs import TrainJob
from graft_worker.engine.adapters import Parameters


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies: in which long one, from which element on."""

    group: str
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Translates between arrays by name and arrays as they are kept; exact both ways."""

    places: dict[str, Place] | None
    """By name, in the model's order; `None` keeps every array as it is."""

    def pack(self, named: Parameters) -> Parameters:
        """The arrays as they are kept; a gradient's too."""
        if self.places is None:
            return named
        groups: dict[str, list[mx.array]] = {}
        for name, place in self.places.items():
            groups.setdefault(place.group, []).append(named[name].reshape(-1))
        return {group: mx.concatenate(parts) for group, parts in groups.items()}

    def unpack(self, kept: Parameters) -> Parameters:
        """The arrays by name."""
        if self.places is None:
            return kept
        return {
            name: kept[place.group][place.start : place.end].reshape(place.shape)
            for name, place in self.places.items()
        }


def choose_layout(spec: TrainJob, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """End to end by the last word of their names (`lora_a`, `lora_b`, `m`), where that is the same."""
    if spec.method is Method.FULL or spec.optimizer.name not in BY_ELEMENT:
        return Layout(None)
    return Layout(_end_to_end(shapes))


def _end_to_end(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    ends: dict[str, int] = {}
    for name, shape in shapes.items():
        group = name.rpartition(".")[2]
        place = Place(group, ends.get(group, 0), shape)
        places[name] = place
        ends[group] = place.end
    return places
