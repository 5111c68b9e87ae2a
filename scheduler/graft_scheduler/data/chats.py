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
from graft_scheduler.data.texts import check_strings, check_text

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
    messages = given = fields["messages"]
    if isinstance(messages, str) and messages.startswith("["):  # as tables keep what has no type of its own
        messages = parse_value(messages)
    if not isinstance(messages, list) or not messages:
        found = kind_of(messages)
        raise BadRow(Kind.FIELDS, f"`messages` is {found}; it must be a list with at least one message")
    if "functions" in fields:
        problems.append((Kind.TOOLS, "`functions` is OpenAI's old form; describe them as `tools`"))
    if "tools" not in fields and given is messages and _is_usual(messages):
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
    is_same = given is messages and all(new is old for new, old in zip(turns, messages, strict=True))
    if is_same and tools == fields.get("tools"):
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
    for other in sorted(map(str, message.keys() - _PLAIN)):
        check_strings(f"{name}.{other}", message.get(other), problems)
    if isinstance(content, list):
        new["content"] = content = _join_parts(f"{name}.content", content, problems)
    calls = message.get("tool_calls")
    if role == "assistant" and calls not in (None, []):
        new["tool_calls"] = _convert_calls(f"{name}.tool_calls", calls, problems)
        if content in (None, ""):
            return new if new != message else message
    elif calls not in (None, []):
        problems.append((Kind.TOOLS, f"`{name}.tool_calls` is set, and only the assistant calls"))
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
    if _name_of(call) is None:
        problems.append((Kind.TOOLS, f"`{name}` names no function; it needs `function.name`"))
        return call
    assert isinstance(function, dict)  # it has a name
    if call.get("type", "function") != "function":
        problems.append((Kind.TOOLS, f"`{name}.type` is {_short(call['type'])}; it must be 'function'"))
    given = arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_value(arguments) if arguments.strip() else {}
        except BadRow as error:
            problems.append((Kind.TOOLS, f"`{name}.arguments` {error.text}"))
            return call
    if not isinstance(arguments, dict):
        text = f"`{name}.arguments` is {kind_of(arguments)}; it must be an object"
        problems.append((Kind.TOOLS, text))
    if arguments is given:
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
    names: set[str] = set()
    for index, tool in enumerate(tools):
        _check_tool(f"tools[{index}]", tool, names, problems)
    check_strings("tools", tools, problems)
    return tools


def _check_tool(place: str, tool: Any, names: set[str], problems: Problems) -> None:
    """One that has a name of its own, and parameters that are described as an object."""
    name = _name_of(tool)
    if name is None:
        problems.append((Kind.TOOLS, f"`{place}` names no function; it needs `function.name`"))
        return
    if name in names:
        problems.append((Kind.TOOLS, f"`{place}` describes {name!r}, which another one does too"))
    names.add(name)
    parameters = tool.get("function", tool).get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        text = f"`{place}.parameters` is {kind_of(parameters)}; it must be an object"
        problems.append((Kind.TOOLS, text))


def _name_of(tool: Any) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name.strip() else None


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
    if before == "tool":
        problems.append((Kind.ROLES, "ends with a tool's result, which the assistant does not take up"))
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
    """Every call is of a tool that is described, where any are, and has one result, which says of which call
    it is where several were made at once or the calls have ids.
    """
    names = {_name_of(tool) for tool in tools} if tools is not None else None
    waiting: list[Any] = []  # ids of calls without a result yet
    for index, turn in enumerate(turns):
        place = f"messages[{index}]"
        if turn["role"] == "tool":
            _answer(place, turn.get("tool_call_id"), waiting, problems)
            continue
        if waiting:
            text = (
                f"`{place}` comes before the result of {len(waiting)} call{'s' if len(waiting) > 1 else ''}"
            )
            problems.append((Kind.TOOLS, text))
        calls = (turn.get("tool_calls") or ()) if turn["role"] == "assistant" else ()
        waiting = [call.get("id") for call in calls]
        for call in calls:
            if names is not None and _name_of(call) not in names:
                problems.append(
                    (Kind.TOOLS, f"`{place}` calls {_name_of(call)!r}, which is not among its tools")
                )
        given = [repr(one) for one in waiting if one is not None]
        if len(set(given)) < len(given):
            problems.append((Kind.TOOLS, f"`{place}` has two calls of one id"))


def _answer(place: str, answered: Any, waiting: list[Any], problems: Problems) -> None:
    """Take the call that the result is of from those that wait for one."""
    if answered is None and len(waiting) <= 1:
        waiting[:] = []
    elif answered in waiting:
        waiting.remove(answered)
    elif waiting and all(one is None for one in waiting):
        waiting.pop()
    elif answered is None:
        problems.append((Kind.TOOLS, f"`{place}` does not say of which call it is; it needs `tool_call_id`"))
        waiting.pop()
    else:
        text = f"`{place}.tool_call_id` is {_short(answered)}, and no call before it waits under that id"
        problems.append((Kind.TOOLS, text))
        waiting[:] = waiting[:-1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
