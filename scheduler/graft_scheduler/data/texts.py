"""Whether a string is text that somebody can have meant."""

from __future__ import annotations

import re
from typing import Any

from graft_scheduler.data.faults import Kind, Problems
from graft_scheduler.data.jsonl import kind_of
from graft_scheduler.data.secrets import find_secret

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00ef\u00bb\u00bf"
    "|\u00e2\u20ac[\u0153\u009d\u2122\u02dc\u201c\u201d\u00a6]"
)
"""UTF-8 that was read as Latin-1 or Windows-1252: `Ã©` for `é`, `â€™` for an apostrophe."""


def check_text(name: str, value: Any, problems: Problems) -> bool:
    """Note what is wrong with the string in the field `name`; whether it is one, and says something."""
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"is {kind_of(value)}; it must be a string"
        problems.append((Kind.FIELDS, f"`{name}` {problem}"))
        return False
    if not value or value.isspace():
        problems.append((Kind.EMPTY, f"`{name}` is empty"))
        return False
    _check_letters(name, value, problems)
    if (secret := find_secret(value)) is not None:
        problems.append((Kind.SECRET, f"`{name}` holds what looks like {secret}"))
    return True


def _check_letters(name: str, value: str, problems: Problems) -> None:
    if value.isascii():
        if not value.isprintable() and (found := _CONTROL.search(value)):
            problems.append((Kind.GARBLED, f"`{name}` holds the control character {_letter(found[0])}"))
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        text = f"`{name}` holds half of a surrogate pair, which no tokenizer takes"
        problems.append((Kind.ENCODING, text))
        return
    if found := _NOT_TEXT.search(value):
        what = "the mark of undecodable bytes" if found[0] == "\ufffd" else "the control character"
        problems.append((Kind.GARBLED, f"`{name}` holds {what} {_letter(found[0])}"))
    elif found := _MOJIBAKE.search(value):
        around = value[max(0, found.start() - 8) : found.end() + 8]
        text = f"`{name}` holds {around!r}, UTF-8 that was read as another encoding"
        problems.append((Kind.GARBLED, text))


def _letter(letter: str) -> str:
    return f"U+{ord(letter):04X}"
