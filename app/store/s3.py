"""The store in an S3 bucket (or anything that speaks S3): `PREFIX/ab/cd/abcd…` by digest.

The key is the digest, which is known only at the end: an upload is spooled to a local file and sent from there.
S3 shows an object whole or not at all.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from app.core.errors import Corrupt, NotFound, Unavailable
from app.store.ports import CHUNK_BYTES, check_digest

if TYPE_CHECKING:
    from obstore.store import S3Config


class S3Writer:
    """A file being spooled on this machine."""

    def __init__(self, store: "S3Store") -> None:
        self.size = 0
        self._store = store
        # Unnamed on disk: a process that is killed leaves nothing behind. Linux lets it be opened again by descriptor.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by commit or abort
        self._hash = hashlib.sha256()

    async def write(self, chunk: bytes) -> None:
        """Append; hashing and writing happen off the event loop."""
        await asyncio.to_thread(self._append, chunk)

    def _append(self, chunk: bytes) -> None:
        self._file.write(chunk)
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
            await asyncio.to_thread(self._file.seek, 0)
            await self._store.put(digest, self._file)
        self._file.close()
        return digest

    async def abort(self) -> None:
        """Forget the spooled bytes."""
        self._file.close()


class S3Store:
    """Files in a bucket. Credentials come from the environment, as with every AWS tool."""

    def __init__(self, bucket: str, prefix: str = "", *, endpoint: str = "", region: str = "us-east-1") -> None:
        config: S3Config = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
        self._prefix = prefix.strip("/")
        self._bucket = Bucket(
            bucket, region=region, config=config, client_options={"allow_http": endpoint.startswith("http://")}
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
            await obstore.put_async(self._bucket, self._key(sha256), file)  # type: ignore[arg-type]
        except BaseError as error:
            raise Unavailable(f"the store does not answer (AIMASS_STORE_URL): {error}", retry_after_s=2.0) from error

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
            return int((await obstore.head_async(self._bucket, self._key(sha256)))["size"])
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise Unavailable(f"the store does not answer (AIMASS_STORE_URL): {error}", retry_after_s=2.0) from error

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes [start, end) in chunks. NotFound otherwise."""
        end = end if end is not None else await self.size(sha256)
        if end <= start:
            return
        try:
            answer = await obstore.get_async(self._bucket, self._key(sha256), options={"range": (start, end)})
        except FileNotFoundError:
            raise NotFound(f"the store has no content {sha256}") from None
        async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)

    async def fetch(self, sha256: str, target: Path) -> None:
        """Download to `target`, hashing on the way."""
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        chunks = self.read(sha256)
        try:
            with target.open("wb") as copy:
                async for chunk in chunks:
                    digest.update(chunk)
                    copy.write(chunk)
        except NotFound:
            target.unlink(missing_ok=True)
            raise
        if digest.hexdigest() != sha256:
            target.unlink()
            raise Corrupt(f"the stored content {sha256} is not what was put")

    async def delete(self, sha256: str) -> None:
        """Remove the content."""
        try:
            await obstore.delete_async(self._bucket, self._key(sha256))
        except FileNotFoundError:
            return

    async def close(self) -> None:
        """The client keeps nothing that needs closing."""
