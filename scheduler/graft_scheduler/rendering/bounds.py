"""Bounds on a chat template: it ends, and makes no text of any size.

Every turn of a loop and every call of a macro is a step, and steps are counted. What gets a name, what
is repeated by `*`, and what is rendered is measured. What one expression makes by filters and methods,
or the body of one macro, is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_STEPS = 200_000
"""In one rendering: a chat of a thousand messages needs some thousands."""
MOST_SECONDS = 10.0
"""Of a core, one rendering may take, whatever its steps do. It takes microseconds."""
LOOKED_AT = 32
"""Steps between two looks at the clock."""
MOST_CHARACTERS = 1 << 25
"""In a text that a template puts together, or items in a list."""
MOST_BITS = 1 << 16
"""Of a number."""
ENDLESS = 9
"""A template that ran out of steps so often in a row is not tried again; a chat is rendered a few times."""


class TemplateBound(Exception):
    """A template does more than any chat needs."""


class Steps(threading.local):
    """What is left to the rendering of this thread."""

    left: int = 0
    deadline: float = 0.0
    exhausted: int = 0
    ended: bool = True
    """The rendering before did."""

    def begin(self) -> None:
        """Before a rendering.

        Raises:
            TemplateBound: the template did not end too often already.
        """
        if self.ended:
            self.exhausted = 0
        if self.exhausted >= ENDLESS:
            raise TemplateBound("it did not end for several chats before this one")
        self.ended = True
        self.left, self.deadline = MOST_STEPS, time.thread_time() + MOST_SECONDS

    def take(self, value: Any) -> None:
        """One step, to which the template brings `value`.

        Raises:
            TemplateBound: there are none left.
        """
        _measured(value)
        self.left -= 1
        if self.left < 0 or (self.left % LOOKED_AT == 0 and time.thread_time() > self.deadline):
            self.exhausted += 1
            self.ended = False
            raise TemplateBound(f"it does not end within {MOST_STEPS:,} steps or {MOST_SECONDS:.0f} seconds")


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox for templates that went through `with_steps`."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self, steps: Steps, **options: Any) -> None:
        super().__init__(**options)
        self.filters[_STEP] = pass_context(lambda context, value: steps.take(value))
        self.filters[_MEASURED] = _measured

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_power(left, right) if operator == "**" else _check_product(left, right)
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox does, whose many questions most templates ask of the same few things."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_NAMES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in _HARMLESS.get(kind, ()):
            return getattr(obj, attribute)
        if issubclass(kind, Namespace) and not attribute.startswith("_"):
            found = getattr(obj, attribute, _ABSENT)
            return super().getattr(obj, attribute) if found is _ABSENT else found
        return super().getattr(obj, attribute)


_ABSENT = object()
_DICT_NAMES = frozenset(dir(dict))
_HARMLESS: dict[type, frozenset[str]] = {
    str: frozenset(name for name in dir(str) if not name.startswith("_"))
    - {"format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs"},
    LoopContext: frozenset(name for name in dir(LoopContext) if not name.startswith("_")),
}
"""What the sandbox allows of these; it looks into what a template formats."""


def joined(parts: Iterable[str]) -> str:
    """The text that a template renders."""
    found: list[str] = []
    left = MOST_CHARACTERS
    for part in parts:
        found.append(part)
        left -= len(part)
        if left < 0:
            raise TemplateBound(f"it renders more than {MOST_CHARACTERS:,} characters")
    return "".join(found)


def with_steps(tree: nodes.Template) -> nodes.Template:
    """`tree` with a step in each loop and macro, and whatever gets a name measured."""
    for loop in tree.find_all(nodes.For):
        names = [
            one.name
            for one in (loop.target, *loop.target.find_all(nodes.Name))
            if isinstance(one, nodes.Name)
        ]
        loop.body[:0] = _steps(names, loop.lineno)
    called: list[nodes.Macro | nodes.CallBlock] = [
        *tree.find_all(nodes.Macro),
        *tree.find_all(nodes.CallBlock),
    ]
    for macro in called:
        macro.body[:0] = _steps([one.name for one in macro.args], macro.lineno)
    for kept in tree.find_all(nodes.Assign):
        kept.node = _filter(kept.node, _MEASURED, kept.lineno)
    for block in tree.find_all(nodes.AssignBlock):
        block.filter = _filter(block.filter, _MEASURED, block.lineno)
    return tree


_STEP, _MEASURED = "graft step", "graft measured"
"""Filters that no template can name: a name of Jinja has no spaces."""


def _steps(names: list[str], line: int) -> list[nodes.Node]:
    values: list[nodes.Expr] = [nodes.Name(name, "load") for name in names] or [nodes.Const(None)]
    return [nodes.ExprStmt(_filter(one, _STEP, line)).set_lineno(line, override=True) for one in values]


def _filter(value: nodes.Node | None, name: str, line: int) -> nodes.Filter:
    found = nodes.Filter(value, name, [], [], None, None)
    found.set_lineno(line)
    return found


def _measured(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > MOST_CHARACTERS:
        raise SecurityError(f"it makes a text or a list of {len(value):,}")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise SecurityError(f"it makes a number of {value.bit_length():,} bits")
    return value


def _check_product(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        is_repeated = isinstance(many, str | list | tuple) and isinstance(times, int)
        if is_repeated and len(many) * times > MOST_CHARACTERS:
            raise SecurityError(f"it repeats a text or a list {times:,} times")


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MOST_BITS:
        raise SecurityError(f"it raises a number to the power of {exponent:,}")
