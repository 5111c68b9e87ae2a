"""Rows held out for validation: the same on every host, and none that is trained on too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.data.splitting import permutation, split


@given(
    keys=st.lists(st.integers(0, 60), min_size=2, max_size=200),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_split_parts_the_rows_in_two_and_keeps_what_is_the_same_together(
    keys: list[int], fraction: float, seed: int
) -> None:
    rows = list(range(len(keys)))

    train, valid = split(rows, fraction, seed, keys)

    assert train
    assert valid
    assert train == sorted(train)
    assert (train, valid) == split(rows, fraction, seed, [key + 7 for key in keys])
    if len(set(keys)) > 1:
        assert sorted(train + valid) == rows
        assert not {keys[row] for row in train} & {keys[row] for row in valid}


def test_a_split_takes_the_share_it_is_asked_for() -> None:
    _, valid = split(range(200), 0.1, seed=0)
    _, others = split(range(200), 0.1, seed=1)
    _, unlike = split(range(200), 0.1, seed=0, keys=[row // 2 for row in range(200)])

    assert len(valid) == len(unlike) == 20
    assert valid != others


def test_a_single_row_is_learned_and_measured() -> None:
    assert split(["only"], 0.1, seed=0) == (["only"], ["only"])
    assert split(["a", "a"], 0.1, seed=0, keys=[5, 5]) == (["a", "a"], ["a", "a"])


def test_a_permutation_is_the_same_on_every_host_and_python() -> None:
    assert permutation(8, "epoch/0/0") == [3, 1, 6, 0, 4, 2, 7, 5]
