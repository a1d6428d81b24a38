"""How much of request bodies a process holds: each of them is bounded, and here all of them together."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.core.errors import Overloaded

# Bodies up to this size are not counted: the server holds as much for any connection that it does not read from.
SMALL_BODY = 64 * 1024
_RETRY_S = 1.0


class Bodies:
    """A budget of bytes, for bodies that are being received or whose request is being answered.

    `setting` is where it comes from, for who is refused.
    """

    def __init__(self, most: int, setting: str = "AIMASS_LIMIT_BODIES_MB") -> None:
        self.most = most
        self._setting = setting
        self.held = 0

    def grow(self, held: int, size: int) -> int:
        """How much is held of a body of `size` bytes of which `held` were; Overloaded if that is too much."""
        if size <= held or size <= SMALL_BODY:
            return held
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
            self.give_back(held)

    def give_back(self, size: int) -> None:
        """`size` bytes are held no longer."""
        self.held -= size
