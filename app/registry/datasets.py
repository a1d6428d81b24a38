"""Data sets and their versions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select, update

from app.core.errors import Conflict, NotFound
from app.core.ids import new_id
from app.core.resources import Dataset, DatasetVersion, Page, StoredFile
from app.registry.files import add_files, files_of, remove_files
from app.registry.numbering import next_version
from app.registry.session import ReadSession, WriteSession, now
from app.registry.tables import DatasetRow, DatasetVersionRow, JobRow, ModelRow, ModelVersionRow


def _version(name: str, row: DatasetVersionRow, files: tuple[StoredFile, ...] = ()) -> DatasetVersion:
    return DatasetVersion(
        id=row.id,
        name=name,
        version=row.version,
        kind=row.kind,
        state=row.state,  # type: ignore[arg-type]
        filename=row.filename,
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
        rows=row.rows,
        columns=tuple(row.columns),
        warnings=tuple(row.warnings),
        rejected=row.rejected,
        error=row.error,
        job_id=row.job_id,
        files=files,
        source=row.source,
    )


# Of the versions that are left; `DatasetRow.latest` counts those that were ever made.
_NEWEST = (
    select(func.max(DatasetVersionRow.version))
    .where(DatasetVersionRow.dataset_id == DatasetRow.id)
    .correlate(DatasetRow)
    .scalar_subquery()
)


class DatasetReader:
    """What anyone may ask of data sets."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session

    async def page(self, limit: int, cursor: str | None) -> Page[Dataset]:
        """Those that have a version, by name."""
        query = select(DatasetRow.name, _NEWEST, DatasetRow.created_at).where(_NEWEST.is_not(None))
        if cursor:
            query = query.where(DatasetRow.name > cursor)
        rows = list(await self._session.execute(query.order_by(DatasetRow.name).limit(limit + 1)))
        items = tuple(Dataset(name, newest, created_at) for name, newest, created_at in rows[:limit])
        return Page(items, items[-1].name if len(rows) > limit else None)

    async def get(self, name: str) -> Dataset:
        """The data set, if it has a version. NotFound otherwise."""
        query = select(_NEWEST, DatasetRow.created_at).where(DatasetRow.name == name, _NEWEST.is_not(None))
        row = (await self._session.execute(query)).one_or_none()
        if row is None:
            raise NotFound(f"there is no data set '{name}'")
        return Dataset(name, row[0], row[1])

    async def newest(self, names: Sequence[str]) -> dict[str, DatasetVersion]:
        """The newest version of each of these data sets, without its files."""
        rows = await self._session.execute(
            select(DatasetRow.name, DatasetVersionRow)
            .join(DatasetRow)
            .where(DatasetRow.name.in_(names), DatasetVersionRow.version == _NEWEST)
        )
        return {name: _version(name, row) for name, row in rows}

    async def versions(self, name: str, limit: int, cursor: str | None) -> Page[DatasetVersion]:
        """Newest first; the cursor is the last version number of the page before."""
        await self.get(name)
        query = (
            select(DatasetVersionRow)
            .join(DatasetRow)
            .where(DatasetRow.name == name)
            .order_by(DatasetVersionRow.version.desc())
            .limit(limit + 1)
        )
        if cursor:
            query = query.where(DatasetVersionRow.version < int(cursor))
        rows = list(await self._session.scalars(query))
        return Page(
            tuple(_version(name, row) for row in rows[:limit]),
            str(rows[limit - 1].version) if len(rows) > limit else None,
        )

    async def version(self, name: str, version: int, *, files: bool = True) -> DatasetVersion:
        """One version, with its files if they are wanted. NotFound otherwise."""
        row = await self._session.scalar(
            select(DatasetVersionRow)
            .join(DatasetRow)
            .where(DatasetRow.name == name, DatasetVersionRow.version == version)
            .execution_options(populate_existing=True)
        )
        if row is None:
            raise NotFound(f"there is no data set '{name}@{version}'")
        return _version(name, row, await files_of(self._session, row.id) if files else ())

    async def to_fetch(self, job_id: str) -> str | None:
        """The address that this ingest job has to fetch its file from; None if it has its file."""
        query = select(DatasetVersionRow.fetch_uri).where(DatasetVersionRow.job_id == job_id)
        found: str | None = await self._session.scalar(query)
        return found


