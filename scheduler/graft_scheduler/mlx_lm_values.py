"""Reading the values of an mlx-lm configuration: what each must be, and what is said when it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graft_scheduler.complaints import nearest
from graft_scheduler.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value must be, in words and as a check."""

    wanted: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a configuration."""

    default: Any
    kind: Kind
    becomes: str = ""
    """Our setting, or the group of them; empty for a key without one."""
    note: str = ""
    """Why the key has no effect, and what does."""


def is_number(value: Any) -> bool:
    """Whether it counts or measures; true and false do not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: value in names)


def in_any_case(*names: str) -> Kind:
    """One of these names, in upper or lower case."""
    return Kind(one_of(*names).wanted, lambda value: isinstance(value, str) and value.lower() in names)


def only(value: Any, remedy: str = "Graft computes with nothing else") -> Kind:
    """This value alone."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    is_flag = isinstance(value, bool)
    return Kind(f"{shown}: {remedy}", lambda given: isinstance(given, bool) == is_flag and given == value)


def absent(remedy: str) -> Kind:
    """No value at all."""
    return Kind(f"left out: {remedy}", lambda value: False)


ANYTHING = Kind("", lambda value: True)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
NAMES = Kind(
    "a list of names of layers",
    lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
)
NUMBERS = Kind("a list of numbers", lambda value: isinstance(value, list) and all(map(is_number, value)))
MAPPING = Kind("settings by name", lambda value: isinstance(value, Mapping))
WHOLE = Kind("a whole number of at least 1", lambda value: is_whole(value) and value >= 1)
WHOLE_0 = Kind("a whole number of at least 0", lambda value: is_whole(value) and value >= 0)
LAYERS = Kind("a whole number, or -1 for all", is_whole)
WHOLE_OR_ALL = Kind(
    "a whole number of at least 1, or -1 for all",
    lambda value: is_whole(value) and (value >= 1 or value == -1),
)
POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
FROM_0 = Kind("a number of at least 0", lambda value: is_number(value) and value >= 0)
SHARE = Kind("a number of at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)
TO_1 = Kind("a number above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1)
BETAS = Kind(
    "a list of two numbers of at least 0 and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(SHARE.fits, value)),
)


class Section:
    """The values of a file or of a part of it, each of its kind; nulls are defaults.

    Raises:
        InvalidInput: an unknown key, or a value of another kind; names the key, the value and the remedy.
    """

    def __init__(
        self,
        values: Mapping[Any, Any],
        keys: Mapping[str, Key],
        name: str = "",
        former: Mapping[str, str] | None = None,
    ) -> None:
        prefix = f"{name}." if name else ""
        for given, value in values.items():
            if given not in keys:
                renamed = (former or {}).get(str(given))
                hint = f"; it is `{renamed}` now" if renamed else nearest(str(given), tuple(keys))
                raise InvalidInput(f"`{prefix}{given}` is not a key of mlx-lm's{hint}")
            if value is not None and not keys[given].kind.fits(value):
                raise InvalidInput(f"`{prefix}{given}` is {value!r}; it must be {keys[given].kind.wanted}")
        self._keys = keys
        self._given = {given: value for given, value in values.items() if value is not None}

    def __getitem__(self, name: str) -> Any:
        """What the file says, or the default."""
        return self._given.get(name, self._keys[name].default)

    def has(self, name: str) -> bool:
        """Whether the file says it."""
        return name in self._given

    def settings(self) -> dict[str, Any]:
        """By our names, of all keys that become one setting; defaults are written out."""
        found = {key.becomes: self[name] for name, key in self._keys.items() if key.becomes}
        return {name: value for name, value in found.items() if value is not None}
