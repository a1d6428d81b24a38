"""API keys: verified against the registry once, then remembered for a while.

A revoked key is forgotten at once in this gateway, and within the time to live in others.
"""

import asyncio
import time

from app.core.errors import Unauthenticated, Unavailable
from app.core.principal import Principal
from app.registry.keys import KeyReader
from app.services.platform import Platform

TTL_S = 10.0
_FRESH = 0.5  # of that time, after which a key that is used is looked up again while it goes on
_UNKNOWN_AT_ONCE = 2  # look-ups of keys that nobody has used: who makes keys up must not hold up those who have one
MAX_CACHED = 10_000


class KeyCache:
    """`app.gateway.predict.ports.Authenticator` over the registry."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._known: dict[bytes, tuple[Principal, float]] = {}
        self._asking: dict[bytes, asyncio.Task[Principal]] = {}
        self._unknown = asyncio.Semaphore(_UNKNOWN_AT_ONCE)
        self._seen: set[bytes] = set()  # keys that were good once: they need not stand in line with made-up ones
        self._revocations = 0

    def cached(self, key: bytes, /) -> Principal | None:
        """The principal of a key that was verified within the last seconds."""
        entry = self._known.get(key)
        if entry is None:
            return None
        left_s = entry[1] - time.monotonic()
        if left_s <= 0:
            return None
        if left_s < _FRESH * TTL_S:
            self._ask(key)
        return entry[0]

    async def verify(self, key: bytes, /) -> Principal:
        """The principal of a key. Unauthenticated if it is unknown or revoked.

        Requests that ask at once share one look-up. While the registry is away, keys that were good go on being good.
        """
        return await asyncio.shield(self._ask(key))

    def forget(self) -> None:
        """Verify every key anew, since one was revoked."""
        self._revocations += 1
        self._known.clear()

    def _ask(self, key: bytes) -> asyncio.Task[Principal]:
        asked = self._asking.get(key)
        if asked is None:
            asked = self._asking[key] = asyncio.create_task(self._in_turn(key))
            asked.add_done_callback(lambda _: self._answered(key))
        return asked

    def _answered(self, key: bytes) -> None:
        asked = self._asking.pop(key)
        if not asked.cancelled():
            asked.exception()  # is seen, although nobody may wait for it

    async def _in_turn(self, key: bytes) -> Principal:
        if key in self._seen:
            return await self._look_up(key)
        async with self._unknown:
            return await self._look_up(key)

    async def _look_up(self, key: bytes) -> Principal:
        revocations = self._revocations
        try:
            async with self._platform.database.read() as session:
                found = await KeyReader(session).find(key.decode("latin-1"))
        except Unavailable:
            if key not in self._known:
                raise
            return self._known[key][0]
        if found is None:
            self._known.pop(key, None)
            self._seen.discard(key)
            raise Unauthenticated("the API key is unknown or revoked; send a valid one as `Authorization: Bearer KEY`")
        principal = Principal(found.id, found.name, frozenset(found.scopes))  # type: ignore[arg-type]
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
            self._seen.clear()
        self._seen.add(key)
        if revocations == self._revocations:  # else this key may be the one that was revoked meanwhile
            self._known[key] = principal, time.monotonic() + TTL_S
        return principal
