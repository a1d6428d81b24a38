"""The queue's ledger: changes of jobs. Every write for a running job is fenced by `attempt`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from sqlalchemy import ColumnElement, Table, and_, func, insert, or_, select, update

from app.core.errors import Crashed, InvalidInput, InvalidSpec, NotFound
from app.core.ids import new_id
from app.core.jobs import (
    TERMINAL,
    DeviceClass,
    HeartbeatAnswer,
    Job,
    JobFailure,
    Lease,
    MetricPoint,
    NewJob,
    Progress,
    Ready,
    doubled,
)
from app.registry.files import remove_files
from app.registry.jobs import JobReader, due
from app.registry.session import WriteSession, now, upsert
from app.registry.tables import DatasetVersionRow, FileRow, JobAfterRow, JobEventRow, JobRow, MetricPointRow

_NEW_JOB = ("kind", "spec", "priority", "device", "model", "timeout_s", "memory_mb", "max_attempts")
# Built once, on the tables below the ORM: jobs that are queued together cost two statements and little Python each.
_JOBS = cast("Table", JobRow.__table__)
_ENQUEUE = (
    insert(_JOBS)
    .values(state="queued", attempt=0, cancel_requested=False, created_at=now(), not_before=now())
    .returning(JobRow.id, JobRow.created_at)
)
_AFTER = insert(cast("Table", JobAfterRow.__table__))
_EVENTS, _POINTS = cast("Table", JobEventRow.__table__), cast("Table", MetricPointRow.__table__)
_EVENT = insert(_EVENTS).values(at=now())


class JobLedger(JobReader):
    """Changes of jobs, within the caller's transaction."""

    def __init__(self, session: WriteSession) -> None:
        super().__init__(session)
        self._write = session

    async def enqueue(self, job: NewJob) -> Job:
        """Add a job. InvalidSpec when one named in `after` does not exist or ended without success."""
        [made] = await self.enqueue_all([job])
        if isinstance(made, InvalidInput):
            raise made
        return made

    async def enqueue_all(self, jobs: Sequence[NewJob]) -> list[Job | InvalidInput]:
        """`enqueue` of many in a few statements; a refused job leaves no trace and hinders no other."""
        states = await self._states({other for job in jobs for other in job.after})
        refused = [_refusal(job, states) for job in jobs]
        ids = [new_id() for _ in jobs]
        taken = [(i, job) for i, job, no in zip(ids, jobs, refused, strict=True) if no is None]
        created = await self._insert(taken, states)
        return [no or _new(i, job, created[i]) for i, job, no in zip(ids, jobs, refused, strict=True)]

    async def _states(self, job_ids: Collection[str]) -> dict[str, str]:
        if not job_ids:
            return {}
        # Locked, so that none of them can finish unseen between this look and the insert; in order, so that two
        # transactions that look at the same jobs wait for each other one way only.
        rows = await self._session.execute(
            select(JobRow.id, JobRow.state).where(JobRow.id.in_(job_ids)).order_by(JobRow.id).with_for_update()
        )
        return {job_id: state for job_id, state in rows}  # noqa: C416 - rows are not pairs to the type checker

    async def _insert(self, jobs: Sequence[tuple[str, NewJob]], states: Mapping[str, str]) -> dict[str, float]:
        """When each was created, by the database's clock."""
        if not jobs:
            return {}
        progress = asdict(Progress())
        rows = [
            {name: getattr(job, name) for name in _NEW_JOB}
            | {"id": job_id, "progress": progress, "waiting_for": _waiting_for(job, states)}
            for job_id, job in jobs
        ]
        created = {job_id: at for job_id, at in await self._session.execute(_ENQUEUE, rows)}  # noqa: C416 - as above
        waits = [{"job_id": job_id, "after_id": other} for job_id, job in jobs for other in dict.fromkeys(job.after)]
        if waits:
            await self._session.execute(_AFTER, waits)
        queued = {"state": "queued"}
        await self._events([{"job_id": job_id, "type": "state", "data": queued} for job_id, _ in jobs])
        return created

    async def claim(self, job_id: str, worker: str, lease_s: float) -> Lease | None:
        """Queued and due → running with the next attempt."""
        row = await self._session.scalar(
            update(JobRow)
            .where(JobRow.id == job_id, due())
            .values(
                state="running",
                attempt=JobRow.attempt + 1,
                lease_until=now() + lease_s,
                worker=worker,
                started_at=func.coalesce(JobRow.started_at, now()),
            )
            .returning(JobRow)
        )
        if row is None:
            return None
        await self._event(job_id, "state", {"state": "running", "attempt": row.attempt, "worker": worker})
        files = await self._session.scalars(select(FileRow).where(FileRow.owner == job_id))
        checkpoint = {file.path: file.sha256 for file in files}
        return Lease(row.id, row.attempt, row.kind, row.spec, row.timeout_s, row.memory_mb, checkpoint)

    async def heartbeat(self, job_id: str, attempt: int, lease_s: float) -> HeartbeatAnswer:
        """Renew the lease: `held`, `cancel` (held, but the child must stop) or `lost`."""
        cancel = await self._session.scalar(
            update(JobRow)
            .where(_held(job_id, attempt))
            .values(lease_until=now() + lease_s)
            .returning(JobRow.cancel_requested)
        )
        return "lost" if cancel is None else "cancel" if cancel else "held"

    async def holds(self, job_id: str, attempt: int) -> bool:
        """True if the attempt still has the lease; the row stays locked until the transaction ends."""
        return await self._session.scalar(select(JobRow.id).where(_held(job_id, attempt)).with_for_update()) is not None

    async def progress(
        self,
        job_id: str,
        attempt: int,
        progress: Progress | None,
        points: Sequence[MetricPoint],
        log: Sequence[dict[str, Any]],
    ) -> bool:
        """Record what the child told since the last call."""
        if not await self.holds(job_id, attempt):
            return False
        if progress is not None:
            await self._session.execute(update(JobRow).where(JobRow.id == job_id).values(progress=asdict(progress)))
            await self._event(job_id, "progress", asdict(progress))
        if points:
            await self._add_points(job_id, points)
        await self._events([{"job_id": job_id, "type": "log", "data": line} for line in log])
        return True

    async def _add_points(self, job_id: str, points: Sequence[MetricPoint]) -> None:
        statement = upsert(self._session, _POINTS)
        # One row at a time to the database: after an outage there may be more points than a statement may hold values.
        await self._session.execute(
            statement.on_conflict_do_update(
                index_elements=["job_id", "name", "step"],
                set_={"value": statement.excluded.value, "at": statement.excluded.at},
            ),
            [{"job_id": job_id, "name": p.name, "step": p.step, "value": p.value, "at": p.at} for p in points],
        )
        told = [(p.at, {"name": p.name, "step": p.step, "value": p.value}) for p in points]
        await self._session.execute(
            insert(_EVENTS), [{"job_id": job_id, "type": "metric", "at": at, "data": data} for at, data in told]
        )

    async def succeed(self, job_id: str, attempt: int, result: dict[str, Any]) -> bool:
        """Running → succeeded; jobs that waited for this one may become due."""
        done = asdict(Progress(1.0, "done"))
        if not await self._leave(job_id, attempt, "succeeded", result=result, progress=done, error=None):
            return False
        waiters = select(JobAfterRow.job_id).where(JobAfterRow.after_id == job_id)
        await self._session.execute(
            update(JobRow)
            .where(JobRow.id.in_(waiters), JobRow.state == "queued")
            .values(waiting_for=JobRow.waiting_for - 1, pushed_at=None)
        )
        return True

    async def fail(self, job_id: str, attempt: int, failure: JobFailure, backoff_s: float) -> bool:
        """Running → queued with back-off when another attempt may help, otherwise → failed with everything after it."""
        row = await self._session.scalar(select(JobRow).where(_held(job_id, attempt)).with_for_update())
        if row is None:
            return False
        if failure.retryable and row.attempt < row.max_attempts and not row.cancel_requested:
            wait_s = doubled(backoff_s, row.attempt)
            row.state, row.worker, row.lease_until, row.pushed_at = "queued", None, None, None
            row.not_before = now() + wait_s
            row.error = failure.to_json()
            await self._event(job_id, "state", {"state": "queued", "error": failure.to_json(), "retry_in_s": wait_s})
            return True
        if row.cancel_requested:
            return await self._leave(job_id, attempt, "cancelled")
        return await self._leave(job_id, attempt, "failed", error=failure.to_json())

    async def release(
        self, job_id: str, attempt: int, wait_s: float = 0.0, reason: str = "the worker is shutting down"
    ) -> bool:
        """Running → queued, due in `wait_s`. The attempt's number stays used (it is a token): one more is allowed."""
        released = await self._session.scalar(
            update(JobRow)
            .where(_held(job_id, attempt), JobRow.cancel_requested.is_(False))
            .values(
                state="queued",
                worker=None,
                lease_until=None,
                pushed_at=None,
                not_before=now() + wait_s,
                max_attempts=JobRow.max_attempts + 1,
            )
            .returning(JobRow.id)
        )
        if released is None:  # lost; or to be cancelled, and then no other worker should start it
            return await self._leave(job_id, attempt, "cancelled")
        await self._event(job_id, "state", {"state": "queued", "reason": reason, "retry_in_s": wait_s})
        return True

    async def cancelled(self, job_id: str, attempt: int) -> bool:
        """Running → cancelled."""
        return await self._leave(job_id, attempt, "cancelled")

    async def _leave(self, job_id: str, attempt: int, state: str, **values: Any) -> bool:  # noqa: ANN401 - column values
        left = await self._session.scalar(
            update(JobRow)
            .where(_held(job_id, attempt))
            .values(state=state, finished_at=now(), lease_until=None, **values)
            .returning(JobRow.id)
        )
        if left is None:
            return False
        await self._ended(job_id, state, values.get("error"))
        return True

    async def _ended(self, job_id: str, state: str, error: dict[str, Any] | None) -> None:
        """What follows from a job's end: its event, its data set's state, the end of jobs that can never start now."""
        await self._event(job_id, "state", {"state": state} | ({"error": error} if error else {}))
        await self._release_files(job_id)
        if state == "succeeded":
            return
        reason = error or JobFailure("cancelled", "the ingest job was cancelled").to_json()
        await self._session.execute(
            update(DatasetVersionRow)
            .where(DatasetVersionRow.job_id == job_id, DatasetVersionRow.state == "ingesting")
            .values(state="failed", error=reason, fetch_uri=None)
        )
        waiters = select(JobAfterRow.job_id).where(JobAfterRow.after_id == job_id)
        abandoned = JobFailure("dependency_failed", f"job '{job_id}', which this job waits for, has {state}").to_json()
        ended = await self._session.scalars(
            update(JobRow)
            .where(JobRow.id.in_(waiters), JobRow.state == "queued")
            .values(state="failed", error=abandoned, finished_at=now())
            .returning(JobRow.id)
        )
        for waiter in list(ended):
            await self._ended(waiter, "failed", abandoned)

    async def _release_files(self, job_id: str) -> None:
        """A checkpoint is of no use, nor does an upload own the files of an import, once the job has ended."""
        await remove_files(self._write, job_id)
        spec = await self._session.scalar(select(JobRow.spec).where(JobRow.id == job_id, JobRow.kind == "import"))
        if spec is not None:
            await remove_files(self._write, spec["upload"])

    async def cancel(self, job_id: str) -> Job:
        """Queued → cancelled at once; running → marked for its agent; terminal → unchanged. NotFound otherwise."""
        row = await self._session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
        if row is None:
            raise NotFound(f"there is no job '{job_id}'")
        if row.state == "queued":
            row.state, row.cancel_requested, row.error = "cancelled", True, None
            row.finished_at = now()
            await self._session.flush()
            await self._ended(job_id, "cancelled", None)
        elif row.state == "running":
            row.cancel_requested = True
        await self._session.flush()
        await self._session.refresh(row)
        return await self.get(job_id)

    async def expire(self, backoff_s: float) -> int:
        """Every lease that ran out → queued or failed, as if its process had crashed."""
        rows = await self._session.execute(
            select(JobRow.id, JobRow.attempt, JobRow.worker)
            .where(JobRow.state == "running", JobRow.lease_until < now())
            .with_for_update(skip_locked=True)
        )
        expired = list(rows)
        for job_id, attempt, worker in expired:
            failure = JobFailure.of(Crashed(f"worker '{worker}' stopped answering"))
            await self.fail(job_id, attempt, failure, backoff_s)
        return len(expired)

    async def unannounced(self, repush_s: float, limit: int = 1000) -> list[Ready]:
        """Due jobs not announced for `repush_s`; marks them announced."""
        forgotten = or_(JobRow.pushed_at.is_(None), JobRow.pushed_at < now() - repush_s)
        rows = await self._session.execute(
            select(JobRow.id, JobRow.device, JobRow.priority)
            .where(due(), forgotten)
            .order_by(JobRow.priority, JobRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        found = [Ready(job_id, cast("DeviceClass", device), priority) for job_id, device, priority in rows]
        if found:
            ids = [ready.job_id for ready in found]
            await self._session.execute(update(_JOBS).where(_JOBS.c.id.in_(ids)).values(pushed_at=now()))
        return found

    async def _event(self, job_id: str, kind: str, data: dict[str, Any]) -> None:
        await self._events([{"job_id": job_id, "type": kind, "data": data}])

    async def _events(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add events, in order. The caller holds the jobs' rows, so that ids grow in the order of commits."""
        if rows:
            await self._session.execute(_EVENT, rows)


def _held(job_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == "running")


def _refusal(job: NewJob, states: Mapping[str, str]) -> InvalidInput | None:
    for position, other in enumerate(job.after):
        if other not in states:
            return InvalidSpec.at("after", position, msg=f"there is no job '{other}'", type="not_found")
        if states[other] in {"failed", "cancelled"}:
            msg = f"job '{other}' has {states[other]}; this job could never start"
            return InvalidSpec.at("after", position, msg=msg)
    return None


def _waiting_for(job: NewJob, states: Mapping[str, str]) -> int:
    return sum(states[other] not in TERMINAL for other in set(job.after))


def _new(job_id: str, job: NewJob, created_at: float) -> Job:
    return Job(
        id=job_id,
        kind=job.kind,
        state="queued",
        spec=job.spec,
        priority=job.priority,
        device=job.device,
        attempt=0,
        max_attempts=job.max_attempts,
        progress=Progress(),
        created_at=created_at,
        model=job.model,
        after=tuple(dict.fromkeys(job.after)),
    )
