"""Names for adapters and checkpoints: what has one is kept until the name is taken away."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.errors import InvalidInput
from graft_scheduler.states import Digest, JobId

MAX_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Tag(BaseModel):
    """A name, and what it is of; with enough to list it after the job's record has expired."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    what: Literal["adapter", "checkpoint"]
    digest: Digest
    job: JobId
    step: int | None = None
    by: str
    at: float
    """Seconds since 1970, by the clock of whoever gave the name."""
    made_at: float | None = None
    """When the adapter or checkpoint was."""
    bytes: int | None = None
    base: str = ""
    method: str = ""
    data: str = ""
    loss: float | None = None
    """Validation loss, in nats."""
    host: str | None = None


def check_name(name: str) -> str:
    """The name, if it can be one.

    Raises:
        InvalidInput: says what it must be.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or name.endswith("."):
        raise InvalidInput(
            f"`NAME` is {name!r}; use letters, digits, `.`, `_` and `-`, {MAX_NAME} at most, and begin "
            "with a letter or a digit"
        )
    return name


def read_tags(redis: Redis) -> dict[str, Tag]:
    """Every name.

    Raises:
        ValueError: one of them cannot be understood.
    """
    found: Any = redis.hgetall(keys.TAGS)
    return {name: Tag.model_validate_json(text) for name, text in sorted(found.items())}


def read_tag(redis: Redis, name: str) -> Tag | None:
    """What has this name."""
    found: Any = redis.hget(keys.TAGS, name)
    return None if found is None else Tag.model_validate_json(found)
