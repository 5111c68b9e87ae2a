"""Every form in which a data set comes is read as the same rows, and stored as the same bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graft_scheduler.data.opening import inspect_source, inspect_stored, open_source, training_files
from graft_scheduler.data.sources import Split, find_files
from graft_scheduler.errors import InvalidInput
from graft_scheduler.jobs import DataFormat, DataRef
from tests.scheduler.data.writing import CHAT, COMPLETION, TEXT, chat, jsonl, look, turn, write

ROWS = [{"prompt": f"say {i}", "completion": f"it is\n{i}, ü"} for i in range(5)]


def as_csv(path: Path, separator: str) -> None:
    lines = [separator.join(("prompt", "completion"))]
    lines += [f'{row["prompt"]}{separator}"{row["completion"]}"' for row in ROWS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def as_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def as_arrow(path: Path) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def as_arrow_file(path: Path) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


FORMS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_bytes(jsonl(*ROWS)),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(*ROWS))),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "one-line.json": lambda path: path.write_text(json.dumps(ROWS)),
    "in-an-object.json": lambda path: path.write_text(json.dumps({"version": [1], "data": ROWS})),
    "jsonl-inside.json": lambda path: path.write_bytes(jsonl(*ROWS)),
    "rows.csv": lambda path: as_csv(path, ","),
    "semicolons.csv": lambda path: as_csv(path, ";"),
    "rows.tsv": lambda path: as_csv(path, "\t"),
    "rows.parquet": as_parquet,
    "rows.arrow": as_arrow,
    "file.arrow": as_arrow_file,
}


def stored(data: DataRef, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file that a host gets."""
    folder.mkdir(exist_ok=True)
    source = open_source(data)
    files = training_files(source, inspect_source(source).require(), folder)
    return {name: list(map(json.loads, path.read_text().splitlines())) for name, path in files.items()}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_rows_are_trained_on_whatever_the_form(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    FORMS[name](tmp_path / name)

    found = look(tmp_path / name).require()

    assert found.format is DataFormat.COMPLETION
    assert found.facts(Split.TRAIN).rows == len(ROWS)
    assert stored(DataRef(source=str(tmp_path / name)), tmp_path / "out") == {"train.jsonl": ROWS}


def test_rows_that_are_ready_are_stored_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", CHAT, chat(turn("user"), turn("assistant"), source="forum"))
    source = open_source(DataRef(source=str(path)))

    assert training_files(source, inspect_source(source), tmp_path) == {"train.jsonl": path}


def test_alpaca_rows_become_prompts_and_completions(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    path = write(tmp_path / "rows.jsonl", row, {**row, "input": ""})

    assert look(path).format is DataFormat.ALPACA
    assert stored(DataRef(source=str(path)), tmp_path / "out")["train.jsonl"] == [
        {"prompt": "Translate.\n\nchat", "completion": "cat"},
        {"prompt": "Translate.", "completion": "cat"},
    ]


def test_sharegpt_rows_become_chats(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Weather?"}]
    turns += [{"from": "function_call", "value": '{"name": "f", "arguments": {"at": "Ulm"}}'}]
    turns += [{"from": "observation", "value": "sun"}, {"from": "gpt", "value": "Sunny."}]
    row = {"conversations": turns, "system": "Be brief.", "tools": '[{"name": "f"}]', "id": 7}
    path = write(tmp_path / "rows.jsonl", row)

    (chat,) = stored(DataRef(source=str(path)), tmp_path / "out")["train.jsonl"]

    assert [one["role"] for one in chat["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"at": "Ulm"}}
    assert chat["tools"] == [{"name": "f"}]
    assert inspect_stored(tmp_path / "out", DataFormat.CHAT).facts(Split.TRAIN).rows == 1


def test_openais_chats_become_those_that_templates_take(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = chat(
        turn("developer", "Be brief."),
        turn("user", [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]),
        {"role": "assistant", "tool_calls": [call]},
        turn("tool", "", tool_call_id="c1"),
        turn("assistant", "done"),
        tools=[{"type": "function", "function": {"name": "f"}}],
        parallel_tool_calls=False,
    )

    (trained,) = stored(DataRef(source=str(write(tmp_path / "rows.jsonl", row))), tmp_path / "o")[
        "train.jsonl"
    ]

    system, user, called, _, _ = trained["messages"]
    assert system["role"] == "system"
    assert user["content"] == "two parts"
    assert called["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert trained.keys() == {"messages", "tools"}


def test_columns_by_other_names_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,id\nWhy?,So.,1\n")
    data = DataRef(source=str(path), columns={"prompt": "question", "completion": "answer"})

    assert stored(data, tmp_path / "o")["train.jsonl"] == [{"prompt": "Why?", "completion": "So."}]
    wrong = DataRef(source=str(path), columns={"prompt": "query", "completion": "answer"})
    with pytest.raises(InvalidInput, match=r"rows\.csv:2: has no column `query`"):
        inspect_source(open_source(wrong)).require()


def test_chats_in_a_table_are_cells_of_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    cell = json.dumps(CHAT["messages"]).replace('"', '""')
    path.write_text(f'id\tmessages\n1\t"{cell}"\n')

    assert stored(DataRef(source=str(path)), tmp_path / "o")["train.jsonl"][0]["messages"] == CHAT["messages"]


def test_a_folder_has_its_splits_in_files_of_any_kind_and_in_parts(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"):
        write(tmp_path / name, {"text": name})
    (tmp_path / "validation.csv").write_text("text\nheld out\n")
    write(tmp_path / "test.jsonl", {"text": "last"})
    write(tmp_path / "README.md", "no rows")
    write(tmp_path / "dataset_info.json", "{}")

    found = stored(DataRef(source=str(tmp_path)), tmp_path / "out")

    assert [row["text"] for row in found["train.jsonl"]] == [
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
    ]
    assert found["valid.jsonl"] == [{"text": "held out"}]
    assert found["test.jsonl"] == [{"text": "last"}]


def test_the_only_file_of_a_folder_is_its_training_set(tmp_path: Path) -> None:
    write(tmp_path / "sql_pairs.jsonl", COMPLETION)

    assert [(one.split, one.path.name) for one in find_files(tmp_path)] == [("train", "sql_pairs.jsonl")]


def test_the_format_is_that_of_most_rows(tmp_path: Path) -> None:
    found = look(write(tmp_path / "rows.jsonl", TEXT, *[COMPLETION] * 3))

    assert found.format is DataFormat.COMPLETION
    assert [one.line for one in found.faults.refused] == [1]
    assert look(tmp_path / "rows.jsonl", format="text").faults.refused[0].line == 2


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\n\n  \r\n{"text": "b"}')
    lines: list[int] = []

    inspect_source(open_source(DataRef(source=str(path))), lambda _, __, row, ___: lines.append(row.line))

    assert lines == [1, 4]


def test_a_data_set_on_the_hub_is_read_through_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` reads a folder as it does a repository of the hub, which cannot be reached here."""
    pytest.importorskip("datasets")
    from graft_scheduler.data import hub_rows, opening

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "repository").mkdir()
    write(tmp_path / "repository" / "train.jsonl", *({"text": f"row {i}", "n": i} for i in range(4)))
    write(tmp_path / "repository" / "validation.jsonl", {"text": "held out", "n": 9})
    monkeypatch.setattr(opening, "_is_hub_id", lambda source: True)
    data = DataRef(source=str(tmp_path / "repository"))
    files, reader = hub_rows.hub_files(data), hub_rows.hub_reader(data)

    found = inspect_source(opening.Source(files, reader, data)).require()

    assert (found.format, found.facts(Split.TRAIN).rows, found.facts(Split.VALID).rows) == ("text", 4, 1)
    assert not found.is_ready
    with pytest.raises(InvalidInput, match="has train, validation"):
        hub_rows.hub_files(data.model_copy(update={"split": "dev"}))


def test_what_only_the_hub_has_cannot_be_said_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", TEXT)

    with pytest.raises(InvalidInput, match="is of a data set on the hub"):
        look(path, split="train")
