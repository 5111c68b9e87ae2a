"""Backward passes, built in the order in which MLX does (mlx/transforms.cpp), so that `liveness` can say how
much memory their evaluation takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from graft_scheduler.memory.arrays import Array, caused
from graft_scheduler.memory.operations import add, zeros_like

KEPT_CAUSES = frozenset({"attention_scores", "logits"})
"""What the backward pass of such an array makes is of the same cause; of all others it is workspace."""


def vjp(outputs: Sequence[Array], cotangents: Sequence[Array], primals: Sequence[Array]) -> list[Array]:
    """The cotangents of `primals`; those that do not matter get zeros."""
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
