"""Bring the file of a data set that was named by its address into the store, before its ingest job looks at it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from app.core.errors import InvalidData, NotFound, PayloadTooLarge, TimedOut, Unavailable
from app.core.jobs import Lease, Progress
from app.core.resources import StoredFile
from app.registry.datasets import DatasetReader, DatasetWriter
from app.registry.job_ledger import JobLedger
from app.services.keep_files import InputAway, commit
from app.services.platform import Platform
from app.services.upload_dataset import ORIGINAL
from app.store.allowed import parse_uri
from app.store.ports import CHUNK_BYTES, Source, Writer
from app.store.source import open_source


async def fetch_source(platform: Platform, lease: Lease) -> None:
    """Fetch what the lease's data set still lacks; a file that an earlier attempt has brought stays as it is.

    InvalidData, PayloadTooLarge and TimedOut end the job; InputAway, of the source's server, and Unavailable, of our
    own registry or store, let it be tried again. Nothing half-read stays.
    """
    if lease.kind != "ingest":
        return
    async with platform.database.read() as session:
        uri = await DatasetReader(session).to_fetch(lease.job_id)
    if uri is None:
        return
    async with platform.database.write() as session:
        await JobLedger(session).progress(lease.job_id, lease.attempt, Progress(0.0, "fetching the source"), [], [])
    timeout_s = platform.settings.sources.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            original, source = await _copy(platform, uri)
    except TimeoutError:
        raise TimedOut(f"uri: fetching took longer than {timeout_s:g} s (AIMASS_SOURCES_TIMEOUT_S)") from None
    async with platform.database.write() as session:
        if await JobLedger(session).holds(lease.job_id, lease.attempt):
            try:
                await DatasetWriter(session).fetched(lease.job_id, original, source)
            except NotFound as error:
                raise InvalidData(error.detail) from None


async def _copy(platform: Platform, uri: str) -> tuple[StoredFile, dict[str, Any]]:
    """The file in the store, and what is kept of its origin."""
    limit_mb = platform.settings.gateway.max_upload_mb
    writer = await platform.store.writer()
    try:
        async with AsyncExitStack() as stack:
            with _theirs():
                source = await stack.enter_async_context(open_source(platform.settings.sources, uri))
            await _pump(source, writer, limit_mb)
        if not writer.size:
            raise InvalidData.at("uri", msg="the file is empty; correct the address")
        origin = {
            "uri": parse_uri(uri).shown,
            "etag": source.etag,
            "last_modified": source.last_modified,
            "fetched_at": time.time(),
        }
        return await commit(platform, writer, ORIGINAL), origin
    finally:
        await writer.abort()


@contextmanager
def _theirs() -> Iterator[None]:
    """Tell a failure of the source's server from one of our own."""
    try:
        yield
    except Unavailable as error:
        raise InputAway(error.detail, errors=error.errors, retry_after_s=error.retry_after_s) from error


async def _chunks(source: Source) -> AsyncIterator[bytes]:
    with _theirs():
        async for chunk in source.chunks:
            yield chunk


async def _pump(source: Source, writer: Writer, limit_mb: int) -> None:
    """Write the source as it comes. PayloadTooLarge as soon as it is, or says it is, larger than the limit."""
    gathered = bytearray()

    def check(size: int) -> None:
        if size > limit_mb << 20:
            raise PayloadTooLarge(f"uri: the file is larger than {limit_mb} MiB (AIMASS_GATEWAY_MAX_UPLOAD_MB)")

    check(source.size or 0)
    async for chunk in _chunks(source):
        gathered += chunk
        check(writer.size + len(gathered))
        if len(gathered) >= CHUNK_BYTES:
            await writer.write(bytes(gathered))
            gathered.clear()
    await writer.write(bytes(gathered))
