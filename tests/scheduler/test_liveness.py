"""Small graphs whose peaks a person can count: in which order they are evaluated, and what that holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_scheduler.memory import kernels
from graft_scheduler.memory import operations as op
from graft_scheduler.memory.arrays import Array, siblings
from graft_scheduler.memory.liveness import AT_ONCE, MAX_WIDTH, Memory, Queue, order, peak_parts, tape_of
from graft_scheduler.memory.vjp import vjp

EXAMPLES = settings(max_examples=60, deadline=None)
MIB = 1 << 20
SHAPE = (512, 512)
"""Of 1 MiB in float32."""


def given_array() -> Array:
    return op.ready(SHAPE, 4)


def apart(array: Array) -> Array:
    """Something of the same size, in memory of its own."""
    return op.free_unary(array)


def chain(array: Array, length: int, step: Callable[[Array], Array] = apart) -> Array:
    for _ in range(length):
        array = step(array)
    return array


def evaluated(*outputs: Array, owned: tuple[Array, ...] = (), queue: Queue = AT_ONCE) -> Memory:
    memory = Memory(queue)
    memory.evaluate(tape_of(outputs), owned)
    return memory


def peak_mib(*outputs: Array, queue: Queue = AT_ONCE) -> float:
    return evaluated(*outputs, queue=queue).peak_bytes / MIB


# --- what is held


def test_a_chain_holds_two_of_its_links() -> None:
    memory = evaluated(chain(given_array(), 10))

    assert memory.peak_bytes == 2 * MIB
    assert memory.live_bytes == MIB


def test_what_lies_there_already_costs_nothing() -> None:
    assert peak_mib(given_array()) == 0


def test_a_function_of_single_elements_takes_over_its_input() -> None:
    assert peak_mib(chain(given_array(), 10, op.unary)) == 1


def test_nothing_is_taken_over_that_another_still_reads() -> None:
    hidden = apart(given_array())

    assert peak_mib(op.multiply(op.unary(hidden), hidden)) == 2


def test_nothing_is_taken_over_of_another_size() -> None:
    row = apart(op.ready((1, 512), 4))
    wide = op.broadcast(row, SHAPE)

    assert evaluated(op.unary(wide)).peak_bytes == MIB + 512 * 4


def test_a_residual_stays_until_it_is_added() -> None:
    hidden = apart(given_array())

    assert peak_mib(op.add(hidden, chain(hidden, 5))) == 3


def test_a_view_keeps_all_of_its_source() -> None:
    source = apart(given_array())
    corner = op.part(source, (1, 1))

    assert evaluated(corner).live_bytes == MIB
    assert evaluated(apart(corner)).live_bytes == 4


def test_a_view_of_a_view_keeps_the_source_once() -> None:
    source = apart(given_array())

    assert evaluated(op.turned(op.turned(source)), source).live_bytes == MIB


def test_what_a_primitive_takes_beside_itself_is_gone_after_it() -> None:
    memory = evaluated(op.made_of([given_array()], SHAPE, 4, temporary_bytes=5 * MIB))

    assert memory.peak_bytes == 6 * MIB
    assert memory.live_bytes == MIB


def test_a_product_of_what_lies_in_another_order_copies_it() -> None:
    plain, other = given_array(), op.strided(given_array(), SHAPE)

    assert peak_mib(op.matmul(plain, plain)) == 1
    assert peak_mib(op.matmul(other, plain)) == 2


def test_the_outputs_of_one_primitive_come_together() -> None:
    source = apart(given_array())
    left, right = siblings(op.made_of([source], SHAPE, 4), op.made_of([source], SHAPE, 4))

    assert peak_mib(left) == 3  # the source, and both
    assert evaluated(left).live_bytes == MIB
    assert evaluated(left, right).live_bytes == 2 * MIB


def test_what_is_owned_is_there_from_the_start_and_may_be_taken_over() -> None:
    old = op.ready(SHAPE, 4)
    new = op.add(old, given_array())

    assert evaluated(new, owned=(old,)).peak_bytes == MIB
    assert evaluated(new).peak_bytes == MIB
    assert evaluated(new, owned=()).live_bytes == evaluated(new, owned=(old,)).live_bytes == MIB


def test_a_peak_is_told_by_its_causes() -> None:
    memory = evaluated(op.add(apart(given_array()), apart(given_array())))

    assert memory.parts == {"activations": 2 * MIB}


# --- how far ahead primitives are sent off


@pytest.mark.parametrize("lag", [0, 1, 3, 7])
def test_memory_is_not_free_before_what_read_it_is_computed(lag: int) -> None:
    assert peak_mib(chain(given_array(), 20), queue=Queue(lag)) == lag + 2


def test_primitives_of_two_steps_lag_half_as_long() -> None:
    queue = Queue(lag=6, steps_per_primitive=2)

    assert peak_mib(chain(given_array(), 20), queue=queue) == 3 + 2


def test_what_waits_is_told_apart_where_it_is_bounded() -> None:
    outputs = [chain(given_array(), 20)]

    assert sum(peak_parts(tape_of(outputs), Queue(lag=1000)).values()) == 20 * MIB
    parts = peak_parts(tape_of(outputs), Queue(lag=1000, most_bytes=3 * MIB))
    assert parts.pop("waiting") == 18 * MIB
    assert sum(parts.values()) == 2 * MIB


def test_no_lag_outlives_an_evaluation() -> None:
    memory = Memory(Queue(lag=1000))

    for _ in range(5):
        memory.evaluate(tape_of([chain(given_array(), 4)]))

    assert memory.live_bytes == 5 * MIB  # the outputs


# --- what a gradient keeps


def gradient_of(function: Callable[[Array], Array]) -> list[Array]:
    x = op.copy(given_array())
    return vjp([op.total(function(x))], [op.ready((), 4)], [x])


def test_a_gradient_keeps_what_it_reads_again() -> None:
    sums = gradient_of(lambda x: chain(x, 8, lambda one: op.add(one, op.SCALAR)))
    powers = gradient_of(lambda x: chain(x, 8, op.exp))

    assert peak_mib(*sums) <= 1  # an element of the same number for all
    assert peak_mib(*powers) >= 8


def test_a_product_keeps_its_other_factor_only_where_it_learns() -> None:
    frozen, hidden = given_array(), op.copy(given_array())
    (slope,) = vjp([op.total(op.matmul(hidden, frozen))], [op.ready((), 4)], [hidden])

    assert peak_mib(slope) == 1


def test_a_checkpoint_keeps_its_input_and_computes_the_rest_again() -> None:
    def block(one: Array) -> Array:
        return chain(one, 6, op.exp)

    def recomputed(one: Array) -> Array:
        return kernels.checkpoint(lambda inner: [block(inner[0])], [one])[0]

    kept = peak_mib(*gradient_of(lambda x: chain(x, 4, block)))
    again = peak_mib(*gradient_of(lambda x: chain(x, 4, recomputed)))

    assert kept >= 24
    assert again <= 4 + 6 + 2


def test_a_gradient_of_what_does_not_matter_is_zeros_of_no_size() -> None:
    x, other = op.copy(given_array()), op.copy(given_array())
    slopes = vjp([op.total(op.exp(x))], [op.ready((), 4)], [x, other])

    assert evaluated(slopes[1]).live_bytes == 0


# --- laws of any graph


@st.composite
def graphs(draw: st.DrawFn) -> list[Array]:
    """Arrays, of which any may read earlier ones; some at once more than MLX looks at."""
    arrays: list[Array] = [given_array()]
    for _ in range(draw(st.integers(1, 40))):
        reads = draw(st.lists(st.sampled_from(arrays), min_size=1, max_size=MAX_WIDTH + 5))
        make = draw(st.sampled_from(["new", "view", "reuse"]))
        if make == "new":
            arrays.append(op.made_of(reads, SHAPE, 4))
        elif make == "view":
            arrays.append(op.view(reads[0], SHAPE))
        else:
            arrays.append(op.unary(reads[0]))
    return arrays


@EXAMPLES
@given(graphs(), st.data())
def test_every_array_is_computed_once_and_after_all_that_it_reads(
    arrays: list[Array], data: st.DataObject
) -> None:
    outputs = data.draw(st.lists(st.sampled_from(arrays), min_size=1, max_size=5, unique_by=id))

    tape = [id(array) for array in order(outputs)]

    place = {name: number for number, name in enumerate(tape)}
    assert len(place) == len(tape)
    computed = [array for array in _all_below(outputs) if not array.is_ready]
    assert {id(array) for array in computed} == set(place)
    for array in computed:
        assert all(one.is_ready or place[id(one)] < place[id(array)] for one in array.inputs)


def _all_below(outputs: list[Array]) -> list[Array]:
    found: dict[int, Array] = {}
    stack = list(outputs)
    while stack:
        array = stack.pop()
        if id(array) not in found:
            found[id(array)] = array
            stack.extend(array.inputs)
    return list(found.values())


@EXAMPLES
@given(graphs(), st.integers(0, 100), st.integers(1, 2))
def test_a_longer_lag_never_takes_less_and_leaves_the_same(arrays: list[Array], lag: int, steps: int) -> None:
    prompt = evaluated(arrays[-1])
    late = evaluated(arrays[-1], queue=Queue(lag, steps_per_primitive=steps))

    assert late.peak_bytes >= prompt.peak_bytes
    assert late.live_bytes == prompt.live_bytes <= prompt.peak_bytes
    assert sum(late.parts.values()) == late.peak_bytes
