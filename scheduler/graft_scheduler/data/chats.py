"""Chats: whether their turns can be trained on, and the one form in which chat templates take them.

What OpenAI's files, ShareGPT's and those of `transformers` write in several ways becomes one: text in the
place of a list of text parts, arguments of calls as objects, tools as a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from graft_scheduler.data.faults import BadRow, Kind, Problems
from graft_scheduler.data.jsonl import kind_of, parse_value
from graft_scheduler.data.texts import check_text

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"developer": "system", "function": "tool"}
"""Roles of OpenAI's that chat templates do not know, and what they know instead."""
_LETTERS = {"system": "s", "user": "u", "assistant": "a"}
_USUAL = re.compile(r"s?(?:ua)+")
_PLAIN = frozenset({"role", "content"})
_OF_WORDS = frozenset({Kind.GARBLED, Kind.SECRET, Kind.EMPTY, Kind.ROLES, Kind.NOTHING})
"""Faults that leave calls as they are."""


def convert_chat(fields: Mapping[str, Any], problems: Problems) -> Mapping[str, Any]:
    """The row as `{"messages": [...]}`, with `tools` where it has some; the same object if it was so.

    Raises:
        BadRow: it has no messages.
    """
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        found = kind_of(messages)
        raise BadRow(Kind.FIELDS, f"`messages` is {found}; it must be a list with at least one message")
    if "tools" not in fields and _is_usual(messages):
        for index, message in enumerate(messages):
            check_text(f"messages[{index}].content", message["content"], problems)
        return fields
    before = len(problems)
    turns = [_convert_message(index, one, problems) for index, one in enumerate(messages)]
    tools = _convert_tools(fields.get("tools"), problems)
    if all(turn.get("role") in ROLES for turn in turns):
        _check_order(turns, problems)
    if all(kind in _OF_WORDS for kind, _ in problems[before:]):
        _check_calls(turns, tools, problems)
    if tools == fields.get("tools") and all(new is old for new, old in zip(turns, messages, strict=True)):
        return fields
    return {"messages": turns} | ({} if tools is None else {"tools": tools})


def _is_usual(messages: Sequence[Any]) -> bool:
    """Whether these are texts of perhaps the system, then user and assistant by turns, and nothing more:
    most chats are, and nothing but their texts is to be checked.
    """
    letters = ""
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return False
        role = message.get("role")
        if type(role) is not str or type(message.get("content")) is not str:
            return False
        letters += _LETTERS.get(role, "?")
    return _USUAL.fullmatch(letters) is not None


def _convert_message(index: int, message: Any, problems: Problems) -> Mapping[str, Any]:
    name = f"messages[{index}]"
    if not isinstance(message, dict):
        problems.append((Kind.FIELDS, f"`{name}` is {kind_of(message)}; it must be an object"))
        return {}
    if not _has_role(name, message, problems):
        return message
    role, content = message["role"], message.get("content")
    if message.keys() <= _PLAIN and isinstance(content, str) and role in ROLES:
        check_text(f"{name}.content", content, problems)
        return message
    new = dict(message, role=ALIASES.get(role, role))
    if isinstance(content, list):
        new["content"] = content = _join_parts(f"{name}.content", content, problems)
    if role == "assistant" and message.get("tool_calls"):
        new["tool_calls"] = _convert_calls(f"{name}.tool_calls", message["tool_calls"], problems)
        if not content:
            return new if new != message else message
    elif role == "assistant" and message.get("function_call"):
        text = "is OpenAI's old form of a call; write it as `tool_calls`"
        problems.append((Kind.TOOLS, f"`{name}.function_call` {text}"))
    if message.get("weight", 1) != 1:
        text = f"is {message['weight']!r}; turns cannot be weighted, take the field away"
        problems.append((Kind.FIELDS, f"`{name}.weight` {text}"))
    if content != "" or role != "tool":  # a tool may have nothing to say
        check_text(f"{name}.content", content, problems)
    return new if new != message else message


def _has_role(name: str, message: Mapping[str, Any], problems: Problems) -> bool:
    if "role" not in message:
        problems.append((Kind.FIELDS, f"`{name}.role` is missing"))
        return False
    role = message["role"]
    if isinstance(role, str) and (role in ROLES or role in ALIASES):
        return True
    problems.append((Kind.FIELDS, f"`{name}.role` is {_short(role)}; it must be one of {', '.join(ROLES)}"))
    return False


