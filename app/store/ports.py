"""What the application asks of a store."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.core.errors import NotFound

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(sha256: str) -> str:
    """The digest itself. NotFound for anything else, so that nothing but content can be named."""
    if not _DIGEST.fullmatch(sha256):
        raise NotFound(f"'{sha256}' is not a SHA-256 digest")
    return sha256


class Writer(Protocol):
    """A file being written. Nothing of it can be read before `commit`; `abort` (or a crash) leaves nothing behind."""

    size: int

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far, in hex."""

    async def write(self, chunk: bytes) -> None:
        """Append."""

    async def commit(self) -> str:
        """Make the content readable, durably; its SHA-256 in hex. What is there already stays as it is."""

    async def abort(self) -> None:
        """Forget what was written; harmless after `commit`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file elsewhere that is being read: what its server says of it, and its bytes in chunks of any size."""

    size: int | None  # None: unknown before its end
    etag: str | None
    last_modified: str | None
    chunks: AsyncIterator[bytes]


class Store(Protocol):
    """Content-addressed files."""

    async def writer(self) -> Writer:
        """Start a file."""

    async def exists(self, sha256: str) -> bool:
        """True if the content can be read."""

    async def size(self, sha256: str) -> int:
        """Length in bytes. NotFound otherwise."""

    def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes [start, end) in chunks. NotFound otherwise; Unavailable if the store does not give them."""

    async def fetch(self, sha256: str, target: Path) -> None:
        """Put the content at `target` on this machine, verified by its digest. NotFound, or Corrupt and no file."""

    async def delete(self, sha256: str) -> None:
        """Remove the content; removing what is not there is no error."""

    async def close(self) -> None:
        """Let go of connections and half-written files."""
