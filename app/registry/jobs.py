"""Jobs, as anyone may read them; `app.registry.job_ledger` changes them."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, func, select

from app.core.errors import NotFound
from app.core.jobs import (
    DeviceClass,
    Job,
    JobEvent,
    MetricPoint,
    Progress,
)
from app.core.resources import Page
from app.registry.session import ReadSession, WriteSession, now
from app.registry.tables import JobAfterRow, JobEventRow, JobRow, MetricPointRow


def job_of(row: JobRow, after: tuple[str, ...] = ()) -> Job:
    """The core object of a row."""
    return Job(
        id=row.id,
        kind=row.kind,
        state=row.state,  # type: ignore[arg-type]
        spec=row.spec,
        priority=row.priority,
        device=row.device,  # type: ignore[arg-type]
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        progress=Progress(**row.progress),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        worker=row.worker,
        model=row.model,
        error=row.error,
        result=row.result,
        after=after,
    )


class JobReader:
    """What anyone may ask of jobs."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session

    async def get(self, job_id: str) -> Job:
        """The job with what it waits for. NotFound otherwise."""
        found = await self.get_all([job_id])
        if not found:
            raise NotFound(f"there is no job '{job_id}'")
        return found[job_id]

    async def get_all(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Those of these jobs that exist, by id."""
        if not job_ids:
            return {}
        query = select(JobRow).where(JobRow.id.in_(job_ids)).execution_options(populate_existing=True)
        rows = list(await self._session.scalars(query))
        after = await self._after([row.id for row in rows])
        return {row.id: job_of(row, after[row.id]) for row in rows}

    async def page(
        self,
        limit: int,
        cursor: str | None,
        *,
        state: str | None = None,
        kind: str | None = None,
        model: str | None = None,
    ) -> Page[Job]:
        """Newest first; the cursor is the last id of the page before."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit + 1)
        if model is not None:
            query = query.where(JobRow.model == model)
        for column, wanted in ((JobRow.state, state), (JobRow.kind, kind)):
            if wanted is not None:
                # One model's jobs are few, a state's may be millions: as an expression it cannot draw the planner to
                # its own index, which SQLite would choose as readily, having no statistics.
                query = query.where((column if model is None else column.concat("")) == wanted)
        if cursor:
            query = query.where(JobRow.id < cursor)
        rows = list(await self._session.scalars(query))
        after = await self._after([row.id for row in rows[:limit]])
        jobs = tuple(job_of(row, after[row.id]) for row in rows[:limit])
        return Page(jobs, rows[limit - 1].id if len(rows) > limit else None)

    async def _after(self, job_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """What each of these jobs waits for, or has waited for."""
        rows = await self._session.execute(
            select(JobAfterRow.job_id, JobAfterRow.after_id)
            .where(JobAfterRow.job_id.in_(job_ids))
            .order_by(JobAfterRow.after_id)
        )
        found: dict[str, tuple[str, ...]] = dict.fromkeys(job_ids, ())
        for job_id, other in rows:
            found[job_id] += (other,)
        return found

    async def events(self, job_id: str, after_id: int, limit: int = 500) -> list[JobEvent]:
        """Events with a larger id, oldest first."""
        rows = await self._session.scalars(
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.id > after_id)
            .order_by(JobEventRow.id)
            .limit(limit)
        )
        return [JobEvent(row.id, row.type, row.at, row.data) for row in rows]

    async def metrics(self, job_id: str, name: str | None = None) -> list[MetricPoint]:
        """Every point of every curve (or of one), by name and step."""
        query = (
            select(MetricPointRow)
            .where(MetricPointRow.job_id == job_id)
            .order_by(MetricPointRow.name, MetricPointRow.step)
        )
        if name is not None:
            query = query.where(MetricPointRow.name == name)
        return [MetricPoint(row.name, row.step, row.value, row.at) for row in await self._session.scalars(query)]

    async def logs(self, job_id: str, limit: int) -> list[JobEvent]:
        """The last `limit` log lines, oldest first."""
        rows = await self._session.scalars(
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.type == "log")
            .order_by(JobEventRow.id.desc())
            .limit(limit)
        )
        return [JobEvent(row.id, row.type, row.at, row.data) for row in reversed(list(rows))]

    async def next_ready(self, devices: Sequence[DeviceClass]) -> str | None:
        """The due job to run next on these device classes."""
        return await self._session.scalar(
            select(JobRow.id).where(due(), JobRow.device.in_(devices)).order_by(JobRow.priority, JobRow.id).limit(1)
        )

    async def counts(self) -> dict[tuple[str, str], int]:
        """(kind, state) -> number of jobs, for metrics."""
        rows = await self._session.execute(
            select(JobRow.kind, JobRow.state, func.count()).group_by(JobRow.kind, JobRow.state)
        )
        return {(kind, state): count for kind, state, count in rows}


def due() -> ColumnElement[bool]:
    """True for queued jobs that may start now."""
    return and_(JobRow.state == "queued", JobRow.waiting_for == 0, JobRow.not_before <= now())
