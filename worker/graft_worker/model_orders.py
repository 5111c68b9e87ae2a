"""Carries out what a host is asked to do with models, one wish after another, beside the jobs.

Heartbeats bring the wishes and tell what the host holds; a thread does the work, which may take hours.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from redis.exceptions import RedisError

from graft_scheduler.errors import GraftError, NotFound
from graft_scheduler.holdings.board import Board
from graft_scheduler.holdings.values import Action, HeldModel, Wish, WishState
from graft_scheduler.memory import format_bytes
from graft_worker.cache.host_cache import Entry
from graft_worker.cache.items import Kind, model_item
from graft_worker.cache.uses import Uses
from graft_worker.cached_models import is_at_hand
from graft_worker.hub_fetching import NoAccess, fetch_from_hub
from graft_worker.preparation import Worker, fetch_from_store

logger = logging.getLogger(__name__)

REMEMBERED_SECONDS = 7 * 86_400.0
"""How long it is shown how a wish went."""
TELL_SECONDS = 2.0
PUBLISH_SECONDS = 60.0
"""How often it is told what the host holds when only times of use have changed."""


class NotWanted(Exception):
    """Something else is asked for by now, or the worker leaves."""


class ModelOrders:
    """The wishes of one host."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._board = worker, Board(worker.quick.redis)
        self._news = threading.Condition()
        self._open: list[Wish] = []
        self._answered: set[str] = set()
        """Ids of wishes that were carried out; a heartbeat may have read them just before."""
        self._published: list[HeldModel] = []
        self._published_at = float("-inf")

    def start(self) -> None:
        """Carry out wishes from now on, until the worker's process ends."""
        threading.Thread(target=self._work, name="models", daemon=True).start()

    def tend(self) -> None:
        """At a heartbeat: take the wishes, and tell what is here.

        Raises:
            RedisError: Redis is away; what was wished is carried out all the same.
        """
        host = self._worker.info.id
        wishes, pins = self._board.orders(host)
        self._worker.cache.set_pins(pins)
        with self._news:
            self._answered &= {wish.id for wish in wishes}
            self._open = [wish for wish in wishes if not wish.state.is_over and wish.id not in self._answered]
            self._news.notify()
        self._publish()
        oldest = time.time() - REMEMBERED_SECONDS
        for wish in wishes:
            if wish.state.is_over and wish.at < oldest:
                self._board.forget(host, wish)

    def _publish(self) -> None:
        root = self._worker.cache.root
        models = [entry for entry in self._worker.cache.entries() if entry.item.kind is not Kind.DATA]
        found = [_held(entry, root) for entry in models]
        held = [one for one in found if one.is_whole or (one.is_ours and one.bytes > 0)]
        is_same = _gist(held) == _gist(self._published)
        if is_same and time.monotonic() - self._published_at < PUBLISH_SECONDS:
            return
        self._board.publish(self._worker.info.id, held)
        self._published, self._published_at = held, time.monotonic()

    def _work(self) -> None:
        while True:
            with self._news:
                while not self._open:
                    self._news.wait()
                wish = self._open[0]
            try:
                self._carry_out(wish)
            except RedisError as error:
                logger.warning("%s of %s: Redis is away: %s", wish.action, wish.model, error)
            except Exception:  # one wish must not be the last
                logger.exception("%s of %s failed", wish.action, wish.model)
            with self._news:
                self._open = [one for one in self._open if one.id != wish.id]

    def _carry_out(self, wish: Wish) -> None:
        logger.info("%s of %s, which %s asked for", wish.action, wish.model, wish.by)
        state, text = WishState.FAILED, ""
        try:
            text = self._pull(wish) if wish.action is Action.PULL else self._remove(wish)
            state = WishState.DONE
        except NotWanted:
            return
        except NoAccess as error:
            self._worker.access.note_refused(error.repository)
            text = f"no access to {error.repository}: accept its terms and set HF_TOKEN on this host"
        except (GraftError, OSError) as error:
            text = str(error)
        except Exception as error:
            logger.exception("%s of %s failed", wish.action, wish.model)
            text = f"{type(error).__name__}: {error}"
        event = "pulled" if wish.action is Action.PULL else "removed"
        news = {"state": state, "text": text}
        over = wish.model_copy(update=news)
        self._board.answer(self._worker.info.id, over, event if state is WishState.DONE else "failed")
        with self._news:
            self._answered.add(wish.id)

    def _pull(self, wish: Wish) -> str:
        """Have the model here; what came of it."""
        worker, uses = self._worker, Uses()
        watch = _Watch(self, wish)
        watch.tell(wish.model, 0, 0)
        try:
            if wish.model.startswith("sha256:"):
                folder = fetch_from_store(worker, model_item(wish.model), uses, watch, wish.source)
            else:
                repository, _, revision = wish.model.partition("@")
                item = fetch_from_hub(worker.cache, repository, revision or None, uses, watch)
                worker.access.note_allowed(repository)
                folder = worker.cache.folder(item)
            return f"in {folder}"
        finally:
            uses.close()

    def _remove(self, wish: Wish) -> str:
        """Have the model gone; another worker on the same folder may have been asked too."""
        try:
            return f"{format_bytes(self._worker.cache.remove(model_item(wish.model)))} freed"
        except NotFound:
            return "it was gone already"

    def is_wanted(self, wish: Wish) -> bool:
        """As the last heartbeat found it."""
        with self._news:
            return any(one.id == wish.id for one in self._open) and not self._worker.leaves.is_set()

    def say(self, wish: Wish) -> None:
        """How far it is; whether Redis hears it does not matter."""
        try:
            self._board.answer(self._worker.info.id, wish)
        except RedisError as error:
            logger.info("%s of %s: %s", wish.action, wish.model, error)


class _Watch:
    """Waits for a fetch on behalf of a wish."""

    def __init__(self, orders: ModelOrders, wish: Wish) -> None:
        self._orders, self._wish = orders, wish
        self._told_at = float("-inf")

    def check(self) -> None:
        if not self._orders.is_wanted(self._wish):
            raise NotWanted

    def tell(self, what: str, brought: int, total: int) -> None:
        del what
        if time.monotonic() - self._told_at < TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        news = {"state": WishState.AT_WORK, "brought_bytes": brought, "total_bytes": total}
        self._orders.say(self._wish.model_copy(update=news))


def _held(entry: Entry, cache: Path) -> HeldModel:
    item = entry.item
    return HeldModel(
        name=entry.item.name,
        source=entry.note.source,
        bytes=entry.bytes,
        used_at=entry.used_at,
        is_ours=entry.is_ours,
        is_in_use=entry.is_in_use,
        is_whole=item.kind is Kind.MODEL or is_at_hand(cache, item, entry.folder),
    )


def _gist(models: Sequence[HeldModel]) -> list[HeldModel]:
    return sorted((one.model_copy(update={"used_at": 0.0}) for one in models), key=lambda one: one.name)
