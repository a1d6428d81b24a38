"""The ports of one process, made by its composition root and handed to every service."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.queue.ports import Wake
from app.queue.redis import RedisWake
from app.registry.session import Database
from app.settings import Settings
from app.store.open import open_store
from app.store.ports import Store


@dataclass(slots=True)
class Steadiness:
    """For how long the registry has answered this process's reconciler without a break."""

    clock: Callable[[], float] = time.monotonic
    _since: float = -math.inf
    _last: float = -math.inf

    def answered(self, gap_s: float) -> float:
        """Note an answer; seconds since the first of those that came less than `gap_s` after one another."""
        at = self.clock()
        if at - self._last > gap_s:
            self._since = at
        self._last = at
        return at - self._since


@dataclass(frozen=True, slots=True)
class Platform:
    """Registry, wake-ups, store and settings."""

    settings: Settings
    database: Database
    wake: Wake
    store: Store
    steadiness: Steadiness = field(default_factory=Steadiness)

    @property
    def scratch(self) -> Path:
        """A local folder for job folders and cached model versions; may be deleted while nothing runs."""
        return self.settings.data_dir.resolve()

    async def close(self) -> None:
        """Close every connection."""
        await self.wake.close()
        await self.store.close()
        await self.database.close()


def open_platform(settings: Settings) -> Platform:
    """Open every port that the settings name."""
    wake = RedisWake(settings.redis_url, settings.redis.timeout_s)
    return Platform(settings, Database(settings.database_url, settings.database), wake, open_store(settings))
