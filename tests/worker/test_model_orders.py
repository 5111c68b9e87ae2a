"""Wishes that a host carries out, once each."""

from __future__ import annotations

import pytest
from redis import Redis

from graft_scheduler.holdings.board import Board
from graft_scheduler.holdings.values import Action, Wish
from graft_scheduler.states import HostId
from graft_worker.model_orders import ModelOrders
from graft_worker.preparation import Worker
from tests.services import eventually
from tests.worker.test_warm_attempts import worker

__all__ = ["worker"]
pytestmark = pytest.mark.processes


def test_a_wish_that_was_read_just_before_it_was_answered_is_not_carried_out_again(
    worker: Worker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, board, orders = HostId(worker.info.id), Board(redis), ModelOrders(worker)
    first, second = (
        Wish(id=letter, action=Action.REMOVE, model=f"sha256:{letter * 64}", by="ada", at=at)
        for at, letter in enumerate("ab")
    )

    def answered() -> list[str]:
        return [one.data["model"] for one in board.events(host) if one.name != "asked"]

    board.ask(host, first)
    orders.start()
    orders.tend()
    eventually(lambda: answered() == [first.model], what="the first is carried out")
    board.ask(host, second)
    monkeypatch.setattr(Board, "orders", lambda *_: ([first, second], set()))
    orders.tend()
    eventually(lambda: second.model in answered(), what="the second is carried out")

    assert answered() == [first.model, second.model]
