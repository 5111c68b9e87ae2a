"""The formats in which rows come, and the three that are trained on: detection and conversion.

Alpaca's fields are those of Taori et al. 2023 (github.com/tatsu-lab/stanford_alpaca), with `system` and
`history` as LLaMA-Factory has them; ShareGPT's those of its export, in any spelling of who speaks that
is met with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from graft_scheduler.data.chats import convert_chat
from graft_scheduler.data.faults import BadRow, Kind, Problems
from graft_scheduler.data.jsonl import kind_of, parse_value
from graft_scheduler.data.texts import check_strings, check_text
from graft_scheduler.jobs import DataFormat

FIELDS: Mapping[DataFormat, tuple[str, ...]] = {
    DataFormat.CHAT: ("messages",),
    DataFormat.SHAREGPT: ("conversations",),
    DataFormat.COMPLETION: ("prompt", "completion"),
    DataFormat.ALPACA: ("instruction", "output"),
    DataFormat.TEXT: ("text",),
}
"""What a row must have, in the order in which formats are recognised."""
KEPT: Mapping[DataFormat, tuple[str, ...]] = {
    DataFormat.CHAT: ("messages", "tools"),
    DataFormat.COMPLETION: ("prompt", "completion"),
    DataFormat.TEXT: ("text",),
}
"""What is stored of a row that is converted."""
TRAINED = {DataFormat.SHAREGPT: DataFormat.CHAT, DataFormat.ALPACA: DataFormat.COMPLETION}
"""What rows of a format become; the others stay as they are."""
_OTHERS = frozenset({"tools", "input", "system"})
"""Fields that conversions look at."""
_OF_A_MESSAGE = re.compile(r"`messages\[(\d+)\]")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
KNOWN_PAIRS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("input", "output"),
    ("query", "response"),
    ("instruction", "response"),
    ("source", "target"),
)
"""Names that other data sets have for a prompt and a completion; told as a remedy, never guessed."""


def trained_format(data_format: DataFormat) -> DataFormat:
    """The format that rows of this one are trained in."""
    return TRAINED.get(data_format, data_format)


def detect_format(fields: Mapping[str, Any]) -> DataFormat | None:
    """The format that a row's field names say, or nothing when they say none."""
    has = {name for name, value in fields.items() if value is not None} or fields.keys()
    return next((one for one, needed in FIELDS.items() if all(name in has for name in needed)), None)


def detect_common(rows: Iterable[Mapping[str, Any]]) -> DataFormat | None:
    """The format of most of the rows; of two alike, that of the first."""
    counts = Counter(found for row in rows if (found := detect_format(row)) is not None)
    return max(counts, key=lambda one: counts[one]) if counts else None


def convert(
    fields: Mapping[str, Any], data_format: DataFormat | None, problems: Problems
) -> Mapping[str, Any]:
    """The row as it is trained on; the same object where it is so already.

    What is wrong with it is noted in `problems`.

    Raises:
        BadRow: it is not of the format.
    """
    if data_format is None or any(name not in fields for name in FIELDS[data_format]):
        raise _of_another_format(fields, data_format)
    converted = _CONVERSIONS[data_format](fields, problems)
    if len(fields) > len(FIELDS[data_format]):
        for name in sorted(fields.keys() - _OTHERS - set(FIELDS[data_format])):
            check_strings(name, fields[name], problems)
    return converted


