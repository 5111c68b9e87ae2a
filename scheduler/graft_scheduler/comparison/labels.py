"""What marks the jobs of a comparison: their labels. A comparison is the jobs that have its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

COMPARISON, VARIANT, PLACE, BASE_PARAMETERS = "comparison", "variant", "place", "base_parameters"


@dataclass(frozen=True, slots=True)
class Membership:
    """What a job's labels say of its comparison."""

    comparison: str
    variant: str | None = None
    """Absent in a job that a person labelled."""
    place: int | None = None
    """Counted from 1."""
    of: int | None = None
    """How many variants there are."""
    base_parameters: int | None = None
    """All that the base has; absent where it could not be read."""

    @classmethod
    def read(cls, labels: Mapping[str, str]) -> Self | None:
        """Of a job with these labels; `None` for one that is in no comparison."""
        if not labels.get(COMPARISON):
            return None
        place, _, of = labels.get(PLACE, "").partition(" of ")
        return cls(
            labels[COMPARISON],
            labels.get(VARIANT),
            _number(place),
            _number(of),
            _number(labels.get(BASE_PARAMETERS, "")),
        )

    @property
    def labels(self) -> dict[str, str]:
        """As a job carries it."""
        written = {
            COMPARISON: self.comparison,
            VARIANT: self.variant,
            PLACE: f"{self.place} of {self.of}" if self.place and self.of else None,
            BASE_PARAMETERS: str(self.base_parameters) if self.base_parameters else None,
        }
        return {name: value for name, value in written.items() if value}


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
