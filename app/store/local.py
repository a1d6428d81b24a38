"""The store in a local folder: `ab/cd/abcd…` by digest, `tmp/` for files being written.

A file is written aside, fsynced, renamed into place, and its folder fsynced: after a crash it is whole or absent.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from app.core.errors import Corrupt, NotFound, Unavailable
from app.store.disk import DISK_RETRY_S, fetching, reading, writing
from app.store.ports import CHUNK_BYTES, check_digest

ABANDONED_S = 86_400.0
HOST = socket.gethostname()
DISK = "the store's disk (AIMASS_STORE_URL, or AIMASS_DATA_DIR without it)"


class LocalWriter:
    """A file being written in `tmp/`."""

    def __init__(self, store: "LocalStore") -> None:
        self.size = 0
        self._store = store
        self._path = store.temporary()
        with writing(DISK):
            self._file: BinaryIO | None = self._path.open("xb")
        self._hash = hashlib.sha256()

    async def write(self, chunk: bytes) -> None:
        """Append; hashing and writing happen off the event loop."""
        await asyncio.to_thread(self._append, chunk)

    def _append(self, chunk: bytes) -> None:
        with self._writing() as file:
            file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far, in hex."""
        return self._hash.hexdigest()

    async def commit(self) -> str:
        """fsync, rename, fsync the folder."""
        return await asyncio.to_thread(self._commit)

    def _commit(self) -> str:
        digest = self.digest
        target = self._store.path(digest)
        with self._writing() as file:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path.chmod(0o444)
            self._path.replace(target)
            _fsync_folder(target.parent)
        self._file = None
        return digest

    async def abort(self) -> None:
        """Close and remove the temporary file, if it is still there."""
        self._discard()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[BinaryIO]:
        """The open file; it is given up when writing fails, for then nobody knows how much of a chunk it holds."""
        if self._file is None:
            raise ValueError("the file is closed")
        try:
            with writing(DISK):
                yield self._file
        except Unavailable:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # closing writes what is left, which a full disk refuses again
                self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)


class LocalStore:
    """Files under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        self._sweep_abandoned()

    def _sweep_abandoned(self) -> None:
        """Remove what killed writers left in `tmp/`: of this machine at once, of others (a shared folder) later."""
        for path in (self._root / "tmp").iterdir():
            host, pid, _ = ["", "", *path.name.rsplit("-", 2)][-3:]
            with contextlib.suppress(FileNotFoundError):  # finished or swept by somebody else meanwhile
                dead = not Path(f"/proc/{pid}").exists() if host == HOST else _age_s(path) > ABANDONED_S
                if dead:
                    path.unlink()

    def temporary(self) -> Path:
        """A new name on the same file system, which tells whose it is."""
        return self._root / "tmp" / f"{HOST}-{os.getpid()}-{secrets.token_hex(8)}"

    def path(self, sha256: str) -> Path:
        """Where the content is kept. NotFound if this is no digest, so that no other path can be named."""
        check_digest(sha256)
        return self._root / sha256[:2] / sha256[2:4] / sha256

    @contextlib.contextmanager
    def _reading(self, sha256: str) -> Iterator[None]:
        """NotFound for missing content, Unavailable when all of it is missing: the folder is not mounted, say."""
        try:
            with reading(DISK, f"the store has no content {sha256}"):
                yield
        except NotFound:
            self._check_there()
            raise

    def _check_there(self) -> None:
        if not (self._root / "tmp").is_dir():  # made when a store is opened
            raise Unavailable(f"{DISK} is not there: {self._root} is not mounted, or empty", retry_after_s=DISK_RETRY_S)

    async def writer(self) -> LocalWriter:
        """Start a file."""
        return LocalWriter(self)

    async def exists(self, sha256: str) -> bool:
        """True if the content is there. Unavailable if none of the store is."""
        there = self.path(sha256).is_file()
        if not there:
            self._check_there()
        return there

    async def size(self, sha256: str) -> int:
        """Length in bytes. NotFound otherwise."""
        with self._reading(sha256):
            return self.path(sha256).stat().st_size

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes [start, end) in chunks. NotFound otherwise; Unavailable if the disk does not give them."""
        left = (end if end is not None else await self.size(sha256)) - start
        with self._reading(sha256), self.path(sha256).open("rb") as file:
            file.seek(start)
            while left > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    async def fetch(self, sha256: str, target: Path) -> None:
        """Copy to `target`, hashing on the way. Whoever is cancelled waits for one chunk, and leaves nothing."""
        stop = threading.Event()
        copying = asyncio.create_task(asyncio.to_thread(self._fetch, sha256, target, stop))
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            stop.set()  # a thread cannot be cancelled, and the process would not end before it
            await asyncio.gather(copying, return_exceptions=True)
            raise

    def _fetch(self, sha256: str, target: Path, stop: threading.Event) -> None:
        digest = hashlib.sha256()
        with self._reading(sha256):
            source = self.path(sha256).open("rb")
        with source, fetching(target) as copy:
            while (chunk := source.read(CHUNK_BYTES)) and not stop.is_set():
                digest.update(chunk)
                copy.write(chunk)
            if digest.hexdigest() != sha256:
                raise Corrupt(f"the stored content {sha256} has changed on disk")

    async def delete(self, sha256: str) -> None:
        """Remove the content."""
        self.path(sha256).unlink(missing_ok=True)

    async def close(self) -> None:
        """Nothing is kept open."""


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
