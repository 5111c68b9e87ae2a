"""`python -m graft_scheduler`: one instance of the scheduler, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

from graft_scheduler.broker import Broker, make_app
from graft_scheduler.errors import GraftError, Unreachable
from graft_scheduler.leader import Scheduler
from graft_scheduler.redis_connection import connect, reachable
from graft_scheduler.settings import Settings, hide_password, load_settings
from graft_scheduler.transitions import Transitions

LEAVE_SECONDS = 5.0
"""How long the driver of studies may take to end its round."""


def main() -> int:
    """Run until SIGTERM or SIGINT; 2 when the settings are wrong, 8 without Redis."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = load_settings()
        redis = connect(settings.redis_url)
        with reachable(settings.redis_url):
            redis.ping()
    except GraftError as error:
        print(f"graft scheduler: {error}", file=sys.stderr)
        return 8 if isinstance(error, Unreachable) else 2
    stop = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    logging.info("scheduler on %s", hide_password(settings.redis_url))
    broker = Broker(make_app(settings.redis_url))
    scheduler = Scheduler(redis, broker, settings)
    driver = threading.Thread(
        target=_drive_studies, args=(settings, broker, scheduler, stop), name="studies", daemon=True
    )
    driver.start()
    scheduler.run(stop)
    driver.join(LEAVE_SECONDS)
    return 0


def _drive_studies(settings: Settings, broker: Broker, scheduler: Scheduler, stop: threading.Event) -> None:
    from graft_scheduler.studies.driver import StudyDriver  # with Optuna, which takes a second to import

    redis = connect(settings.redis_url)
    url = settings.redis_url
    StudyDriver(redis, url, Transitions(redis), broker, lambda: scheduler.leader).run(stop)


if __name__ == "__main__":
    sys.exit(main())
