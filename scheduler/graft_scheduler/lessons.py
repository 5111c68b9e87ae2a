"""What finished jobs taught about memory and speed, by family, method, chip and version of MLX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.demand import Request
from graft_scheduler.messages import TrainResult

logger = logging.getLogger(__name__)

LEAST_PEAK_BYTES = 64 << 20
"""Smaller jobs say little of large ones: single small arrays count for much in them."""
LEAST_FACTOR = 0.8
"""A lesson may lower an estimate by no more than this: a few small jobs must not make it careless."""
LEAST_SECONDS = 20.0
"""Shorter trainings are mostly their beginning and their end."""


class LessonKey(NamedTuple):
    """For which jobs on which hosts a lesson holds."""

    family: str
    method: str
    chip: str
    mlx: str

    @property
    def field(self) -> str:
        """Its name in the hash of lessons."""
        return "|".join(self)

    @classmethod
    def of(cls, request: Request, chip: str, mlx: str) -> LessonKey:
        """For such jobs on such hosts."""
        return cls(request.family, request.method, chip, mlx)


class Lesson(BaseModel):
    """Measured against predicted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    memory_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The measured peak over the predicted one: of the newest jobs nine in ten stay below."""
    flops_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    samples: int = Field(default=1, ge=0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one finished job teaches."""

    key: LessonKey
    memory_factor: float | None
    """Measured over predicted peak; absent where either says nothing."""
    flops_per_second: float | None

    def arguments(self) -> list[str]:
        """For `finish.lua`, which adds it to what is known."""
        figures = (self.memory_factor, self.flops_per_second)
        return [self.key.field, *("" if one is None else repr(one) for one in figures)]


Lessons = Mapping[LessonKey, Lesson]


def factor_of(lesson: Lesson | None) -> float:
    """What an estimate is multiplied by."""
    return 1.0 if lesson is None else max(LEAST_FACTOR, lesson.memory_factor)


def demand_factor(request: Request, lesson: Lesson | None) -> float:
    """What the request's demand is multiplied by: a size that a person named stays as it is."""
    return 1.0 if request.is_named else factor_of(lesson)


def measured(request: Request, result: TrainResult, chip: str, mlx: str) -> Measured | None:
    """What a job that asked for `request` teaches by its `result`, on a chip with a version of MLX."""
    if not request.family or not chip:
        return None
    peak, predicted = result.peak_memory_bytes or 0, result.predicted_peak_bytes or 0
    factor = peak / predicted if min(peak, predicted) >= LEAST_PEAK_BYTES else None
    probed = result.facts.get("memory", {}).get("probe_factor")
    if factor is not None and probed is not None:  # the peak was that of another cut, which was given up
        factor = float(probed)
    speed = None
    if request.flops is not None and result.training_seconds >= LEAST_SECONDS and not result.stopped_early:
        speed = request.flops / result.training_seconds
    if factor is None and speed is None:
        return None
    return Measured(LessonKey.of(request, chip, mlx), factor, speed)


def read_lessons(redis: Redis) -> dict[LessonKey, Lesson]:
    """Every lesson that can be understood."""
    found: Any = redis.hgetall(keys.LESSONS)
    lessons = {}
    for name, text in found.items():
        try:
            key = LessonKey(*name.split("|"))
        except TypeError as error:
            logger.warning("the lesson %s is left out, it cannot be understood: %s", name, error)
            continue
        if (lesson := _parse(name, text)) is not None:
            lessons[key] = lesson
    return lessons


def read_lesson(redis: Redis, key: LessonKey) -> Lesson | None:
    """One lesson; none where nothing was learned or it cannot be understood."""
    text: Any = redis.hget(keys.LESSONS, key.field)
    return None if text is None else _parse(key.field, text)


def _parse(name: str, text: str) -> Lesson | None:
    try:
        return Lesson.model_validate_json(text)
    except ValidationError as error:
        logger.warning("the lesson %s is left out, it cannot be understood: %s", name, error)
        return None
