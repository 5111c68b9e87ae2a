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
    differentiated = set(primals)
    seen = set(primals)
    tape: list[Array] = []
    for output in outputs:
        _record(output, seen, differentiated, tape)
    found = dict(zip(outputs, cotangents, strict=True))
    for array in reversed(tape):
        made = array.outputs
        if found.keys().isdisjoint(made):
            continue
        given = [found.pop(one) if one in found else zeros_like(one) for one in made]
        inputs = array.inputs
        places = tuple([place for place, one in enumerate(inputs) if one in differentiated])
        assert array.backward is not None, "no gradient goes through this primitive"
        with caused(array.cause if array.cause in KEPT_CAUSES else "workspace"):
            cotangents_of_inputs = array.backward(array, given, places)
        for place, cotangent in zip(places, cotangents_of_inputs, strict=True):
            one = inputs[place]
            found[one] = add(found[one], cotangent) if one in found else cotangent
    return [found[primal] if primal in found else zeros_like(primal) for primal in primals]


def _record(output: Array, seen: set[Array], differentiated: set[Array], tape: list[Array]) -> None:
    """What lies between the primals and `output`, inputs first."""
    if output in seen:
        return
    seen.update(output.outputs)
    stack = [(output, iter(output.inputs))]
    while stack:
        array, inputs = stack[-1]
        for one in inputs:
            if one not in seen:
                seen.update(one.outputs)
                stack.append((one, iter(one.inputs)))
                break
        else:
            stack.pop()
            if array.backward is not None and not differentiated.isdisjoint(array.inputs):
                tape.append(array)
                differentiated.update(array.outputs)
