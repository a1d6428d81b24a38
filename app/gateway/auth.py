"""API keys: verified against the registry once, then remembered for a while.

A revoked key is forgotten at once in this gateway, and within the time to live in others.
"""

import time

from app.core.errors import Unauthenticated
from app.core.principal import Principal
from app.registry.keys import KeyReader
from app.services.platform import Platform

TTL_S = 10.0
MAX_CACHED = 10_000


class KeyCache:
    """`app.gateway.predict.ports.Authenticator` over the registry."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._known: dict[bytes, tuple[Principal, float]] = {}

    def cached(self, key: bytes, /) -> Principal | None:
        """The principal of a key that was verified within the last seconds."""
        entry = self._known.get(key)
        return entry[0] if entry is not None and entry[1] > time.monotonic() else None

    async def verify(self, key: bytes, /) -> Principal:
        """The principal of a key. Unauthenticated if it is unknown or revoked."""
        async with self._platform.database.read() as session:
            found = await KeyReader(session).find(key.decode("latin-1"))
        if found is None:
            self._known.pop(key, None)
            raise Unauthenticated("the API key is unknown or revoked; send a valid one as `Authorization: Bearer KEY`")
        principal = Principal(found.id, found.name, frozenset(found.scopes))  # type: ignore[arg-type]
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[key] = principal, time.monotonic() + TTL_S
        return principal

    def forget(self) -> None:
        """Verify every key anew, since one was revoked."""
        self._known.clear()
