"""Put local files into the store, and version files onto this machine."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.core.errors import Corrupt, NotFound, Unavailable
from app.core.resources import StoredFile
from app.registry.files import expect_blob
from app.services.platform import Platform
from app.store.ports import CHUNK_BYTES, Writer

PARTIAL = ".part"  # files that a job is still writing
_RETRY_S = 30.0  # somebody has to bring the store's files back first


class InputAway(Unavailable):
    """What one job or endpoint needs is not there now; the platform itself is well, and others may go on."""


@contextmanager
def stored(what: str) -> Iterator[None]:
    """InputAway rather than NotFound: the registry knows `what`, so it is the store that is not as it should be."""
    try:
        yield
    except NotFound as error:
        raise InputAway(
            f"the store does not have {what} (AIMASS_STORE_URL): {error.detail}", retry_after_s=_RETRY_S
        ) from None


async def commit(platform: Platform, writer: Writer, path: str) -> StoredFile:
    """Make a written file readable as `path`. It is noted first, so that it is swept if nothing comes to name it."""
    async with platform.database.write() as session:
        await expect_blob(session, writer.digest, writer.size)
    return StoredFile(path, await writer.commit(), writer.size)


async def keep_file(platform: Platform, source: Path, path: str) -> StoredFile:
    """Copy one local file into the store."""
    writer = await platform.store.writer()
    try:
        file = await asyncio.to_thread(source.open, "rb")
        with file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await writer.write(chunk)
        return await commit(platform, writer, path)
    finally:
        await writer.abort()


Seen = tuple[int, int, int]  # what changes when a file does: its inode, its size and when it was written
Known = dict[tuple[str, Seen], StoredFile]


async def keep_folder(platform: Platform, folder: Path) -> list[StoredFile]:
    """Copy every regular file under `folder`; paths are relative to it. Links are not followed."""
    return list((await keep_changed(platform, folder, {})).values())


async def keep_changed(platform: Platform, folder: Path, known: Known) -> Known:
    """As `keep_folder`, but for files that are `known` and that something names: those are not copied again."""
    sources = await asyncio.to_thread(
        lambda: sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != PARTIAL)
    )
    kept: Known = {}
    for source in sources:
        path, state = source.relative_to(folder).as_posix(), source.stat()
        key = path, (state.st_ino, state.st_size, state.st_mtime_ns)
        kept[key] = known.get(key) or await keep_file(platform, source, path)
    return kept


async def lay_out(platform: Platform, files: Sequence[StoredFile] | Mapping[str, str], folder: Path) -> None:
    """Fetch files to `folder/path`, each verified against its digest. Corrupt, with the file's name, otherwise."""
    pairs = files.items() if isinstance(files, Mapping) else [(file.path, file.sha256) for file in files]
    for path, sha256 in pairs:
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"'{path}' leaves its folder")
        try:
            await platform.store.fetch(sha256, target)
        except Corrupt as error:
            raise Corrupt(f"{path}: {error.detail}") from None
