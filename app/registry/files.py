"""Files and the blobs behind them, counted in the transaction that adds or removes a file."""

from collections.abc import Sequence

from sqlalchemy import case, delete, func, select, update

from app.core.resources import StoredFile
from app.registry.session import ReadSession, WriteSession, now, upsert
from app.registry.tables import BlobRow, FileRow


async def files_of(session: ReadSession | WriteSession, owner: str) -> tuple[StoredFile, ...]:
    """The files of a data set version, model version or checkpoint, by path."""
    rows = await session.scalars(select(FileRow).where(FileRow.owner == owner).order_by(FileRow.path))
    return tuple(StoredFile(row.path, row.sha256, row.bytes) for row in rows)


async def add_files(session: WriteSession, owner: str, files: Sequence[StoredFile]) -> None:
    """Give `owner` these files; a path that it has already now means the new content."""
    if not files:
        return
    await remove_files(session, owner, [file.path for file in files])
    for file in sorted(files, key=lambda f: f.sha256):  # one order for all, so that two transactions cannot deadlock
        await session.execute(
            upsert(session, BlobRow)
            .values(sha256=file.sha256, bytes=file.bytes, refs=1, unused_since=None)
            .on_conflict_do_update(index_elements=["sha256"], set_={"refs": BlobRow.refs + 1, "unused_since": None})
        )
        session.add(FileRow(owner=owner, path=file.path, sha256=file.sha256, bytes=file.bytes))
    await session.flush()


async def remove_files(session: WriteSession, owner: str, paths: Sequence[str] | None = None) -> None:
    """Take these files (or all) from `owner`. A blob without files waits to be swept."""
    mine = select(FileRow.sha256, func.count().label("n")).where(FileRow.owner == owner)
    gone = delete(FileRow).where(FileRow.owner == owner)
    if paths is not None:
        mine, gone = mine.where(FileRow.path.in_(paths)), gone.where(FileRow.path.in_(paths))
    for sha256, count in list(await session.execute(mine.group_by(FileRow.sha256).order_by(FileRow.sha256))):
        left = BlobRow.refs - count
        await session.execute(
            update(BlobRow)
            .where(BlobRow.sha256 == sha256)
            .values(refs=left, unused_since=case((left <= 0, now()), else_=None))
        )
    await session.execute(gone)


async def unused_blobs(session: WriteSession, grace_s: float, limit: int = 100) -> list[str]:
    """Digests that no file has named for `grace_s`, locked until the transaction ends."""
    query = select(BlobRow.sha256).where(BlobRow.refs <= 0, BlobRow.unused_since < now() - grace_s).limit(limit)
    return list(await session.scalars(query.with_for_update(skip_locked=True)))


async def forget_blob(session: WriteSession, sha256: str) -> None:
    """Delete the row of a blob whose content is being removed in this transaction."""
    await session.execute(delete(BlobRow).where(BlobRow.sha256 == sha256, BlobRow.refs <= 0))


async def expect_blob(session: WriteSession, sha256: str, size: int) -> None:
    """Note a content before it is written, so that it is swept should nothing come to name it."""
    await session.execute(
        upsert(session, BlobRow)
        .values(sha256=sha256, bytes=size, refs=0, unused_since=now())
        .on_conflict_do_update(
            index_elements=["sha256"], set_={"unused_since": case((BlobRow.refs <= 0, now()), else_=None)}
        )
    )
