"""The requests of one stream that are under way: so many at most, and so many bytes."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from app.gateway.predict.bodies import SMALL_BODY, Bodies

Answer = TypeVar("Answer")


class Place:
    """What one request takes: `size` bytes, its own and then its answer's, of which `held` count among the bodies."""

    __slots__ = ("held", "size")

    def __init__(self, size: int, held: int) -> None:
        self.size = size
        self.held = held


class Window(Generic[Answer]):
    """Answers in the order in which their requests came; who adds one waits until there is room for it.

    From when a request has come until its answer was sent it is counted among the `bodies` of the process.
    """

    def __init__(self, most: int, most_bytes: int, bodies: Bodies) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bodies = bodies
        self._bytes = 0
        self._places: set[Place] = set()
        self._begun: asyncio.Queue[tuple[asyncio.Future[Answer], Place] | None] = asyncio.Queue()
        self._left = asyncio.Event()

    def enter(self, size: int) -> Place:
        """A place for a request of `size` bytes that has come; Overloaded if the process holds too many."""
        place = Place(size, self._bodies.grow(0, size))
        self._places.add(place)
        return place

    async def add(self, place: Place, begin: Callable[[], asyncio.Future[Answer]]) -> None:
        """Begin a request once it fits; one that is larger than all that may be goes alone."""
        while self._begun.qsize() >= self._most or (self._bytes and self._bytes + place.size > self._most_bytes):
            self._left.clear()
            await self._left.wait()
        self._bytes += place.size
        self._begun.put_nowait((begin(), place))  # in the queue at once, where `cancel` finds it

    def end(self) -> None:
        """No more requests come."""
        self._begun.put_nowait(None)

    async def first(self) -> tuple[asyncio.Future[Answer], Place] | None:
        """The oldest request, whose place `left` is told once its answer is sent; None after the last."""
        request = await self._begun.get()
        self._left.set()
        return request

    def answered(self, place: Place, size: int) -> None:
        """The request has gone, and there is an answer of `size` bytes: it counts, and is not refused any more."""
        if place not in self._places:  # nobody waits for it
            return
        self._bytes += size - place.size
        self._count(place, size if size > SMALL_BODY else 0)
        place.size = size
        self._left.set()

    def left(self, place: Place) -> None:
        """The answer was sent."""
        self._bytes -= place.size
        self._count(place, 0)
        self._places.discard(place)
        self._left.set()

    def cancel(self) -> None:
        """Nobody waits for the answers."""
        while not self._begun.empty():
            if request := self._begun.get_nowait():
                request[0].cancel()
        for place in self._places:
            self._count(place, 0)
        self._places.clear()

    def _count(self, place: Place, held: int) -> None:
        self._bodies.give_back(place.held - held)
        place.held = held
