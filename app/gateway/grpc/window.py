"""The requests of one stream that are under way: so many at most, and so many bytes."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Window(Generic[Answer]):
    """Answers in the order in which their requests came; who adds one waits until there is room for it."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._tasks: asyncio.Queue[tuple[asyncio.Task[Answer], int] | None] = asyncio.Queue(most)
        self._left = asyncio.Event()

    async def add(self, size: int, begin: Callable[[], asyncio.Task[Answer]]) -> None:
        """Begin a request of `size` bytes once it fits; one that is larger than all that may be goes alone."""
        while self._tasks.full() or (self._bytes and self._bytes + size > self._most_bytes):
            self._left.clear()
            await self._left.wait()
        self._bytes += size
        self._tasks.put_nowait((begin(), size))  # in the queue at once, where `cancel` finds it

    async def end(self) -> None:
        """No more requests come."""
        await self._tasks.put(None)

    async def first(self) -> tuple[asyncio.Task[Answer], int] | None:
        """The oldest request and its size, which `left` is told once its answer is sent; None after the last."""
        request = await self._tasks.get()
        self._left.set()
        return request

    def left(self, size: int) -> None:
        """A request of so many bytes was answered."""
        self._bytes -= size
        self._left.set()

    def cancel(self) -> None:
        """Nobody waits for the answers."""
        while not self._tasks.empty():
            if request := self._tasks.get_nowait():
                request[0].cancel()
