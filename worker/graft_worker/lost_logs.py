"""The logs of earlier attempts whose hosts could not hand them over: kept as far as they are known here."""

from __future__ import annotations

import logging
from typing import Any

from redis.exceptions import RedisError

from graft_scheduler import keys
from graft_scheduler.errors import GraftError
from graft_scheduler.records import AttemptLog, JobRecord
from graft_scheduler.states import Token
from graft_worker.preparation import Worker

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
"""In an attempt's folder."""


def lost_logs(worker: Worker, record: JobRecord) -> list[AttemptLog]:
    """In the store now: whole where the attempt was on this host, else the newest lines that Redis has."""
    stored = {one.token for one in record.logs}
    missing = [Token(number) for number in range(1, record.token) if number not in stored]
    if not missing:
        return []
    try:
        found = [_own_log(worker, record, token) for token in missing]
        if None in found:
            lines = _lines_in_redis(worker, record)
            found = [
                own or _known_log(worker, token, lines) for own, token in zip(found, missing, strict=True)
            ]
        return [one for one in found if one is not None]
    except (GraftError, OSError, RedisError) as error:
        logger.warning("job %s: the log of a lost attempt is not kept: %s", record.id, error)
        return []


def _own_log(worker: Worker, record: JobRecord, token: Token) -> AttemptLog | None:
    path = worker.folder.attempt_dir(record.id, token) / LOG_FILE
    if not path.is_file():
        return None
    size = path.stat().st_size
    return AttemptLog(token=token, digest=worker.store.put_file(path, size), bytes=size)


def _lines_in_redis(worker: Worker, record: JobRecord) -> dict[Token, list[str]]:
    entries: Any = worker.transitions.redis.xrange(keys.job_log(record.id))
    lines: dict[Token, list[str]] = {}
    for _, fields in entries:
        lines.setdefault(Token(int(fields.get("token") or 0)), []).append(fields["line"])
    return lines


def _known_log(worker: Worker, token: Token, lines: dict[Token, list[str]]) -> AttemptLog | None:
    """Nothing for an attempt that never began."""
    if token not in lines:
        return None
    data = "".join(f"{line}\n" for line in lines[token]).encode()
    return AttemptLog(token=token, digest=worker.store.put_bytes(data), bytes=len(data), is_whole=False)
