"""The store in an S3 bucket (or anything that speaks S3): `PREFIX/ab/cd/abcd…` by digest.

The key is the digest, which is known only at the end: an upload is spooled to a local file and sent from there.
S3 shows an object whole or not at all.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from app.core.errors import Corrupt, NotFound, Unavailable
from app.store.disk import fetching, writing
from app.store.ports import CHUNK_BYTES, check_digest

if TYPE_CHECKING:
    from obstore.store import RetryConfig, S3Config

# A request waits meanwhile: obstore's own limit is three minutes.
RETRY: "RetryConfig" = {"retry_timeout": timedelta(seconds=15)}
RETRY_AFTER_S = 5.0
_REASON = 400  # characters of an error that are shown


class S3Writer:
    """A file being spooled on this machine."""

    def __init__(self, store: "S3Store") -> None:
        self.size = 0
        self._store = store
        self._disk = f"{tempfile.gettempdir()}, where uploads wait (TMPDIR),"
        # Unnamed on disk: a process that is killed leaves nothing behind. Linux lets it be opened again by descriptor.
        with writing(self._disk):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by commit or abort
        self._hash = hashlib.sha256()

    async def write(self, chunk: bytes) -> None:
        """Append; hashing and writing happen off the event loop."""
        await asyncio.to_thread(self._append, chunk)

    def _append(self, chunk: bytes) -> None:
        try:
            with writing(self._disk):
                self._file.write(chunk)
        except Unavailable:
            self._close()  # nobody knows how much of the chunk it holds
            raise
        self._hash.update(chunk)
        self.size += len(chunk)

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far, in hex."""
        return self._hash.hexdigest()

    async def commit(self) -> str:
        """Send the content, unless the bucket has it."""
        digest = self.digest
        if not await self._store.exists(digest):
            with writing(self._disk):
                await asyncio.to_thread(self._file.seek, 0)
            await self._store.put(digest, self._file)
        self._file.close()
        return digest

    async def abort(self) -> None:
        """Forget the spooled bytes."""
        self._close()

    def _close(self) -> None:
        with suppress(OSError):  # closing writes what is left, which a full disk refuses again
            self._file.close()


class S3Store:
    """Files in a bucket. Credentials come from the environment, as with every AWS tool."""

    def __init__(self, bucket: str, prefix: str = "", *, endpoint: str = "", region: str = "us-east-1") -> None:
        config: S3Config = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
        self._prefix = prefix.strip("/")
        self._bucket = Bucket(
            bucket,
            region=region,
            config=config,
            client_options={"allow_http": endpoint.startswith("http://")},
            retry_config=RETRY,
        )

    def _key(self, sha256: str) -> str:
        check_digest(sha256)
        return "/".join(part for part in (self._prefix, sha256[:2], sha256[2:4], sha256) if part)

    async def writer(self) -> S3Writer:
        """Start a file."""
        return S3Writer(self)

    async def put(self, sha256: str, file: object) -> None:
        """Send an open file, in parts when it is large. Unavailable when the bucket does not take it."""
        try:
            with _asking():
                await obstore.put_async(self._bucket, self._key(sha256), file)  # type: ignore[arg-type]
        except FileNotFoundError:
            raise Unavailable("there is no bucket as in AIMASS_STORE_URL", retry_after_s=RETRY_AFTER_S) from None

    async def exists(self, sha256: str) -> bool:
        """True if the content is there."""
        return await self._head(sha256) is not None

    async def size(self, sha256: str) -> int:
        """Length in bytes. NotFound otherwise."""
        size = await self._head(sha256)
        if size is None:
            raise NotFound(f"the store has no content {sha256}")
        return size

    async def _head(self, sha256: str) -> int | None:
        try:
            with _asking():
                return int((await obstore.head_async(self._bucket, self._key(sha256)))["size"])
        except FileNotFoundError:
            return None

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes [start, end) in chunks. NotFound otherwise."""
        end = end if end is not None else await self.size(sha256)
        if end <= start:
            return
        with _asking():
            try:
                answer = await obstore.get_async(self._bucket, self._key(sha256), options={"range": (start, end)})
            except FileNotFoundError:
                raise NotFound(f"the store has no content {sha256}") from None
            async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def fetch(self, sha256: str, target: Path) -> None:
        """Download to `target`, hashing on the way."""
        digest = hashlib.sha256()
        chunks = self.read(sha256)
        with fetching(target) as copy:
            async for chunk in chunks:
                digest.update(chunk)
                copy.write(chunk)
            if digest.hexdigest() != sha256:
                raise Corrupt(f"the stored content {sha256} is not what was put")

    async def delete(self, sha256: str) -> None:
        """Remove the content."""
        with _asking(), suppress(FileNotFoundError):
            await obstore.delete_async(self._bucket, self._key(sha256))

    async def close(self) -> None:
        """The client keeps nothing that needs closing."""


@contextmanager
def _asking() -> Iterator[None]:
    """Unavailable for whatever the bucket's server, or the way to it, does not do; missing content passes through."""
    try:
        yield
    except BaseError as error:
        reason = str(error).partition("\n")[0][:_REASON]  # pages of debug text follow
        raise Unavailable(
            f"the store does not answer (AIMASS_STORE_URL, AIMASS_STORE_S3_ENDPOINT): {reason}",
            retry_after_s=RETRY_AFTER_S,
        ) from error
