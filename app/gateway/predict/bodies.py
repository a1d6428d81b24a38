"""How much of request bodies a process holds: each of them is bounded, and here all of them together."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.errors import Overloaded
from app.serving.process_memory import trim

# Bodies up to this size are not counted: the server holds as much for any connection that it does not read from.
SMALL_BODY = 64 * 1024
_RETRY_S = 1.0
_QUIET_S = 1.0


class Bodies:
    """A budget of bytes, for bodies that are being received or whose request is being answered.

    Threads count what decoding them takes, too. `setting` is where the budget comes from, for who is refused.
    """

    def __init__(self, most: int, setting: str = "AIMASS_LIMIT_BODIES_MB") -> None:
        self.most = most
        self._setting = setting
        self.held = 0
        self._lock = threading.Lock()
        self._trimming: asyncio.TimerHandle | None = None

    def grow(self, held: int, size: int) -> int:
        """How much is held of a body of `size` bytes of which `held` were; Overloaded if that is too much."""
        if size <= held or size <= SMALL_BODY:
            return held
        with self._lock:
            self.check(size, held)
            self.held += size - held
        return size

    def check(self, size: int, held: int = 0) -> None:
        """Overloaded where `grow` would be; nothing is held, since what is announced may never come."""
        if size > SMALL_BODY and self.held + size - held > self.most:
            raise Overloaded(
                f"{self.held >> 20} MiB of request bodies are held already, with this one they would be more than "
                f"{self.most >> 20} MiB ({self._setting})",
                retry_after_s=_RETRY_S,
            )

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold a body that is there already; Overloaded where `grow` would be."""
        held = self.grow(0, size)
        try:
            yield
        finally:
            if held:
                self.give_back(held)

    def take(self, size: int, own: float) -> None:
        """Hold `size` bytes for the decoding of a request that holds `own` already.

        Overloaded for want of room, but for a request that holds all there is: it would never find more.
        """
        with self._lock:
            if self.held > own:
                self.check(size)
            self.held += size

    def give_back(self, size: int) -> None:
        """`size` bytes are held no longer."""
        with self._lock:
            self.held -= size

    def trim_later(self) -> None:
        """Give free memory back to the system once nothing is held, after something large; on the event loop."""
        if self._trimming is None:
            self._trimming = asyncio.get_running_loop().call_later(_QUIET_S, self._trim)

    def _trim(self) -> None:
        loop = asyncio.get_running_loop()
        if self.held:  # more would be needed at once
            self._trimming = loop.call_later(_QUIET_S, self._trim)
            return
        self._trimming = None
        loop.run_in_executor(None, trim)
