"""Running `graft` inside the test's process, with its two streams apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from graft_cli import main
from tests.services import RedisServer


@dataclass(frozen=True)
class Run:
    """What one command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


Graft = Callable[..., Run]


@pytest.fixture
def graft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    """Call it with the words of a command line."""

    def run(*words: str) -> Run:
        monkeypatch.setattr("sys.argv", ["graft", *words])
        code = 0
        try:
            main.run()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def service(graft: Graft, redis: Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Graft:
    """`graft` with a real, empty Redis, and nobody else there."""
    del redis
    monkeypatch.setenv("GRAFT_REDIS_URL", redis_server.url)
    return graft
