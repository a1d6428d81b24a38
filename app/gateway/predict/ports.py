"""What the prediction paths need from the rest of the gateway."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from app.core.principal import Principal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Authenticator(Protocol):
    """Verifies API keys. A key is the bytes of `X-API-Key`, or of `Authorization` after `Bearer `."""

    def cached(self, key: bytes, /) -> Principal | None:
        """The principal of a key that was verified lately and is still good; must not wait: it is on the hot path."""
        ...

    async def verify(self, key: bytes, /) -> Principal:
        """The principal of any key, remembered for `cached`; Unauthenticated if it is unknown, revoked or expired."""
        ...
