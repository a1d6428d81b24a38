"""Turns for messages that are being received: so many at once, and so many of one key."""

import asyncio
from collections import Counter, deque


class Places:
    """Who finds none waits in line with those of the same key; the keys that wait take turns."""

    def __init__(self, most: int, of_key: int) -> None:
        self._most = most
        self._of_key = of_key
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the key whose turn is next comes first
        self.taken: Counter[str] = Counter()  # by key; none is 0

    def enter(self, key: str) -> asyncio.Future[None] | None:
        """Take a place, to be left again; if there is none, what is done once this caller has got one."""
        if key not in self._waiting and self._room(key):
            self.taken[key] += 1
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        return turn

    def leave(self, key: str) -> None:
        """Give the place to whoever is next."""
        self.taken[key] -= 1
        if not self.taken[key]:
            del self.taken[key]
        while (following := next((one for one in self._waiting if self._room(one)), None)) is not None:
            self._call(following)

    def _room(self, key: str) -> bool:
        return self.taken.total() < self._most and self.taken[key] < self._of_key

    def _call(self, key: str) -> None:
        """The first of this key that still waits."""
        line = self._waiting.pop(key)
        while line and (turn := line.popleft()).done():  # who was cancelled does not wait
            continue
        if line:
            self._waiting[key] = line
        if not turn.done():
            self.taken[key] += 1
            turn.set_result(None)
