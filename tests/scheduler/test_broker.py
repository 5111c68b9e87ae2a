"""What Celery is told never to do, and what it is told to say."""

from __future__ import annotations

import json
from typing import Any

from redis import Redis

from graft_scheduler import keys
from graft_scheduler.broker import Broker, make_app, task_id
from graft_scheduler.states import HostId, JobId, Token
from tests.services import RedisServer, free_port

JOB, HOST = JobId("job1"), HostId("h1")


def test_no_setting_can_bring_a_message_back(redis_server: RedisServer) -> None:
    conf = make_app(redis_server.url).conf

    assert conf.task_acks_late is False
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_disable_prefetch is True
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.accept_content == ["json"]
    assert conf.task_ignore_result is True


def test_a_nudge_is_three_words_in_the_hosts_own_queue(redis: Redis, redis_server: RedisServer) -> None:
    Broker(make_app(redis_server.url)).nudge(JOB, Token(2), HOST, "train", "ada")

    (raw,) = redis.lrange(keys.host_queue(HOST), 0, -1)
    message: Any = json.loads(str(raw))
    headers = message["headers"]
    assert (headers["task"], headers["id"]) == ("graft.train", task_id(JOB, 2))
    assert headers["argsrepr"] == "['job1', 2, 'ada']"
    assert (headers["eta"], headers["expires"], headers["retries"]) == (None, None, 0)
    redis.delete(keys.host_queue(HOST))


def test_a_broker_that_is_away_is_no_error_as_the_record_is_the_truth() -> None:
    broker = Broker(make_app(f"redis://127.0.0.1:{free_port()}/0"))

    broker.nudge(JOB, Token(1), HOST, "train", "ada")
    broker.announce_waiting([(JOB, 0, "train", "ada")])
    broker.announce_revoked(JOB, 1)
    broker.announce_failed(JOB, 1, "lost", "mac@h1")
