"""Wake-ups over Redis or Valkey: a sorted set per (device class, priority), and channels for cancels and live events.

Sets, since a job that waits is announced again and again: in a list, jobs that wait for days would fill the memory.
The client never retries by itself: its default retries can block for so long that a lease is lost.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar, cast

import redis.asyncio as aioredis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.core.errors import Misconfigured, Unavailable
from app.core.jobs import DeviceClass, Ready

PREFIX = "aimass:"
PRIORITIES = (0, 1, 2)
RECONNECT_S = 0.5
T = TypeVar("T")


def _set(device: str, priority: int) -> str:
    return f"{PREFIX}due:{device}:{priority}"


class RedisWake:
    """`app.queue.ports.Wake` over one server."""

    def __init__(self, url: str, timeout_s: float = 3.0) -> None:
        self._timeout_s = timeout_s
        options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": 1.0,
            "decode_responses": True,
        }
        try:
            self._client = aioredis.from_url(url, socket_timeout=timeout_s, **options)
            # A blocking pop and a subscription wait longer than a command may.
            self._waiting = aioredis.from_url(url, socket_timeout=None, **options)
        except ValueError as error:
            raise Misconfigured(f"AIMASS_REDIS_URL is not an address: {error}") from error

    async def ping(self) -> None:
        """Unavailable when the server does not answer."""
        await self._do(self._client.ping())

    async def announce(self, *ready: Ready) -> None:
        """Add the jobs' ids to their sets. With one score for all they are popped by id, which is by age."""
        sets: dict[str, dict[str, int]] = defaultdict(dict)
        for job in ready:
            sets[_set(job.device, job.priority)][job.job_id] = 0
        for key, ids in sets.items():
            await self._do(self._client.zadd(key, ids))

    async def next(self, devices: Sequence[DeviceClass], timeout_s: float) -> str | None:
        """The next announced id; sets are asked in the order of priority."""
        keys = [_set(device, priority) for priority in PRIORITIES for device in devices]
        popped = await self._do(
            asyncio.wait_for(self._waiting.bzpopmin(keys, timeout=timeout_s), timeout_s + self._timeout_s)
        )
        return cast("tuple[str, str, float]", popped)[1] if popped else None

    async def publish(self, channel: str, message: str) -> None:
        """Tell whoever listens now."""
        await self._do(self._client.publish(PREFIX + channel, message))

    async def listen(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
        """Messages for as long as the caller asks; reconnects for ever."""
        while True:
            subscription = self._waiting.pubsub(ignore_subscribe_messages=True)
            try:
                await subscription.subscribe(*(PREFIX + channel for channel in channels))
                yield "", ""
                async for message in subscription.listen():
                    yield message["channel"].removeprefix(PREFIX), message["data"]
            except (RedisError, OSError):
                await asyncio.sleep(RECONNECT_S)
            finally:
                await _quietly_close(subscription)

    async def close(self) -> None:
        """Close both pools."""
        await self._client.aclose()
        await self._waiting.aclose()

    async def _do(self, command: Awaitable[T]) -> T:
        try:
            return await command
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"Redis does not answer (AIMASS_REDIS_URL): {error}", retry_after_s=1.0) from error


async def _quietly_close(subscription: PubSub) -> None:
    with contextlib.suppress(RedisError, OSError):
        await subscription.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it so
