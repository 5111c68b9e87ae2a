"""What a person's program does with the models of hosts: see them, have them fetched, removed and kept."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redis import Redis

from graft_scheduler import fleet
from graft_scheduler.basemodels import local_folder, looks_like_path, read_base_model
from graft_scheduler.errors import NotAllowed, NotFound
from graft_scheduler.holdings.board import Board
from graft_scheduler.holdings.values import Action, HeldModel, Holding, Wish, WishState
from graft_scheduler.hub import fetch_hub_config
from graft_scheduler.jobs import current_user
from graft_scheduler.records import Event, HostRecord
from graft_scheduler.redis_connection import patiently, reachable
from graft_scheduler.states import HostId
from graft_scheduler.store import Store

POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Asked:
    """A wish, and whom it was put to."""

    host: HostRecord
    wish: Wish


class HostModels:
    """The models on the hosts of one Redis. Methods raise `Unreachable` when it does not answer.

    A model is named by its hub id, with `@` and the beginning of a commit if one is meant; by its digest
    or the beginning of that; or by the folder that it was put into the store from. `hosts` are names or
    ids; without any, all are meant.
    """

    def __init__(
        self,
        redis: Redis,
        redis_url: str,
        hosts: Callable[[], list[HostRecord]],
        find: Callable[[str], HostRecord],
    ) -> None:
        self._redis, self._url, self._hosts, self._find = redis, redis_url, hosts, find
        self._board = Board(redis)

    def ls(self, hosts: Sequence[str] = ()) -> list[Holding]:
        """What each host holds and is asked to do."""
        records = self._named(hosts)
        with reachable(self._url):
            return self._board.read(records)

    def meant(self, model: str, hosts: Sequence[str] = ()) -> list[tuple[HostRecord, HeldModel]]:
        """What hosts have that may be meant.

        Raises:
            NotFound: none of them has it.
        """
        found = [
            (holding.host, held)
            for holding in self.ls(hosts)
            for held in holding.models
            if held.is_meant(model)
        ]
        if not found:
            where = f"none of {', '.join(hosts)}" if hosts else "no host"
            raise NotFound(f"{where} has {model}; `graft model ls` lists what is there")
        return found

    def pull(self, model: str, store: Callable[[], Store], hosts: Sequence[str] = ()) -> list[Asked]:
        """Have hosts fetch a base ahead of jobs: a hub id, perhaps with `@revision`, or a folder here, which
        is put into the store.

        Raises:
            InvalidInput: there is no such folder or model.
            NotFound: there is no host that could.
        """
        records = [one for one in self._named(hosts) if hosts or one.is_alive]
        if not records:
            raise NotFound("no host is alive; `graft worker` on a machine makes it one")
        name, source = self._resolve(model, store)
        return self._ask(Action.PULL, [(one, name, source) for one in records])

    def remove(self, model: str, hosts: Sequence[str] = ()) -> list[Asked]:
        """Have hosts free their disk of a base; they refuse while somebody uses it, or it is pinned.

        Raises:
            NotFound: none of them has it.
        """
        found = [(one, held.name, held.source) for one, held in self.meant(model, hosts)]
        return self._ask(Action.REMOVE, found)

    def pin(self, model: str, hosts: Sequence[str] = ()) -> list[tuple[HostRecord, str]]:
        """Have hosts keep a base, whatever room others need.

        Raises:
            NotFound: none of them has it.
        """
        found = [(one, held.name) for one, held in self.meant(model, hosts)]
        with reachable(self._url):
            for one, name in found:
                self._board.pin(one.info.id, name, is_pinned=True)
        return found

    def unpin(self, model: str, hosts: Sequence[str] = ()) -> list[tuple[HostRecord, str]]:
        """End that.

        Raises:
            NotFound: none of them has pinned it.
        """
        found = [
            (holding.host, name)
            for holding in self.ls(hosts)
            for name in sorted(holding.pins)
            if _held(holding, name).is_meant(model)
        ]
        if not found:
            raise NotFound(f"no host has pinned {model}; `graft model ls` shows what is pinned")
        with reachable(self._url):
            for one, name in found:
                self._board.pin(one.info.id, name, is_pinned=False)
        return found

    def wait(self, asked: Sequence[Asked], timeout_seconds: float | None = None) -> list[Asked]:
        """The same wishes once they are done or have failed, as one has whose place another took.

        Raises:
            TimeoutError: some have not ended in time; they go on.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            asked = [patiently(lambda one=one: self._now(one)) for one in asked]  # type: ignore[misc]
            waiting = [one for one in asked if not one.wish.state.is_over]
            if not waiting:
                return list(asked)
            if deadline is not None and time.monotonic() > deadline:
                names = ", ".join(one.host.info.name for one in waiting)
                raise TimeoutError(f"{names} did not end in {timeout_seconds:g} s")
            time.sleep(POLL_SECONDS)

    def events(self, host: str) -> list[Event]:
        """What became of a host's models, the oldest first."""
        record = self._find(host)
        with reachable(self._url):
            return self._board.events(record.info.id)

    def _now(self, asked: Asked) -> Asked:
        with reachable(self._url):
            (holding,) = self._board.read([asked.host])
        for wish in holding.wishes:
            if wish.id == asked.wish.id:
                return replace(asked, wish=wish)
        news = {"state": WishState.FAILED, "text": "something else was asked for instead"}
        return replace(asked, wish=asked.wish.model_copy(update=news))

    def _ask(self, action: Action, wishes: Sequence[tuple[HostRecord, str, str]]) -> list[Asked]:
        with reachable(self._url):
            now = fleet.redis_now(self._redis)
            asked = []
            for host, name, source in wishes:
                wish = Wish(
                    id=secrets.token_hex(8),
                    action=action,
                    model=name,
                    source=source,
                    by=current_user(),
                    at=now,
                )
                self._board.ask(HostId(host.info.id), wish)
                asked.append(Asked(host, wish))
        return asked

    def _resolve(self, model: str, store: Callable[[], Store]) -> tuple[str, str]:
        """The name that hosts know the model by, and where it comes from."""
        repository, _, revision = model.partition("@")
        is_folder = looks_like_path(repository) or Path(model).expanduser().exists()
        if is_folder and (folder := local_folder(model)) is not None:
            read_base_model(folder)
            return store().put_folder(folder), str(folder.absolute())
        try:
            found = fetch_hub_config(repository, revision or None)
        except NotAllowed:  # the hosts have tokens of their own
            found = None
        commit = revision if found is None else found.commit
        return (f"{repository}@{commit}" if commit else repository), repository

    def _named(self, hosts: Sequence[str]) -> list[HostRecord]:
        return [self._find(name) for name in hosts] if hosts else self._hosts()


def _held(holding: Holding, name: str) -> HeldModel:
    """The model of that name, which may not be there any more, or not yet."""
    for held in holding.models:
        if held.name == name:
            return held
    return HeldModel(name=name, bytes=0, used_at=0)
