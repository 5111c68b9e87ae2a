"""What can be wrong with a data set, and where: the words that readers, checks and reports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

MOST_KEPT = 1000
"""Faults of one kind that are kept with their place; the rest is only counted."""


class Kind(StrEnum):
    """What sort of fault it is."""

    FILE = "file"
    """It cannot be read, is of no known kind, or has no rows."""
    SYNTAX = "syntax"
    """Not JSON, a row of a table with too many cells, ..."""
    ENCODING = "encoding"
    """Bytes that are no UTF-8."""
    FIELDS = "fields"
    """A field is missing, of the wrong type, or of another format than the other rows'."""
    EMPTY = "empty"
    """A text or a turn without a word."""
    TOOLS = "tools"
    """A call, a result or a description of a tool that a chat template cannot show."""
    ROLES = "roles"
    """Turns in an order in which nobody speaks."""
    NOTHING = "nothing-to-learn"
    """No turn of the assistant, or none within the length."""
    GARBLED = "garbled"
    """Text that was decoded wrongly before it came here, or control characters."""
    SECRET = "secret"  # noqa: S105 - the name of a fault
    """What looks like a password, a key or a token."""
    LEAK = "leak"
    """A row of the validation or test set that is in the training set too."""
    DUPLICATE = "duplicate"
    """A row that is in the training set twice."""
    TRUNCATED = "truncated"
    """A row that is longer than what is trained of it."""
    LOST = "lost"
    """A row that has nothing to learn in the part of it that is trained."""
    TEMPLATE = "template"
    """A row that the model's chat template refuses, or does not show the assistant's turns of."""


WARNINGS = frozenset({Kind.DUPLICATE, Kind.TRUNCATED, Kind.LOST})
"""These are told, and refuse nothing."""
ALLOWABLE = (Kind.ROLES, Kind.NOTHING, Kind.GARBLED, Kind.SECRET, Kind.LEAK, Kind.TEMPLATE)
"""What somebody may have on purpose; it is refused until they say so."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, at one place."""

    kind: Kind
    file: str
    line: int | None
    """From 1; of a table without lines the row. Absent: the whole file."""
    text: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.text}"


@dataclass(slots=True)
class Faults:
    """All that was found: how often, and the first of each kind with their places."""

    allowed: frozenset[Kind] = frozenset()
    counts: Counter[Kind] = field(default_factory=Counter)
    kept: list[Fault] = field(default_factory=list)
    """In the order in which they were found."""

    def add(self, fault: Fault) -> None:
        """Note one more."""
        self.counts[fault.kind] += 1
        if self.counts[fault.kind] <= MOST_KEPT:
            self.kept.append(Fault(fault.kind, visible(fault.file), fault.line, visible(fault.text)))

    def refuses(self, kind: Kind) -> bool:
        """Whether a fault of that kind keeps the data set from being used."""
        return kind not in WARNINGS and kind not in self.allowed

    @property
    def refused(self) -> list[Fault]:
        """Those that keep the data set from being used."""
        return [one for one in self.kept if self.refuses(one.kind)]

    @property
    def noted(self) -> list[Fault]:
        """Those that do not."""
        return [one for one in self.kept if not self.refuses(one.kind)]

    def count(self, kinds: Iterable[Kind]) -> int:
        """How many there are of these kinds."""
        return sum(self.counts[kind] for kind in kinds)

    @property
    def refused_count(self) -> int:
        return self.count(kind for kind in Kind if self.refuses(kind))


def visible(text: str) -> str:
    """The text with everything spelled out that a screen would not show, or would obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class BadRow(Exception):
    """A row that no row can be made of; the readers and conversions raise it, `inspection` catches it."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text


Problems = list[tuple[Kind, str]]
"""Of one row, in the order in which they were met."""
