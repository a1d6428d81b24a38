"""Endpoints whose model is out of memory for now: put to sleep for room, or taken out because it failed."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from app.core.errors import AimassError, DeadlineExceeded, Overloaded, Unavailable
from app.serving.served import RETRY_S, About

# Longest that a request waits for its model to be loaded.
WAKE_S = 60.0
_LONGEST_BACKOFF_S = 60.0
_DOUBLINGS = 5  # of RETRY_S, which bring it there


class Sleeper:
    """One endpoint without its model. `load` brings the model back; it is called once for all who wait.

    `why` is None for one that only sleeps; else the endpoint is out of service, and why. `failures` is how often it was
    taken out or could not be loaded, since it last proved itself in service.
    """

    def __init__(
        self, about: About, load: Callable[["Sleeper"], Awaitable[None]], load_s: float, failures: int = 0
    ) -> None:
        self.about = replace(about, bytes=0)
        self.source = about.source
        self.load_s = load_s  # what the last load took
        self.why: str | None = None
        self.waiting = 0  # requests
        self.task: asyncio.Task[None] | None = None  # that loads it
        self.failures = failures
        self._load = load
        self._retry_at = 0.0

    @property
    def due(self) -> bool:
        """True if it is out of service and may be tried again."""
        return self.why is not None and self.task is None and time.perf_counter() >= self._retry_at

    def fail(self, why: str) -> None:
        """Out of service from now on, to be tried again: at once at first, then after a time that doubles."""
        self.why = why
        doublings = min(self.failures - 1, _DOUBLINGS)  # days of outage are more than a float can double
        wait_s = min(_LONGEST_BACKOFF_S, RETRY_S * 2**doublings) if self.failures else 0.0
        self.failures += 1
        self._retry_at = time.perf_counter() + wait_s

    def wake(self) -> "asyncio.Task[None]":
        """Load the model, unless that is under way."""
        if self.task is None:
            self.task = asyncio.create_task(self._wake(), name=f"wake {self.source.endpoint}")
            # A failure that nobody waits for any more is remembered in `why`; asyncio need not complain of it.
            self.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self.task

    async def loaded(self, deadline: float = math.inf) -> None:
        """Return when one load has ended; `deadline` is on `time.perf_counter`'s clock.

        Unavailable: it failed, and why, or takes over WAKE_S. Overloaded: as many wait as may. DeadlineExceeded.
        """
        if self.why is not None and not self.due:
            raise self.unavailable()
        if self.waiting >= self.source.batching.max_queue:
            raise Overloaded(
                f"{self.waiting} requests wait already for '{self.source.endpoint}' to be loaded",
                retry_after_s=self.load_s,
            )
        self.waiting += 1
        left_s = max(0.0, deadline - time.perf_counter())
        try:
            async with asyncio.timeout(min(left_s, WAKE_S)):
                await asyncio.shield(self.wake())
        except TimeoutError:
            if left_s < WAKE_S:
                raise DeadlineExceeded("the request's time ran out while its model was being loaded") from None
            raise Unavailable(
                f"endpoint '{self.source.endpoint}' is still being loaded after {WAKE_S:g} s", retry_after_s=RETRY_S
            ) from None
        finally:
            self.waiting -= 1

    def unavailable(self) -> Unavailable:
        """What callers are told while it is out of service."""
        left_s = self._retry_at - time.perf_counter()
        return Unavailable(
            f"endpoint '{self.source.endpoint}' is out of service: {self.why}",
            retry_after_s=left_s if left_s > 0 else RETRY_S,  # it is being loaded
        )

    async def _wake(self) -> None:
        try:
            await self._load(self)
        except AimassError as error:
            if error.retryable:  # no room, or the registry is away: not the model's fault
                raise Unavailable(
                    f"endpoint '{self.source.endpoint}' cannot be loaded now: {error.detail}",
                    retry_after_s=error.retry_after_s or RETRY_S,
                ) from error
            self._failed(error.detail)
            raise self.unavailable() from error
        except Exception as error:
            self._failed(f"{type(error).__name__}: {error}")
            raise self.unavailable() from error
        finally:
            self.task = None

    def _failed(self, why: str) -> None:
        """A load has failed, which was a try itself: the next is not at once."""
        self.failures = max(1, self.failures)
        self.fail(why)