def _join_parts(name: str, parts: Sequence[Any], problems: Problems) -> str:
    """The text of a list of parts, as OpenAI's API has them."""
    texts = []
    for index, part in enumerate(parts):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        what = f"of type {part.get('type')!r}" if isinstance(part, dict) else kind_of(part)
        problems.append((Kind.FIELDS, f"`{name}[{index}]` is {what}; only text is trained on"))
    return "".join(texts)


def _convert_calls(name: str, calls: Any, problems: Problems) -> Any:
    if not isinstance(calls, list):
        problems.append((Kind.TOOLS, f"`{name}` is {kind_of(calls)}; it must be a list"))
        return calls
    return [_convert_call(f"{name}[{index}]", call, problems) for index, call in enumerate(calls)]


def _convert_call(name: str, call: Any, problems: Problems) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        problems.append((Kind.TOOLS, f"`{name}` names no function; it needs `function.name`"))
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        if arguments is not None and not isinstance(arguments, dict):
            text = f"`{name}.arguments` is {kind_of(arguments)}; it must be an object"
            problems.append((Kind.TOOLS, text))
        return call
    try:
        arguments = parse_value(arguments) if arguments.strip() else {}
    except BadRow as error:
        problems.append((Kind.TOOLS, f"`{name}.arguments` {error.text}"))
        return call
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _convert_tools(tools: Any, problems: Problems) -> Any:
    if isinstance(tools, str):  # as data sets on the hub keep them, to have one type in the column
        try:
            tools = parse_value(tools) if tools.strip() else None
        except BadRow as error:
            problems.append((Kind.TOOLS, f"`tools` {error.text}"))
            return None
    if tools is None:
        return None
    if not isinstance(tools, list):
        problems.append((Kind.TOOLS, f"`tools` is {kind_of(tools)}; it must be a list"))
        return None
    for index, tool in enumerate(tools):
        if _name_of(tool) is None:
            problems.append((Kind.TOOLS, f"`tools[{index}]` names no function; it needs `function.name`"))
    return tools


def _name_of(tool: Any) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _check_order(turns: Sequence[Mapping[str, Any]], problems: Problems) -> None:
    """System first if at all; then user and assistant by turns, tools where they were called."""
    before = ""
    for index, turn in enumerate(turns):
        role = turn["role"]
        if (text := _out_of_turn(role, before, turns[index - 1] if index else {})) is not None:
            problems.append((Kind.ROLES, f"`messages[{index}]` {text}"))
        before = role
    is_answered = any(turn["role"] == "assistant" for turn in turns)
    if before == "user" and is_answered:
        problems.append((Kind.ROLES, "ends with a turn of the user, which nobody answers"))
    if not is_answered:
        text = "has no message of the role assistant: there is nothing to learn"
        problems.append((Kind.NOTHING, text))


def _out_of_turn(role: str, before: str, previous: Mapping[str, Any]) -> str | None:
    match role:
        case "system" if before:
            return f"is of the system, after one of the {before}; it must be the first"
        case "user" if before == "user":
            return "is of the user, as the one before; roles must take turns"
        case "user" if before == "tool":
            return "is of the user, after a tool's result that the assistant has not taken up"
        case "assistant" if before == "assistant":
            return "is of the assistant, as the one before; roles must take turns"
        case "assistant" if before in {"", "system"}:
            return "is of the assistant, and nobody has asked"
        case "tool" if before != "tool" and not (before == "assistant" and previous.get("tool_calls")):
            return "is a tool's result, and the message before it calls no tool"
        case "user" if before == "assistant" and previous.get("tool_calls"):
            return "is of the user, and the call before it has no result"
    return None


def _check_calls(turns: Sequence[Mapping[str, Any]], tools: Any, problems: Problems) -> None:
    """Every result belongs to a call, and every call to a tool where tools are described."""
    names = {_name_of(tool) for tool in tools} if tools else None
    ids: set[str] = set()
    for index, turn in enumerate(turns):
        for call in (turn.get("tool_calls") or ()) if turn["role"] == "assistant" else ():
            if names is not None and _name_of(call) not in names:
                text = f"`messages[{index}]` calls {_name_of(call)!r}, which is not among its tools"
                problems.append((Kind.TOOLS, text))
            if isinstance(call.get("id"), str):
                ids.add(call["id"])
        answered = turn.get("tool_call_id")
        if turn["role"] == "tool" and ids and answered is not None and answered not in sorted(ids):
            text = f"`messages[{index}].tool_call_id` is {_short(answered)}, and no call has that id"
            problems.append((Kind.TOOLS, text))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
