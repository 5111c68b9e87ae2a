"""Where wishes are put up for hosts and answered by them, and where hosts say what they hold; in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from pydantic import TypeAdapter, ValidationError
from redis import Redis

from graft_scheduler import keys
from graft_scheduler.holdings.values import HeldModel, Holding, Wish
from graft_scheduler.records import Event, HostRecord
from graft_scheduler.states import HostId
from graft_scheduler.transitions import HOST_TTL_SECONDS

_MODELS: TypeAdapter[tuple[HeldModel, ...]] = TypeAdapter(tuple[HeldModel, ...])


class Board:
    """The wishes and holdings of all hosts of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ask, self._answer = (redis.register_script(_script(name)) for name in ("ask", "answer"))

    def ask(self, host: HostId, wish: Wish) -> None:
        """Have the host do it, at one of its next heartbeats."""
        data = json.dumps({"action": wish.action, "model": wish.model, "by": wish.by})
        arguments: list[str | int] = [wish.model, wish.model_dump_json(), HOST_TTL_SECONDS, "asked", data]
        self._ask(keys=[keys.host_wishes(host), keys.host_events(host)], args=arguments)

    def answer(self, host: HostId, wish: Wish, event: str = "") -> bool:
        """How far the wish is; whether it is wanted still."""
        return self._say(host, wish, wish.model_dump_json(), event)

    def forget(self, host: HostId, wish: Wish) -> None:
        """Nobody asks any more how a wish went."""
        self._say(host, wish, "", "")

    def pin(self, host: HostId, name: str, *, is_pinned: bool) -> None:
        """Have the host keep a model whatever happens, or end that."""
        pipeline = self._redis.pipeline(transaction=True)
        if is_pinned:
            pipeline.sadd(keys.host_pins(host), name)
        else:
            pipeline.srem(keys.host_pins(host), name)
        pipeline.expire(keys.host_pins(host), HOST_TTL_SECONDS)
        pipeline.execute()

    def orders(self, host: HostId) -> tuple[list[Wish], set[str]]:
        """What the host is asked to do, the oldest first, and what it is to keep."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hvals(keys.host_wishes(host))
        pipeline.smembers(keys.host_pins(host))
        for key in (keys.host_wishes(host), keys.host_pins(host), keys.host_models(host)):
            pipeline.expire(key, HOST_TTL_SECONDS)
        wishes, pins, *_ = pipeline.execute()
        return _wishes(wishes), {str(name) for name in pins}

    def publish(self, host: HostId, models: Sequence[HeldModel]) -> None:
        """Say what the host holds."""
        self._redis.set(keys.host_models(host), _MODELS.dump_json(tuple(models)), ex=HOST_TTL_SECONDS)

    def read(self, hosts: Sequence[HostRecord]) -> list[Holding]:
        """What these hosts hold and are asked to do, in their order."""
        pipeline = self._redis.pipeline(transaction=False)
        for host in hosts:
            pipeline.get(keys.host_models(host.info.id))
            pipeline.hvals(keys.host_wishes(host.info.id))
            pipeline.smembers(keys.host_pins(host.info.id))
        found = iter(pipeline.execute())
        return [
            Holding(host, _models(next(found)), tuple(_wishes(next(found))), frozenset(next(found)))
            for host in hosts
        ]

    def events(self, host: HostId) -> list[Event]:
        """What became of the host's models, the oldest first."""
        entries: Any = self._redis.xrange(keys.host_events(host))
        return [Event.parse(entry_id, fields) for entry_id, fields in entries]

    def _say(self, host: HostId, wish: Wish, value: str, event: str) -> bool:
        data = json.dumps({"action": wish.action, "model": wish.model, "text": wish.text})
        arguments: list[str | int] = [wish.model, wish.id, value, HOST_TTL_SECONDS, event, data]
        return bool(self._answer(keys=[keys.host_wishes(host), keys.host_events(host)], args=arguments))


def forget_holdings(redis: Redis, host: HostId) -> None:
    """Of a host that does not come back."""
    redis.delete(keys.host_models(host), keys.host_wishes(host), keys.host_pins(host), keys.host_events(host))


def _script(name: str) -> str:
    """The text of one of the scripts in `holdings/lua/`, which stand alone."""
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def _wishes(texts: Iterable[str]) -> list[Wish]:
    """Those that can be understood, the oldest first."""
    found = []
    for text in texts:
        try:
            found.append(Wish.model_validate_json(text))
        except ValidationError:  # of another version, or somebody else's
            continue
    return sorted(found, key=lambda wish: (wish.at, wish.id))


def _models(text: str | None) -> tuple[HeldModel, ...]:
    try:
        return _MODELS.validate_json(text) if text else ()
    except ValidationError:
        return ()
