"""The log of one study: a Redis list of JSON, behind Optuna's interface for journals.

Unlike Optuna's own backend for Redis it unpickles nothing, keeps one key for a study and not one for
an entry, writes nothing twice when a connection breaks, and notices a log that lost its end.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.storages.journal import BaseJournalBackend
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.errors import Fenced, GraftError
from graft_scheduler.redis_connection import reachable

NOT_FOUND = "Record does not exist."
"""As Optuna says it."""


class LogLost(GraftError):
    """A study's log is not the one that was read before: Redis lost the end of it."""


class StudyJournal(BaseJournalBackend):
    """One study's log. Not safe for threads: Optuna's `JournalStorage` calls it under a lock."""

    def __init__(self, redis: Redis, url: str, number: int, leader: Callable[[], str] = lambda: "") -> None:
        self._url, self._number, self._leader = url, number, leader
        self._log, self._writers = keys.study_log(number), keys.study_writers(number)
        self._redis = redis
        self._create = redis.register_script(script("create"))
        self._append = redis.register_script(script("append"))
        self._writer, self._written = str(uuid.uuid4()), 0
        self._at, self._last = 0, ""
        """So many entries were handed out, and the last of them."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add to the end; the entry that makes the study also takes its name.

        Raises:
            DuplicatedStudyError: another study has the name.
            Fenced: another scheduler leads than the one that this writes for.
            KeyError: the study was deleted, or never was.
            Unreachable: Redis does not answer; whether they were added is not known then.
        """
        if "study_name" in logs[0]:
            self._begin(logs[0])
            return
        self._written += 1
        arguments: list[str | int] = [self._writer, self._written, self._leader()]
        arguments += [_text(entry) for entry in logs]
        with reachable(self._url):
            answer = self._append(keys=[self._log, self._writers, keys.LEADER], args=arguments)
        if answer == 0:
            raise KeyError(NOT_FOUND)
        if answer < 0:
            raise Fenced(f"study {self._number} is driven by another scheduler now")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The entries from that one on, counted from 0.

        Raises:
            KeyError: the study was deleted.
            LogLost: the entry before them is not the one that was read as it.
            Unreachable: Redis does not answer.
        """
        before = min(1, log_number_from)
        with reachable(self._url):
            found: Any = self._redis.lrange(self._log, log_number_from - before, -1)
        if before:
            self._check(log_number_from, found)
        self._at = log_number_from
        for text in found[before:]:
            self._at, self._last = self._at + 1, text
            yield json.loads(text)

    def _begin(self, entry: dict[str, Any]) -> None:
        name = entry["study_name"]
        with reachable(self._url):
            is_free = self._create(keys=[keys.STUDIES, self._log], args=[name, self._number, _text(entry)])
        if not is_free:
            raise DuplicatedStudyError(f"a study of the name {name!r} exists already")

    def _check(self, number: int, found: list[str]) -> None:
        if found and (self._at != number or found[0] == self._last):
            return
        if not found and not self._redis.exists(self._log):
            raise KeyError(NOT_FOUND)
        raise LogLost(
            f"the log of study {self._number} ended before entry {number} or has another there: Redis lost "
            "its last writes; open the study again to go on from what is left"
        )


def script(name: str) -> str:
    """The text of one of the scripts in `studies/lua/`, which stand alone."""
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def _text(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"))