def rename(fields: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with its fields under the names that a format has: `columns` is our name → theirs.

    Raises:
        BadRow: it has no such field.
    """
    if not columns:
        return fields
    missing = [theirs for theirs in columns.values() if theirs not in fields]
    if missing:
        raise BadRow(Kind.FIELDS, f"has no column `{missing[0]}`; its fields are {_names(fields)}")
    rest = {name: value for name, value in fields.items() if name not in columns.values()}
    return rest | {ours: fields[theirs] for ours, theirs in columns.items()}


def _of_another_format(fields: Mapping[str, Any], data_format: DataFormat | None) -> BadRow:
    found = detect_format(fields)
    if data_format and found:
        return BadRow(Kind.FIELDS, f"is a {found} row, but the data set's format is {data_format}")
    needed = _listed(FIELDS[data_format]) if data_format else _ANY
    pair = next((pair for pair in KNOWN_PAIRS if all(name in fields for name in pair)), None)
    remedy = f"; try `--column prompt={pair[0]} --column completion={pair[1]}`" if pair else ""
    return BadRow(Kind.FIELDS, f"needs {needed}; its fields are {_names(fields)}{remedy}")


def _names(fields: Mapping[str, Any]) -> str:
    shown = [f"`{name}`" for name in list(fields)[:8]]
    return ", ".join(shown + ["…"] * (len(fields) > 8)) or "none"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


_ANY = ", or ".join(_listed(names) for names in FIELDS.values())


def _convert_completion(fields: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    prompt, completion = fields["prompt"], fields["completion"]
    check_text("prompt", prompt, problems)
    check_text("completion", completion, problems)
    return fields


def _convert_text(fields: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    check_text("text", fields["text"], problems)
    return fields


def _convert_alpaca(fields: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    """Instruction, then input, as one prompt; with a system prompt or earlier turns a chat says more."""
    check_text("instruction", fields["instruction"], problems)
    check_text("output", fields["output"], problems)
    parts = [fields["instruction"]]
    given = fields.get("input")
    if isinstance(given, str) and not given.strip():
        given = None
    if given is not None and check_text("input", given, problems):
        parts.append(given)
    for name in ("system", "history"):
        if fields.get(name):
            text = f"`{name}` is set, which a prompt and its completion cannot carry; make the rows chats"
            problems.append((Kind.FIELDS, text))
    return {"prompt": "\n\n".join(map(str, parts)), "completion": fields["output"]}


def _convert_sharegpt(fields: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    turns = fields["conversations"]
    if not isinstance(turns, list) or not turns:
        found = kind_of(turns)
        raise BadRow(Kind.FIELDS, f"`conversations` is {found}; it must be a list with at least one turn")
    system = fields.get("system")
    if system is not None and not isinstance(system, str):
        problems.append((Kind.FIELDS, f"`system` is {kind_of(system)}; it must be a string"))
    messages = [{"role": "system", "content": system}] if system else []
    before = len(problems)
    messages += [_convert_turn(index, one, problems) for index, one in enumerate(turns)]
    if len(problems) > before:
        return {"messages": messages}
    row = {"messages": messages} | ({"tools": fields["tools"]} if fields.get("tools") else {})
    noted: Problems = []
    chat = convert_chat(row, noted)
    shift = 1 if system else 0
    problems += [(kind, _in_their_words(text, shift)) for kind, text in noted]
    return chat


def _convert_turn(index: int, turn: Any, problems: Problems) -> dict[str, Any]:
    name = f"conversations[{index}]"
    if not isinstance(turn, dict):
        problems.append((Kind.FIELDS, f"`{name}` is {kind_of(turn)}; it must be an object"))
        return {}
    key = "from" if "from" in turn or "role" not in turn else "role"
    if key not in turn:
        problems.append((Kind.FIELDS, f"`{name}.from` is missing"))
        return {}
    speaker = turn[key]
    if isinstance(speaker, str):
        speaker = speaker.lower().replace("-", "_")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(SPEAKERS)
        problems.append((Kind.FIELDS, f"`{name}.{key}` is {speaker!r}; it must be one of {known}"))
        return {}
    said = turn.get("value" if "value" in turn or "content" not in turn else "content")
    if speaker == "function_call":
        return _call(name, said, problems)
    return {"role": role, "content": said}


def _call(name: str, said: Any, problems: Problems) -> dict[str, Any]:
    """A call of a function as ShareGPT's rows have it: JSON of its name and arguments in the text."""
    try:
        calls = parse_value(said) if isinstance(said, str) else said
    except BadRow as error:
        problems.append((Kind.TOOLS, f"`{name}.value` is a call, and {error.text}"))
        return {}
    calls = calls if isinstance(calls, list) else [calls]
    called = [{"type": "function", "function": one} for one in calls]
    return {"role": "assistant", "content": "", "tool_calls": called}


def _in_their_words(text: str, shift: int) -> str:
    """The complaint about a message as one about the turn that it was."""
    if (found := _OF_A_MESSAGE.match(text)) is None:
        return text
    number, tail = int(found[1]) - shift, text[found.end() :]
    if number < 0:
        return f"`system`{tail.partition('`')[2]}"
    return f"`conversations[{number}]{tail.replace('.content`', '.value`', 1)}"


_CONVERSIONS: dict[DataFormat, Callable[[Mapping[str, Any], Problems], Mapping[str, Any]]] = {
    DataFormat.CHAT: convert_chat,
    DataFormat.SHAREGPT: _convert_sharegpt,
    DataFormat.COMPLETION: _convert_completion,
    DataFormat.ALPACA: _convert_alpaca,
    DataFormat.TEXT: _convert_text,
}
