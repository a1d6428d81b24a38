"""What the prediction paths need from the rest of the gateway."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the repository: an endpoint, the version that it routes to, its state in this process and why."""

    name: str
    version: str
    state: str  # READY, UNAVAILABLE or LOADING
    reason: str | None


class Repository(Protocol):
    """The endpoints as the model repository extension knows them. A change holds for every gateway."""

    async def index(self) -> Sequence[Listed]:
        """Every endpoint by name, loaded or not."""
        ...

    async def load(self, name: str) -> None:
        """Load an endpoint that was unloaded, or again. NotFound without one; a failure changes nothing."""
        ...

    async def unload(self, name: str) -> None:
        """Free the endpoint's memory; it stays known. NotFound without one; requests under way are finished."""
        ...
