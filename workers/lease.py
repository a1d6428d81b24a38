"""Keeps a lease alive from a thread of its own, so that nothing that blocks the agent's event loop can lose a job."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from app.core.errors import AimassError
from app.core.jobs import HeartbeatAnswer
from app.registry.ledger import SqlLedger
from app.registry.session import Database
from app.registry.workers import seen
from app.settings import Settings

log = logging.getLogger("aimass.lease")
AGAIN_S = 1.0  # after a beat that failed: the registry may be back long before the next one is due


class Heartbeat:
    """Renews one lease every third of its length until closed; a beat that fails is tried again every second.

    `on_lost` and `on_cancel` are called from the thread. While the registry does not answer, the job runs on: only the
    registry can say that the lease is lost, and every write is fenced by the attempt all the same.
    """

    def __init__(
        self,
        settings: Settings,
        worker: str,
        *,
        on_lost: Callable[[], None],
        on_cancel: Callable[[], None],
        on_beat: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, job_id: str, attempt: int) -> None:
        """Begin with the lease that a claim has just given."""
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(job_id, attempt)), name="heartbeat", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop renewing; does not wait for a beat that is under way."""
        self._stop.set()

    async def _run(self, job_id: str, attempt: int) -> None:
        lease_s = self._settings.queue.lease_s
        database = Database(self._settings.database_url, self._settings.database)
        wait_s = lease_s / 3
        try:
            while not await asyncio.to_thread(self._stop.wait, wait_s):
                wait_s = min(AGAIN_S, lease_s / 3)
                try:
                    answer = await self._alive_until(self._beat(database, job_id, attempt))
                except AimassError as error:
                    log.warning("heartbeat job=%s attempt=%d failed: %s", job_id, attempt, error.detail)
                    self._on_beat()
                    continue
                except Exception:  # without this thread the child would end itself
                    log.exception("heartbeat job=%s attempt=%d failed", job_id, attempt)
                    self._on_beat()
                    continue
                wait_s = lease_s / 3
                if answer == "lost":
                    self._on_lost()
                    return
                self._on_beat()
                if answer == "cancel":
                    self._on_cancel()
        finally:
            await database.close()

    async def _beat(self, database: Database, job_id: str, attempt: int) -> HeartbeatAnswer:
        answer = await SqlLedger(database).heartbeat(job_id, attempt, self._settings.queue.lease_s)
        async with database.write() as session:
            await seen(session, self._worker, job_id)
        return answer

    async def _alive_until(self, beat: Coroutine[Any, Any, HeartbeatAnswer]) -> HeartbeatAnswer:
        """What the beat is answered. A registry may hang as well as refuse: the child hears of its agent meanwhile."""
        beating = asyncio.create_task(beat)
        while not (await asyncio.wait([beating], timeout=self._settings.queue.lease_s / 3))[0]:
            self._on_beat()
        return await beating
