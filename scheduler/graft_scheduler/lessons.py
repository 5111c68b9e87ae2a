"""What finished jobs taught about memory and speed, by family, method, chip and version of MLX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis import Redis

from graft_scheduler import keys

logger = logging.getLogger(__name__)


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


class Lesson(BaseModel):
    """Measured against predicted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    memory_factor: float = Field(gt=0, allow_inf_nan=False)
    """The measured peak over the predicted one."""
    flops_per_second: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    samples: int = Field(default=1, ge=0)


Lessons = Mapping[LessonKey, Lesson]


def read_lessons(redis: Redis) -> dict[LessonKey, Lesson]:
    """Every lesson that can be understood."""
    found: Any = redis.hgetall(keys.LESSONS)
    lessons = {}
    for name, text in found.items():
        parts = name.split("|")
        try:
            lessons[LessonKey(*parts)] = Lesson.model_validate_json(text)
        except (ValidationError, TypeError) as error:
            logger.warning("the lesson %s is left out, it cannot be understood: %s", name, error)
    return lessons
