"""Whether a string is text that somebody can have meant."""

from __future__ import annotations

import re
from typing import Any

from graft_scheduler.data.faults import Kind, Problems
from graft_scheduler.data.jsonl import kind_of
from graft_scheduler.data.secrets import find_secret

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
_BYTE = re.compile("[\udc80-\udcff]")
_MAYBE_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00ff\u0152-\u0178\u0192\u02c6\u02dc\u2013-\u2122\u20ac]+"
)
"""What UTF-8 looks like that was read as Latin-1 or Windows-1252: `Ã©` for `é`, `â€™` for an apostrophe."""
_UNSEEN = re.compile(
    "[\\s\u00ad\u115f\u1160\u200b-\u200f\u2028-\u202f\u2060-\u2064\u2800\u3164\ufeff\uffa0]*"
)
"""Letters that show nothing."""


def check_text(name: str, value: Any, problems: Problems) -> bool:
    """Note what is wrong with the string in the field `name`; whether it is one, and says something."""
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"is {kind_of(value)}; it must be a string"
        problems.append((Kind.FIELDS, f"`{name}` {problem}"))
        return False
    if not value or value.isspace() or (not value.isascii() and _UNSEEN.fullmatch(value)):
        problems.append((Kind.EMPTY, f"`{name}` is empty"))
        return False
    _check_string(name, value, problems)
    return True


def check_strings(name: str, value: Any, problems: Problems) -> None:
    """Note secrets and garbled text anywhere in a value that is stored or shown along with the rest."""
    match value:
        case str():
            _check_string(name, value, problems)
        case dict():
            for key, one in value.items():
                check_strings(f"{name}.{key}", one, problems)
        case list():
            for index, one in enumerate(value):
                check_strings(f"{name}[{index}]", one, problems)


def _check_string(name: str, value: str, problems: Problems) -> None:
    _check_letters(name, value, problems)
    if (secret := find_secret(value)) is not None:
        problems.append((Kind.SECRET, f"`{name}` holds what looks like {secret}"))


def _check_letters(name: str, value: str, problems: Problems) -> None:
    if value.isascii():
        if not value.isprintable() and (found := _CONTROL.search(value)):
            problems.append((Kind.GARBLED, f"`{name}` holds the control character {_letter(found[0])}"))
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        what = "half of a surrogate pair, which no tokenizer takes"
        if byte := _BYTE.search(value):  # as a file's reader leaves what it could not decode
            what = f"the byte 0x{ord(byte[0]) - 0xDC00:02x}, which is not UTF-8; save the file as UTF-8"
        problems.append((Kind.ENCODING, f"`{name}` holds {what}"))
        return
    if found := _NOT_TEXT.search(value):
        what = "the mark of undecodable bytes" if found[0] == "\ufffd" else "the control character"
        problems.append((Kind.GARBLED, f"`{name}` holds {what} {_letter(found[0])}"))
    elif (mojibake := _find_mojibake(value)) is not None:
        text = f"`{name}` holds {mojibake!r}, UTF-8 that was read as another encoding"
        problems.append((Kind.GARBLED, text))


def _find_mojibake(value: str) -> str | None:
    """The first letters that are UTF-8 when they are written as Windows-1252, with what is around them."""
    for found in _MAYBE_MOJIBAKE.finditer(value):
        run = found[0].rstrip("\u00a0")  # a no-break space after a capital is how French is set
        try:
            meant = b"".join(map(_windows_byte, run)).decode()
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue
        if len(run) > 1 and len(meant) < len(run) and not _is_usual(run):
            return value[max(0, found.start() - 8) : found.start() + len(run) + 8]
    return None


def _windows_byte(letter: str) -> bytes:
    """Windows-1252, and for the bytes that it leaves open Latin-1."""
    return letter.encode("latin-1") if ord(letter) < 0x100 else letter.encode("cp1252")


def _is_usual(run: str) -> bool:
    """A capital before closing quotes, as in `IRMÃ»`."""
    return len(run) == 2 and run[1] in "\u00bb\u201d\u2019"


def _letter(letter: str) -> str:
    return f"U+{ord(letter):04X}"