class DatasetWriter(DatasetReader):
    """Changes of data sets, within the caller's transaction."""

    def __init__(self, session: WriteSession) -> None:
        super().__init__(session)
        self._write = session

    async def create(self, name: str, kind: str, original: StoredFile, filename: str) -> DatasetVersion:
        """The next version of `name`, being ingested. `original.path` is where the upload is kept in the version."""
        row = await self._add(name, kind=kind, filename=filename, bytes=original.bytes, sha256=original.sha256)
        await add_files(self._write, row.id, [original])
        return _version(name, row, (original,))

    async def create_from(self, name: str, kind: str, uri: str, shown: str, filename: str) -> DatasetVersion:
        """The next version of `name`, whose file is yet to be fetched from `uri`; records have `shown` for it."""
        source = {"uri": shown, "etag": None, "last_modified": None, "fetched_at": None}
        row = await self._add(name, kind=kind, filename=filename, bytes=0, sha256="", source=source, fetch_uri=uri)
        return _version(name, row)

    async def fetched(self, job_id: str, original: StoredFile, source: dict[str, Any]) -> None:
        """The file that the job was to fetch is in the store. NotFound if the version was deleted meanwhile."""
        version_id = await self._write.scalar(
            update(DatasetVersionRow)
            .where(DatasetVersionRow.job_id == job_id)
            .values(bytes=original.bytes, sha256=original.sha256, source=source, fetch_uri=None)
            .returning(DatasetVersionRow.id)
        )
        if version_id is None:
            raise NotFound("the data set version was deleted while it was fetched")
        await add_files(self._write, version_id, [original])

    async def _add(self, name: str, **values: Any) -> DatasetVersionRow:  # noqa: ANN401 - column values
        dataset_id, number = await next_version(self._write, DatasetRow, name)
        row = DatasetVersionRow(
            id=new_id(),
            dataset_id=dataset_id,
            version=number,
            state="ingesting",
            rows=None,
            columns=[],
            warnings=[],
            rejected={"count": 0, "first": []},
            error=None,
            created_at=now(),
            **values,
        )
        self._write.add(row)
        await self._write.flush()
        await self._write.refresh(row)
        return row

    async def attach_job(self, version_id: str, job_id: str) -> None:
        """Note which job ingests the version."""
        await self._write.execute(
            update(DatasetVersionRow).where(DatasetVersionRow.id == version_id).values(job_id=job_id)
        )

    async def ready(self, job_id: str, result: dict[str, Any], files: list[StoredFile]) -> None:
        """The ingest job has succeeded: its result and derived files become part of the version."""
        version_id = await self._write.scalar(
            update(DatasetVersionRow)
            .where(DatasetVersionRow.job_id == job_id)
            .values(
                state="ready",
                kind=result["kind"],
                rows=result["rows"],
                columns=result["columns"],
                warnings=result["warnings"],
                rejected={"count": result["rejected_count"], "first": result["rejected_first"]},
                error=None,
            )
            .returning(DatasetVersionRow.id)
        )
        if version_id is not None:  # else: deleted while it was being ingested
            await add_files(self._write, version_id, files)

    async def delete(self, name: str, version: int, *, detach: bool) -> None:
        """Remove a version. Conflict while a model version was trained on it, unless `detach`."""
        found = await self.version(name, version)
        users = list(
            await self._write.execute(
                select(ModelRow.name, ModelVersionRow.version)
                .join(ModelRow)
                .where(ModelVersionRow.dataset_version_id == found.id)
                .limit(5)
            )
        )
        if users and not detach:
            names = ", ".join(f"{model}@{number}" for model, number in users)
            raise Conflict(f"'{name}@{version}' trained {names}; add ?detach=true to delete it all the same")
        waiting = await self._write.scalar(
            select(JobRow.id)
            .where(JobRow.state.in_(("queued", "running")), JobRow.kind != "ingest")
            .where(JobRow.spec["dataset"].as_string() == f"{name}@{version}")
            .limit(1)
        )
        if waiting is not None and not detach:
            raise Conflict(
                f"job '{waiting}' is to use '{name}@{version}'; cancel it first, or add ?detach=true and let it fail"
            )
        await self._write.execute(
            update(ModelVersionRow)
            .where(ModelVersionRow.dataset_version_id == found.id)
            .values(dataset_version_id=None)
        )
        await remove_files(self._write, found.id)
        await self._write.execute(delete(DatasetVersionRow).where(DatasetVersionRow.id == found.id))
