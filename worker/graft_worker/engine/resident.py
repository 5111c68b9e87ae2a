"""What one process keeps from job to job: a base, a data set as its tokens, and what was found out of them.

Nothing of a job outlives it: the base is put back as it was loaded. A job on another base or data set
finds nothing, and what was kept before is let go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil

from graft_scheduler.jobs import TrainJob
from graft_worker.engine.below import Kept
from graft_worker.engine.dataset import Dataset
from graft_worker.engine.device import forget
from graft_worker.engine.loading import Base
from graft_worker.engine.pristine import Pristine
from graft_worker.residency import Name, base_name, data_name

T = TypeVar("T")


class Resident:
    """Lends base and data set to one job after another."""

    def __init__(self) -> None:
        self._has_begun = False
        self._base_name: Name | None = None
        self._base: Base | None = None
        self._pristine: Pristine | None = None
        self._data_name: Name | None = None
        self._dataset: Dataset | None = None
        self._jobs = 0
        """That had this data set."""
        self._answers: dict[Hashable, Any] = {}
        self.kept = Kept()
        """Of the base's frozen blocks."""

    @contextmanager
    def lent(self) -> Iterator[float]:
        """What a job does to the base ends with the context, which gives the time the job began at.

        The first one began with its process, whose start it waited for.
        """
        began = time.time() if self._has_begun else psutil.Process().create_time()
        self._has_begun = True
        try:
            yield began
        finally:
            if self._pristine is not None:
                self._pristine.restore()

    def base(self, spec: TrainJob, load: Callable[[], Base]) -> Base:
        """The base that `spec` trains on: the one that is here, or what `load` makes."""
        name = base_name(spec)
        if self._base is not None and name == self._base_name:
            return self._base
        self._let_go()
        base = load()
        if name is not None:
            self._base_name, self._base, self._pristine = name, base, Pristine(base.model)
        return base

    def dataset(self, spec: TrainJob, load: Callable[[], Dataset]) -> Dataset:
        """The same for the rows that `spec` trains on, after its base."""
        name = data_name(spec)
        if self._dataset is not None and name == self._data_name:
            self._jobs += 1
            return self._dataset
        self._dataset, self._jobs = None, 1
        self._answers.clear()
        self.kept.clear()
        dataset = load()
        if name is not None and self._base is not None:
            self._data_name, self._dataset = name, dataset
        return dataset

    def once(self, question: Hashable, answer: Callable[[], T]) -> T:
        """What `answer` said the first time; it must follow from base, data set and `question` alone."""
        if question not in self._answers:
            self._answers[question] = answer()
        found: T = self._answers[question]
        return found

    @property
    def is_shared(self) -> bool:
        """Whether base and data set served another job before, as they do in a study."""
        return self._jobs > 1

    def _let_go(self) -> None:
        held = self._base is not None
        self._base = self._pristine = self._dataset = None
        self._answers.clear()
        self.kept.clear()
        if held:
            forget()
