"""The tests that Optuna ships for storages, on ours and a real Redis."""

from __future__ import annotations

import pytest
from optuna.testing.pytest_storages import StorageTestCase
from redis import Redis

from graft_scheduler.studies.storage import StudyStorage, study_storage
from tests.services import RedisServer


class TestStudyStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, redis: Redis, redis_server: RedisServer) -> StudyStorage:
        return study_storage(redis_server.url)
