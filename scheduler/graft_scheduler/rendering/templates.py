"""Chat templates: Jinja from a model's folder, rendered as the library on the hosts renders it.

A template is foreign code. It runs in Jinja's sandbox, which keeps it from Python's internals and
from changing what it is given, and within bounds (see `bounds`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser

from graft_scheduler.rendering.bounds import BoundedSandbox, Steps, joined, with_steps

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's thought goes by; templates read the first, some the second."""
_THOUGHTS = frozenset(REASONING)
TOOL_USE, DEFAULT = "tool_use", "default"
"""Names of a model's templates: the first is taken where there are tools."""

Templates = str | Mapping[str, str]
"""A model's only template, or several by their names."""


class ChatTemplates:
    """The templates of one model, compiled when they are first needed."""

    def __init__(self, sources: Templates, variables: Mapping[str, Any]) -> None:
        self._sources = sources
        self._variables = dict(variables)
        self._steps = Steps()
        self._environment = _environment(self._steps)
        self._compiled: dict[str, jinja2.Template] = {}

    def render(self, messages: Sequence[Any], tools: Any, *, add_generation_prompt: bool) -> str:
        """The chat as text; raises whatever the template raises."""
        if not messages:
            raise ValueError("there are no messages")
        template = self._template(self._name(tools is not None))
        given = {
            "messages": [_message(one) for one in messages],
            "tools": _tools(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._variables,
        }
        self._steps.begin()
        return joined(template.generate(given))

    def _name(self, has_tools: bool) -> str:
        if isinstance(self._sources, str):
            return DEFAULT
        if has_tools and TOOL_USE in self._sources:
            return TOOL_USE
        if DEFAULT not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise ValueError(f"the model has several chat templates ({names}) and none is the default")
        return DEFAULT

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            source = self._sources if isinstance(self._sources, str) else self._sources[name]
            tree = with_steps(self._environment.parse(source))
            template = self._environment.from_string(tree)
            template.globals = dict(template.globals)  # copied for each chat, and faster than Jinja's own
            self._compiled[name] = template
        return self._compiled[name]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which some templates mark what the assistant says: its body, as it is."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` for templates: makes dictionaries, and has no attributes to climb out by."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `namespace(self=...)` is allowed
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got "
            f"{name!r}. Please rename the attribute."
        )


def _environment(steps: Steps) -> BoundedSandbox:
    environment = BoundedSandbox(
        steps, trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        {"raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    )
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own would make."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _message(message: Any) -> dict[str, Any]:
    """The message in plain values, a field that is null left out and a thought under both its names."""
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is {message!r}; it must be an object")
    if type(message) is dict and _is_simple(message):
        return message  # not copied: the sandbox changes nothing
    plain = {name: _plain(value) for name, value in message.items() if value is not None}
    thought = next((plain[name] for name in REASONING if name in plain), None)
    if thought is None:
        return plain
    return {"thinking": thought, **plain, "reasoning_content": thought}


def _is_simple(message: dict[str, Any]) -> bool:
    """As most are: texts, and no thoughts."""
    return not _THOUGHTS & message.keys() and all(type(value) is str for value in message.values())


def _tools(tools: Any) -> list[Any] | None:
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        raise ValueError("`tools` must be a list of objects, each the JSON schema of a function")
    return [_plain(one) for one in tools]


def _plain(value: Any) -> Any:
    """`value` made of JSON's types alone: whatever else a reader gave is only named to the template."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {_plain(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return f"<{type(value).__name__}>"
