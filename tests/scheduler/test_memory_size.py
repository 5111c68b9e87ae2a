"""How bytes are written for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.memory import format_bytes
from graft_scheduler.settings import parse_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("number_of_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (MIB - 1, "1 MB"),
        (16 << 30, "16 GB"),
        (14_388_390_297, "13.4 GB"),
        (5 << 40, "5 TB"),
        (-3 << 30, "-3 GB"),
    ],
)
def test_bytes_are_written_as_macs_are_sold(number_of_bytes: int, text: str) -> None:
    assert format_bytes(number_of_bytes) == text


@given(st.integers(1, 1 << 44))
def test_what_is_written_can_be_read_again(number_of_bytes: int) -> None:
    assert parse_bytes(format_bytes(number_of_bytes)) == pytest.approx(number_of_bytes, rel=0.051)
