"""Finding, reading, checking and splitting data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_scheduler.datasets import check, find_files, permutation, read_rows, split
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
COMPLETION = {"prompt": "a", "completion": "b"}
TEXT = {"text": "a"}


def write(path: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def chat(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("row", "data_format"),
    [(CHAT, DataFormat.CHAT), (COMPLETION, DataFormat.COMPLETION), (TEXT, DataFormat.TEXT)],
)
def test_the_format_is_detected_from_the_rows(
    tmp_path: Path, row: dict[str, Any], data_format: DataFormat
) -> None:
    path = write(tmp_path / "rows.jsonl", [row, row])

    summary = check(path)

    assert (summary.format, summary.train_rows, summary.valid_rows) == (data_format, 2, 0)


def test_a_folder_holds_training_and_validation_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [TEXT, TEXT, TEXT])
    write(tmp_path / "valid.jsonl", [TEXT])

    summary = check(tmp_path)

    assert (summary.train_rows, summary.valid_rows) == (3, 1)
    assert find_files(tmp_path).valid == tmp_path / "valid.jsonl"


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\n\n  \r\n{"text": "b"}')

    rows = read_rows(path)

    assert [(row.line, row.fields["text"]) for row in rows] == [(1, "a"), (4, "b")]
    assert check(path).train_rows == 2


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"text": ', "is not JSON"),
        ("[1]", "is a list; each line must be an object"),
        ("12", "is a number; each line must be an object"),
        ("[" * 100_000, "is nested too deeply"),
        ({"other": 1}, "its fields are `other`"),
        ({}, "its fields are none"),
        ({"text": ""}, "`text` is empty"),
        ({"text": " \n"}, "`text` is empty"),
        ({"text": None}, "`text` is missing"),
        ({"text": 3}, "`text` is a number; it must be a string"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ({"prompt": "a"}, "its fields are `prompt`"),
        ({"prompt": "a", "completion": ["b"]}, "`completion` is a list; it must be a string"),
        ({"messages": []}, "`messages` is empty"),
        ({"messages": "hello"}, "`messages` is a string; it must be a list"),
        (chat("hello"), "`messages[0]` is a string; it must be an object"),
        (chat({"content": "a"}), "`messages[0].role` is missing"),
        (
            chat({"role": "bot", "content": "a"}),
            "`messages[0].role` is 'bot'; it must be one of system, user",
        ),
        (chat({"role": ["user"], "content": "a"}), "`messages[0].role` is ['user']"),
        (chat({"role": "user"}), "`messages[0].content` is missing"),
        (chat({"role": "user", "content": "a"}), "no message of the role assistant"),
        (chat({"role": "assistant", "content": ""}), "`messages[0].content` is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_line(tmp_path: Path, row: object, complaint: str) -> None:
    path = write(tmp_path / "rows.jsonl", ["", row])

    with pytest.raises(InvalidInput) as refusal:
        check(path)

    assert str(refusal.value).startswith(f"{path}:2: ")
    assert complaint in str(refusal.value)


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')

    with pytest.raises(InvalidInput, match=r"rows\.jsonl:2: is not UTF-8"):
        check(path)


def test_rows_of_another_format_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [TEXT, COMPLETION])

    with pytest.raises(InvalidInput, match=":2: is a completion row, but the data set's format is text"):
        check(path)
    with pytest.raises(InvalidInput, match=":1: is a text row, but the data set's format is chat"):
        check(path, DataFormat.CHAT)


def test_a_row_that_fits_several_formats_is_read_in_the_one_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**COMPLETION, **TEXT}, TEXT])

    assert check(path, DataFormat.TEXT).format is DataFormat.TEXT


def test_the_validation_file_must_have_the_format_of_the_training_file(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [TEXT])
    write(tmp_path / "valid.jsonl", [CHAT])

    with pytest.raises(InvalidInput, match=r"valid\.jsonl:1: is a chat row"):
        check(tmp_path)


def test_an_assistant_turn_may_call_tools_instead_of_speaking(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    path = write(tmp_path / "rows.jsonl", [chat({"role": "user", "content": "a"}, calls)])

    assert check(path).format is DataFormat.CHAT


def test_only_the_first_bad_rows_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [TEXT, *(["{"] * 7)])

    with pytest.raises(InvalidInput) as refusal:
        check(path)

    assert str(refusal.value).count("is not JSON") == 5
    assert str(refusal.value).endswith("; and 2 more bad rows")
    with pytest.raises(InvalidInput, match="and 2 more bad rows"):
        read_rows(path)


@pytest.mark.parametrize("name", ["train.jsonl", "valid.jsonl"])
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.jsonl", [TEXT])
    write(tmp_path / name, [""])

    with pytest.raises(InvalidInput, match=f"{name}: has no rows"):
        check(tmp_path)


def test_a_path_that_holds_no_data_set_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "rows.csv"
    other.write_text("a,b")

    with pytest.raises(InvalidInput, match="there is no such file or folder"):
        find_files(tmp_path / "missing.jsonl")
    with pytest.raises(InvalidInput, match=r"has no train\.jsonl"):
        find_files(tmp_path)
    with pytest.raises(InvalidInput, match=r"must be a \.jsonl file"):
        find_files(other)


@given(
    count=st.integers(2, 200),
    fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_split_parts_the_rows_in_two_and_is_reproducible(count: int, fraction: float, seed: int) -> None:
    rows = list(range(count))

    train, valid = split(rows, fraction, seed)

    assert train
    assert valid
    assert sorted(train + valid) == rows
    assert train == sorted(train)
    assert (train, valid) == split(rows, fraction, seed)


def test_a_split_takes_the_share_it_is_asked_for() -> None:
    _, valid = split(range(200), 0.1, seed=0)
    _, others = split(range(200), 0.1, seed=1)

    assert len(valid) == 20
    assert valid != others


def test_a_single_row_is_learned_and_measured() -> None:
    assert split(["only"], 0.1, seed=0) == (["only"], ["only"])


def test_a_permutation_is_the_same_on_every_host_and_python() -> None:
    assert permutation(8, "epoch/0/0") == [3, 1, 6, 0, 4, 2, 7, 5]
