"""Ask each dependency whether it can do its work now; AimassError says what is wrong."""

from collections.abc import Awaitable, Callable

from app.registry.keys import KeyReader
from app.services.platform import Platform

NO_CONTENT = "0" * 64


async def check_registry(platform: Platform) -> None:
    """A query of a real table, so that a missing migration is seen too."""
    async with platform.database.read() as session:
        await KeyReader(session).count()


async def check_redis(platform: Platform) -> None:
    """A round trip."""
    await platform.wake.ping()


async def check_store(platform: Platform) -> None:
    """A look-up."""
    await platform.store.exists(NO_CONTENT)


CHECKS: dict[str, Callable[[Platform], Awaitable[None]]] = {
    "registry": check_registry,
    "redis": check_redis,
    "store": check_store,
}
