"""A job's log, attempt by attempt: whole from the store where it is there, else the lines that Redis has."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from graft_scheduler.errors import GraftError
from graft_scheduler.records import AttemptLog, JobRecord
from graft_scheduler.states import Token
from graft_scheduler.store import Store

logger = logging.getLogger(__name__)

MOST_LINE = 1 << 20
"""A line that is longer comes in pieces."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line in Redis."""

    entry: str
    """Position in its stream."""
    token: Token | None
    text: str


def read_log(record: JobRecord, open_store: Callable[[], Store], lines: Iterable[LogLine]) -> Iterator[str]:
    """The lines of all attempts in their order, without holding more of what is in the store than a part."""
    stored = {one.token: one for one in record.logs}
    in_redis: dict[Token, list[str]] = {}
    for line in lines:
        in_redis.setdefault(line.token or Token(0), []).append(line.text)
    store: Store | None = None
    for token in sorted(stored.keys() | in_redis.keys()):
        known = in_redis.get(token, [])
        if token not in stored:
            yield from known
            continue
        try:
            store = store or open_store()
            beginning = _lines(store, stored[token])
            first = next(beginning, None)
        except (GraftError, OSError) as error:
            logger.warning("the log of attempt %d is not to be had, here is its end: %s", token, error)
            yield from known
            continue
        if first is not None:
            yield first
        yield from beginning


def _lines(store: Store, log: AttemptLog) -> Iterator[str]:
    """Those that are not empty; progress bars of libraries end theirs with a carriage return."""
    for line in split_lines(store.stream(log.digest)):
        if line.strip():
            yield line


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Text in chunks, by lines."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + decode(chunk)).replace("\r", "\n").split("\n")
        yield from whole
        if len(rest) > MOST_LINE:
            yield rest
            rest = ""
    if rest := rest + decode(b"", final=True):
        yield rest
