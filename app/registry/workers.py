"""Worker agents and when they were last seen."""

from sqlalchemy import delete, select, update

from app.core.jobs import WorkerInfo
from app.registry.session import ReadSession, WriteSession, now
from app.registry.tables import WorkerRow


async def register(session: WriteSession, worker_id: str, host: str, pid: int, device: str) -> None:
    """An agent has started."""
    await session.merge(
        WorkerRow(id=worker_id, host=host, pid=pid, device=device, job_id=None, started_at=now(), seen_at=now())
    )


async def seen(session: WriteSession, worker_id: str, job_id: str | None) -> None:
    """An agent is alive and runs this job, if any."""
    await session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(seen_at=now(), job_id=job_id))


async def unregister(session: WriteSession, worker_id: str) -> None:
    """An agent has stopped."""
    await session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


async def live(session: ReadSession | WriteSession, within_s: float) -> list[WorkerInfo]:
    """Agents seen within `within_s`, by id."""
    rows = await session.scalars(select(WorkerRow).where(WorkerRow.seen_at > now() - within_s).order_by(WorkerRow.id))
    return [WorkerInfo(row.id, row.host, row.pid, row.device, row.started_at, row.seen_at, row.job_id) for row in rows]


async def forget_dead(session: WriteSession, silent_s: float) -> None:
    """Drop agents that have been silent for long."""
    await session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now() - silent_s))
