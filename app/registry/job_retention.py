"""Jobs that ended long ago are removed with their history; the record of one that a version names stays with it."""

from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Table, delete, exists, or_, select, tuple_

from app.registry.files import remove_files
from app.registry.session import ReadSession, WriteSession, now
from app.registry.tables import DatasetVersionRow, JobAfterRow, JobEventRow, JobRow, MetricPointRow, ModelVersionRow

ROWS = 5000  # of a job's history that one transaction removes: how long other writers may be kept waiting
_EVENTS, _POINTS = cast("Table", JobEventRow.__table__), cast("Table", MetricPointRow.__table__)


async def ended_jobs(session: ReadSession, older_s: float, limit: int) -> list[str]:
    """Those that ended longer ago than `older_s` and have left something that nobody needs, the oldest first."""
    history = or_(
        exists().where(JobEventRow.job_id == JobRow.id).correlate(JobRow),
        exists().where(MetricPointRow.job_id == JobRow.id).correlate(JobRow),
    )
    query = select(JobRow.id).where(JobRow.finished_at < now() - older_s, or_(~_named(), history))
    return list(await session.scalars(query.order_by(JobRow.finished_at).limit(limit)))


async def forget_job(session: WriteSession, job_id: str, rows: int = ROWS) -> bool:
    """Remove an ended job's events and curves, and its record unless a version names it. False: there is more to do."""
    held = select(JobRow.id).where(JobRow.id == job_id).with_for_update()  # nothing can begin to wait for it now
    if await session.scalar(held) is None:
        return True  # another agent was faster
    for table in (_EVENTS, _POINTS):
        rows -= await _remove_some(session, table, job_id, rows)
        if rows <= 0:
            return False
    if await session.scalar(select(_named()).where(JobRow.id == job_id)):
        return True
    await remove_files(session, job_id)
    await session.execute(delete(JobAfterRow).where(or_(JobAfterRow.job_id == job_id, JobAfterRow.after_id == job_id)))
    await session.execute(delete(JobRow).where(JobRow.id == job_id))
    return True


def _named() -> ColumnElement[bool]:
    """True for a job that made a version which there still is: its record is that version's spec and origin."""
    return or_(
        exists().where(ModelVersionRow.job_id == JobRow.id).correlate(JobRow),
        exists().where(DatasetVersionRow.job_id == JobRow.id).correlate(JobRow),
    )


async def _remove_some(session: WriteSession, table: Table, job_id: str, rows: int) -> int:
    """Remove up to so many rows of the job; how many there were."""
    key = tuple_(*table.primary_key.columns)
    some = select(*table.primary_key.columns).where(table.c.job_id == job_id).limit(rows)
    gone = cast("CursorResult[Any]", await session.execute(delete(table).where(key.in_(some))))
    return gone.rowcount
