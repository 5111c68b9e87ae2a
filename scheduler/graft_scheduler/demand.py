"""What a job asks of a host: memory by backend, and what else placement must know of it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

SIGNIFICANT_BITS = 7
"""Of an estimate that is made coarse: at most 1 part in 64 is added."""


class _Frozen(BaseModel):
    """Kept as JSON in a record; a newer version's fields are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Demand(_Frozen):
    """Peak memory of a job on one backend, in bytes."""

    minimum_bytes: int = Field(ge=0, strict=True)
    """With the smallest cut of a step: one row at a time, and activations computed again."""
    preferred_bytes: int = Field(ge=0, strict=True)
    """With the fastest cut; more would not help."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Demand:
        if self.preferred_bytes < self.minimum_bytes:
            raise ValueError(
                f"`preferred_bytes` is {self.preferred_bytes}; it must be at least `minimum_bytes`, "
                f"{self.minimum_bytes}"
            )
        return self

    @classmethod
    def of(cls, size: int) -> Demand:
        """A job that has one size."""
        return cls(minimum_bytes=size, preferred_bytes=size)

    def coarse(self) -> Demand:
        """A little more, in round numbers, so that jobs of nearly equal size are alike to placement."""
        return Demand(
            minimum_bytes=_coarse(self.minimum_bytes), preferred_bytes=_coarse(self.preferred_bytes)
        )


class Request(_Frozen):
    """All that placement must know of a job. Jobs whose requests are equal text are placed as one group."""

    demands: dict[str, Demand] | None = None
    """By backend. Absent: the size is unknown, and the job takes a whole host."""
    is_named: bool = False
    """A person named the size: no lesson corrects it."""
    store_id: str
    needs_remote_code: bool = False
    family: str = ""
    """The base's `model_type`; with the method it names the lessons that hold for the job."""
    method: str = ""
    flops: float | None = None
    """Of the whole training."""
    model: str | None = None
    """The base by digest or `hub id@revision`, as hosts name what they have cached."""
    weight_bytes: int = 0
    """What a host without the base must fetch."""
    disk_bytes: int = 0
    """What any host must have room for: the data set and checkpoints, in powers of two."""

    @property
    def repository(self) -> str | None:
        """The base's hub id; absent for one that is in the store."""
        if self.model is None or self.model.startswith("sha256:"):
            return None
        return self.model.partition("@")[0]


def coarse_demands(demands: Mapping[str, Demand]) -> dict[str, Demand]:
    """Estimates in round numbers; for sizes that a person named, leave them as they are."""
    return {backend: demand.coarse() for backend, demand in demands.items()}


def coarse_disk(size: int) -> int:
    """The next power of two, as few sizes as will do: what a job writes is only guessed."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


def _coarse(size: int) -> int:
    step = 1 << max(0, size.bit_length() - SIGNIFICANT_BITS)
    return -(-size // step) * step
