"""A corpus of broken data sets: every fault is told by file and line, nothing raises, none is accepted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from graft_scheduler.data.inspection import Inspection
from graft_scheduler.data.opening import inspect_source, open_source
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataRef
from tests.scheduler.data.writing import CHAT, COMPLETION, TEXT, chat, jsonl, look, places, turn, write

USER, ANSWER = turn("user"), turn("assistant")
CALL = turn("assistant", None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "f"}}])
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

BAD_ROWS: Mapping[str, tuple[object, str, str]] = {
    "cut-off": ('{"text": ', "syntax", "is not JSON"),
    "list": ("[1]", "syntax", "is a list; each row must be an object"),
    "number": ("12", "syntax", "is a number"),
    "null": ("null", "syntax", "is null"),
    "two-on-a-line": ('{"text": "a"} {"text": "b"}', "syntax", "Extra data"),
    "python-quotes": ("{'text': 'a'}", "syntax", "is not JSON"),
    "deep": ("[" * 100_000, "syntax", "is nested too deeply"),
    "twice": ('{"text": "a", "text": "b"}', "syntax", "has the key `text` twice"),
    "long-number": ('{"text": ' + "9" * 5000 + "}", "syntax", "is not JSON that can be read"),
    "no-field": ({"other": 1}, "fields", "its fields are `other`"),
    "nothing": ({}, "fields", "its fields are none"),
    "other-names": ({"question": "a", "answer": "b"}, "fields", "--column prompt=question"),
    "empty": ({"text": ""}, "empty", "`text` is empty"),
    "blank": ({"text": " \n"}, "empty", "`text` is empty"),
    "absent": ({"text": None}, "fields", "`text` is missing"),
    "of-another-type": ({"text": 3}, "fields", "`text` is a number; it must be a string"),
    "surrogate": ('{"text": "\\ud800"}', "encoding", "half of a surrogate pair"),
    "nul": ('{"text": "a\\u0000b"}', "garbled", "the control character U+0000"),
    "undecoded": ({"text": "caf\ufffd"}, "garbled", "U+FFFD"),
    "mojibake": ({"text": "cafÃ© au lait"}, "garbled", "read as another encoding"),
    "half": ({"prompt": "a"}, "fields", "its fields are `prompt`"),
    "list-answer": ({"prompt": "a", "completion": ["b"]}, "fields", "`completion` is a list"),
    "no-answer": ({"prompt": "a", "completion": " "}, "empty", "`completion` is empty"),
    "no-messages": (chat(), "fields", "`messages` is empty"),
    "text-messages": ({"messages": "hello"}, "fields", "`messages` is a string"),
    "text-message": (chat("hello"), "fields", "`messages[0]` is a string"),
    "no-role": (chat({"content": "a"}), "fields", "`messages[0].role` is missing"),
    "bad-role": (chat(turn("bot")), "fields", "`messages[0].role` is 'bot'; it must be one of system, user"),
    "list-role": (chat({"role": ["user"], "content": "a"}), "fields", "`messages[0].role` is ['user']"),
    "no-content": (chat({"role": "user"}, ANSWER), "fields", "`messages[0].content` is missing"),
    "image": (
        chat(turn("user", [{"type": "image_url", "image_url": {}}]), ANSWER),
        "fields",
        "`messages[0].content[0]` is of type 'image_url'; only text is trained on",
    ),
    "no-assistant": (chat(USER), "nothing-to-learn", "there is nothing to learn"),
    "empty-answer": (chat(USER, turn("assistant", "")), "empty", "`messages[1].content` is empty"),
    "late-system": (chat(USER, turn("system"), ANSWER), "roles", "it must be the first"),
    "two-users": (chat(USER, USER, ANSWER), "roles", "`messages[1]` is of the user, as the one before"),
    "two-answers": (chat(USER, ANSWER, ANSWER), "roles", "`messages[2]` is of the assistant, as the one"),
    "unasked": (chat(ANSWER), "roles", "nobody has asked"),
    "unanswered": (chat(USER, ANSWER, USER), "roles", "ends with a turn of the user"),
    "result-of-nothing": (chat(USER, turn("tool"), ANSWER), "roles", "calls no tool"),
    "weighted": (chat(USER, turn("assistant", weight=0)), "fields", "`messages[1].weight` is 0"),
    "tools-of-text": (chat(USER, ANSWER, tools="{"), "tools", "`tools` is not JSON"),
    "tools-of-words": (chat(USER, ANSWER, tools=["f"]), "tools", "`tools[0]` names no function"),
    "calls-of-words": (
        chat(USER, turn("assistant", "", tool_calls="f")),
        "tools",
        "`messages[1].tool_calls`",
    ),
    "arguments": (
        chat(USER, turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "{x"}}])),
        "tools",
        ".arguments` is not JSON",
    ),
    "unknown-tool": (
        chat(USER, turn("assistant", "", tool_calls=[{"function": {"name": "g"}}]), tools=[TOOL]),
        "tools",
        "calls 'g', which is not among its tools",
    ),
    "unknown-call": (
        chat(USER, CALL, turn("tool", "3", tool_call_id="2"), ANSWER),
        "tools",
        "`messages[2].tool_call_id` is '2', and no call before it waits",
    ),
    "alpaca-without-output": ({"instruction": "a", "output": ""}, "empty", "`output` is empty"),
    "alpaca-with-history": (
        {"instruction": "a", "output": "b", "history": [["q", "a"]]},
        "fields",
        "`history` is set",
    ),
    "sharegpt-nothing": ({"conversations": []}, "fields", "`conversations` is empty"),
    "sharegpt-speaker": (
        {"conversations": [{"from": "martian", "value": "a"}]},
        "fields",
        "`conversations[0].from` is 'martian'",
    ),
    "sharegpt-empty": (
        {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]},
        "empty",
        "`conversations[1].value` is empty",
    ),
    "key": ({"text": "my key is AKIAIOSFODNN7EXAMPLE"}, "secret", "an AWS access key (AKIA…)"),
    "password": ({"text": "postgres://me:hunter2@db/x"}, "secret", "a URL with a password"),
    "nan": ('{"text": "a", "score": NaN}', "syntax", "holds NaN, which is not JSON"),
    "surrogate-in-a-call": (
        chat(
            USER,
            turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}]),
            turn("tool", "1"),
            ANSWER,
        ),
        "encoding",
        "half of a surrogate pair",
    ),
    "secret-in-another-field": (
        {"text": "a", "meta": {"key": "AKIAIOSFODNN7EXAMPLE"}},
        "secret",
        "`meta.key`",
    ),
    "secret-in-a-call": (
        chat(
            USER,
            turn(
                "assistant",
                "",
                tool_calls=[{"function": {"name": "f", "arguments": {"key": "AKIAIOSFODNN7EXAMPLE"}}}],
            ),
            turn("tool", "1"),
            ANSWER,
        ),
        "secret",
        "tool_calls",
    ),
    "env-file": ({"text": "DB_PASSWORD=Sup3rS3cretPassw0rd"}, "secret", "a password"),
    "unseen": ({"text": "\u200b\ufeff"}, "empty", "`text` is empty"),
    "mojibake-of-cyrillic": ({"text": "ÐŸÑ€Ð¸Ð²ÐµÑ‚"}, "garbled", "read as another encoding"),
    "ends-with-a-result": (
        chat(USER, CALL, turn("tool", "3", tool_call_id="1")),
        "roles",
        "does not take up",
    ),
    "two-calls-one-result": (
        chat(
            USER,
            turn("assistant", "", tool_calls=[{"id": one, "function": {"name": "f"}} for one in ("1", "2")]),
            turn("tool", "3", tool_call_id="1"),
            ANSWER,
        ),
        "tools",
        "comes before the result of 1 call",
    ),
    "user-who-calls": (chat(turn("user", tool_calls="abc"), ANSWER), "tools", "only the assistant calls"),
    "arguments-of-a-list": (
        chat(
            USER,
            turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]),
            turn("tool", "1"),
            ANSWER,
        ),
        "tools",
        "`messages[1].tool_calls[0].arguments` is a list",
    ),
    "old-functions": (chat(USER, ANSWER, functions=[{"name": "f"}]), "tools", "OpenAI's old form"),
    "private-key": ({"text": "-----BEGIN RSA PRIVATE KEY-----\nMII"}, "secret", "a private key"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    row, kind, words = BAD_ROWS[name]
    path = write(tmp_path / "rows.jsonl", "", row)

    found = look(path)

    assert ("rows.jsonl", 2, kind) in places(found)
    assert any(words in one.text for one in found.faults.refused), [one.text for one in found.faults.refused]
    with pytest.raises(InvalidInput, match=r"rows\.jsonl:2: "):
        found.require()


def test_what_a_row_says_cannot_move_the_cursor(tmp_path: Path) -> None:
    found = look(write(tmp_path / "rows.jsonl", '{"a\\u001b]0;pwned\\u0007\\ud800\\n": 1}'))

    assert str(found.refusal).isprintable()
    str(found.refusal).encode()


def test_a_column_of_another_type_is_left_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from datetime import datetime

    from pyarrow import parquet

    row = {"prompt": "a", "completion": "b", "created": datetime(2026, 1, 1), "raw": b"\xff"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")

    assert look(tmp_path / "rows.parquet").refusal is None


def test_an_arrow_stream_without_its_end_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist([COMPLETION] * 4)
    with pyarrow.ipc.new_stream(str(tmp_path / "rows.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    whole = (tmp_path / "rows.arrow").read_bytes()
    (tmp_path / "rows.arrow").write_bytes(whole[:-8])

    assert [(line, kind) for _, line, kind in places(look(tmp_path / "rows.arrow"))] == [(None, "file")]


def test_a_secret_is_not_told_whole(tmp_path: Path) -> None:
    found = look(write(tmp_path / "rows.jsonl", {"text": "token: ghp_" + "a1" * 20}))

    assert "ghp_…" in str(found.refusal)
    assert "a1a1" not in str(found.refusal)


def pretty(*rows: object) -> bytes:
    return json.dumps(list(rows), indent=2).encode()


BAD_FILES: Mapping[str, tuple[str, bytes, list[tuple[int | None, str]]]] = {
    "latin-1": ("rows.jsonl", jsonl(TEXT) + '{"text": "café"}\n'.encode("latin-1"), [(2, "encoding")]),
    "utf-16": ("rows.jsonl", '{"text": "a"}\n'.encode("utf-16"), [(1, "encoding")]),
    "utf-16-without-mark": ("rows.jsonl", ('{"text": "a"}\n' * 9).encode("utf-16-le"), [(1, "encoding")]),
    "empty": ("rows.jsonl", b"", [(None, "file")]),
    "blank-lines": ("rows.jsonl", b"\n \n", [(None, "file")]),
    "mixed": ("rows.jsonl", jsonl(TEXT, COMPLETION, TEXT), [(2, "fields")]),
    "many": ("rows.jsonl", jsonl(TEXT, "{", {"text": ""}, "{"), [(2, "syntax"), (3, "empty"), (4, "syntax")]),
    "json-number": ("rows.json", b"12", [(1, "syntax")]),
    "json-object": ("rows.json", json.dumps(CHAT, indent=1).encode(), [(1, "syntax")]),
    "json-empty-list": ("rows.json", b"[]", [(None, "file")]),
    "json-nothing": ("rows.json", b" \n", [(None, "file")]),
    "json-row": ("rows.json", pretty(TEXT, {"text": ""}, TEXT), [(5, "empty")]),
    "json-cut-off": ("rows.json", pretty(TEXT, TEXT)[:-4], [(5, "file")]),
    "json-comma": ("rows.json", b'[\n{"text": "a"}\n{"text": "b"}\n]', [(2, "syntax")]),
    "json-bad-row": ("rows.json", b'[\n{"text": "a"},\n{"text": x},\n{"text": "b"},\n{"x": 1}\n]',
                     [(3, "syntax"), (5, "fields")]),
    "json-not-objects": ("rows.json", b'[1,\n"two"]', [(1, "syntax"), (2, "syntax")]),
    "json-trailing-comma": ("rows.json", b'[{"text": "a"},\n]', [(1, "file")]),
    "json-after-the-end": ("rows.json", b'[{"text": "a"}]\nmore', [(2, "file")]),
    "json-latin-1": ("rows.json", '[\n{"text": "café"}]'.encode("latin-1"), [(2, "encoding")]),
    "json-two-lists": (
        "rows.json", b'{"train": [{"text": "a"}],\n"valid": [{"text": ""}]}', [(2, "file")]),
    "json-outer-cut-off": ("rows.json", b'{"data": [\n{"text": "a"}\n]', [(3, "file")]),
    "json-outer-oops": ("rows.json", b'{"data": [\n{"text": "a"}\n], oops', [(3, "file")]),
    "json-two-bad-rows": ("rows.json", b'[{"text": "a"},\n {"text": x},\n {"text": y},\n {"text": ""}\n]',
                          [(2, "syntax"), (3, "syntax"), (4, "empty")]),
    "csv-empty-row": ("rows.csv", b"prompt,completion\na,b\n,\nc,d\n", [(3, "empty"), (3, "empty")]),
    "csv-ragged": ("rows.csv", b"prompt,completion\na,b\nc\nd,e,f\n", [(3, "syntax"), (4, "syntax")]),
    "csv-open-quote": ("rows.csv", b'prompt,completion\na,b\nc,"d\ne,f\n', [(3, "file")]),
    "csv-columns-twice": ("rows.csv", b"text,text\na,b\n", [(1, "fields")]),
    "csv-unnamed": ("rows.csv", b"text,\na,b\n", [(1, "fields")]),
    "csv-no-header": ("rows.csv", b"hello,world\na,b\n", [(2, "fields")]),
    "csv-empty-cell": ("rows.csv", b"prompt,completion\na,\n", [(2, "empty")]),
    "csv-lines-in-cells": ("rows.csv", b'prompt,completion\n"a\nb",c\nd,\n', [(4, "empty")]),
    "csv-latin-1": ("rows.csv", "text\nok\ncafé\n".encode("latin-1"), [(3, "encoding")]),
    "csv-header-only": ("rows.csv", b"prompt,completion\n", [(None, "file")]),
    "tsv-ragged": ("rows.tsv", b"prompt\tcompletion\na b\n", [(2, "syntax")]),
    "parquet-text": ("rows.parquet", b"this is no parquet", [(None, "file")]),
    "arrow-text": ("rows.arrow", b"nor is this arrow", [(None, "file")]),
    "gzip-text": ("rows.jsonl.gz", jsonl(TEXT), [(None, "file")]),
    "gzip-cut-off": ("rows.jsonl.gz", gzip.compress(jsonl(*[{"text": str(i) * 99} for i in range(99)]))[:40],
                     [(None, "file")]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_every_fault_of_a_bad_file_has_its_line(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    file, content, faults = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)

    found = look(tmp_path / file)

    assert places(found) == [(file, line, kind) for line, kind in faults]
    assert found.refusal is not None


def refused(path: Path, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        open_source(DataRef(source=str(path)))


def symlink_out(folder: Path) -> Path:
    outside = folder.parent / "outside.jsonl"
    outside.write_bytes(jsonl(TEXT))
    (folder / "train.jsonl").symlink_to(outside)
    return folder


def dangling(folder: Path) -> Path:
    (folder / "train.jsonl").symlink_to(folder / "gone.jsonl")
    return folder


def fifo(folder: Path) -> Path:
    import os

    os.mkfifo(folder / "train.jsonl")
    return folder


def folder_as_file(folder: Path) -> Path:
    (folder / "train.jsonl").mkdir()
    return folder


def no_train(folder: Path) -> Path:
    write(folder / "valid.jsonl", TEXT)
    write(folder / "test.jsonl", TEXT)
    return folder


def archive(folder: Path) -> Path:
    (folder / "rows.zip").write_bytes(b"PK\x03\x04")
    return folder / "rows.zip"


def of_another_kind(folder: Path) -> Path:
    (folder / "rows.txt").write_text("a\n")
    return folder / "rows.txt"


def two_kinds(folder: Path) -> Path:
    write(folder / "train.jsonl", TEXT)
    (folder / "train.csv").write_text("text\na\n")
    return folder


def loop(folder: Path) -> Path:
    (folder / "train.jsonl").symlink_to(folder / "train.jsonl")
    return folder


def unread_split(folder: Path) -> Path:
    write(folder / "train.jsonl", TEXT)
    (folder / "valid.txt").write_text("a")
    return folder


def misspelled_split(folder: Path) -> Path:
    write(folder / "train.jsonl", TEXT)
    write(folder / "vaildation.jsonl", "{")
    return folder


def missing_part(folder: Path) -> Path:
    for part in ("00000", "00002"):
        write(folder / f"train-{part}-of-00003.jsonl", {"text": part})
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (loop, "is a link to what is not there"),
        (unread_split, "is named as a split, and is of no kind that is read"),
        (misspelled_split, "vaildation.jsonl in it is of no split"),
        (missing_part, "only 2 of the 3 parts of the train split"),
        (lambda folder: folder / ("x" * 300 + ".jsonl"), "name too long"),
        (symlink_out, "leads out of its folder"),
        (dangling, "is a link to what is not there"),
        (fifo, "is no ordinary file"),
        (folder_as_file, "is a folder; it must be a file"),
        (no_train, "has no train file; it has test.jsonl, valid.jsonl"),
        (archive, "an archive; unpack it"),
        (of_another_kind, "must be a .jsonl"),
        (two_kinds, "are both the train split"),
        (lambda folder: folder, "has no train file; it has no data"),
        (lambda folder: folder / "missing.jsonl", "there is no such file or folder"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()

    refused(make(folder), words)


def test_a_row_to_validate_on_must_not_be_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"text": "one"}, {"text": "two  words"}, {"text": "three"})
    write(tmp_path / "valid.jsonl", {"text": "four"}, {"text": "two words"})
    write(tmp_path / "test.jsonl", {"text": "three"})

    found = look(tmp_path)

    assert places(found) == [("valid.jsonl", 2, "leak"), ("test.jsonl", 1, "leak")]
    assert "train.jsonl:2" in found.faults.refused[0].text
    assert look(tmp_path, allow=("leak",)).refusal is None


def test_a_row_that_is_there_twice_is_told_and_accepted(tmp_path: Path) -> None:
    found = look(write(tmp_path / "rows.jsonl", {"text": "one"}, TEXT, {"text": "one"}))

    assert [(one.line, one.kind.value) for one in found.faults.noted] == [(3, "duplicate")]
    assert found.refusal is None


def test_bad_rows_can_be_left_out_and_what_is_wrong_on_purpose_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", CHAT, chat(USER), "{", chat(USER, USER, turn("assistant", "x")))

    skipped, allowed = look(path, skip_bad_rows=True), look(path, allow=("roles", "nothing-to-learn"))

    assert rows_of(skipped) == (1, 3)
    assert skipped.refusal is None
    assert rows_of(allowed) == (3, 1)
    assert "roles" not in str(allowed.refusal)
    with pytest.raises(InvalidInput, match="has no row without a fault"):
        look(write(tmp_path / "bad.jsonl", "{"), skip_bad_rows=True).require()


def rows_of(found: Inspection) -> tuple[int, int]:
    (facts,) = found.splits.values()
    return facts.rows, facts.bad_rows


def test_a_line_longer_than_any_row_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graft_scheduler.data import jsonl as module

    monkeypatch.setattr(module, "MOST_LINE_BYTES", 100)
    path = write(tmp_path / "rows.jsonl", TEXT, {"text": "x" * 950}, {"text": ""})

    assert places(look(path)) == [("rows.jsonl", 2, "syntax"), ("rows.jsonl", 3, "empty")]


def test_only_the_first_faults_are_in_a_refusal_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = look(write(tmp_path / "rows.jsonl", TEXT, *["{"] * 7))

    with pytest.raises(InvalidInput) as refusal:
        found.require()

    assert str(refusal.value).count("is not JSON") == 5
    assert "; and 2 more faults; `graft data validate` tells all" in str(refusal.value)


def test_a_file_that_changes_while_it_is_converted_is_refused(tmp_path: Path) -> None:
    from graft_scheduler.data.opening import training_files

    path = tmp_path / "rows.csv"
    path.write_text("text\na\n")
    source = open_source(DataRef(source=str(path)))
    found = inspect_source(source).require()
    path.write_text("text\n\x00\n")

    with pytest.raises(InvalidInput, match=r"rows\.csv:2"):
        training_files(source, found, tmp_path)
