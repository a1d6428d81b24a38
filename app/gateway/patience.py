"""Clients that begin a request and do not go on with it, or begin none: their connections are closed, however many.

Nothing is timed on the way of a request. Every few seconds all connections are looked at, and those whose client owes
the server the same thing as at earlier looks, or is idle, for too long, are closed.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

_AT_ONCE = 256  # connections looked at in one turn of the event loop, some 100 µs
_LOOKS = 6  # within the time that a client has


class Connection(Protocol):
    """A connection as this module sees it."""

    @property
    def idle_since(self) -> float | None:
        """On the loop's clock, when the last answer was sent; None if there was none, or something has come since.

        None too of a connection that is being closed.
        """
        ...

    def awaited(self) -> object | None:
        """What the client owes the server, equal for as long as it makes no progress; None if it owes nothing.

        Of a connection that is not idle.
        """
        ...

    def expire(self) -> None:
        """Close it."""
        ...


class Patience:
    """Looks at the connections that `connections` gives.

    A client has `limit_s` seconds for each step of a request, and at least `idle_s`, up to twice that, between two.
    """

    def __init__(self, connections: Callable[[], Collection[Connection]], limit_s: float, idle_s: float) -> None:
        self._connections = connections
        self._limit_s = limit_s
        self._idle_s = idle_s
        self._since: dict[Connection, tuple[object, float]] = {}

    async def run(self) -> None:
        """Look for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._limit_s / _LOOKS, self._idle_s))
            await self.look(loop.time())

    async def look(self, now: float) -> int:
        """Close what has waited too long at `now`, in seconds; how many."""
        closed = 0
        before, self._since = self._since, {}
        for number, connection in enumerate(list(self._connections())):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
            idle_since = connection.idle_since
            if idle_since is not None:
                if now - idle_since >= self._idle_s:
                    connection.expire()
                    closed += 1
                continue
            awaited = connection.awaited()
            if awaited is None:
                continue
            earlier = before.get(connection)
            since = earlier[1] if earlier is not None and earlier[0] == awaited else now
            if now - since < self._limit_s:
                self._since[connection] = awaited, since
            else:
                connection.expire()
                closed += 1
        return closed
