"""The queue's ledger with one transaction per call; fulfils `app.queue.ports.Ledger`."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from app.core.errors import InvalidInput
from app.core.jobs import DeviceClass, HeartbeatAnswer, Job, JobFailure, Lease, MetricPoint, NewJob, Progress, Ready
from app.registry.job_ledger import JobLedger
from app.registry.job_retention import ended_jobs, forget_job
from app.registry.jobs import JobReader
from app.registry.session import Database


class SqlLedger:
    """See `app.registry.job_ledger.JobLedger` for what each call does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enqueue(self, job: NewJob) -> Job:
        """Add a job."""
        async with self._database.write() as session:
            return await JobLedger(session).enqueue(job)

    async def enqueue_all(self, jobs: Sequence[NewJob]) -> list[Job | InvalidInput]:
        """Add jobs, each accepted or refused by itself."""
        async with self._database.write() as session:
            return await JobLedger(session).enqueue_all(jobs)

    async def get(self, job_id: str) -> Job:
        """The job."""
        async with self._database.read() as session:
            return await JobReader(session).get(job_id)

    async def next_ready(self, devices: Sequence[DeviceClass]) -> str | None:
        """The due job to run next."""
        async with self._database.read() as session:
            return await JobReader(session).next_ready(devices)

    async def claim(self, job_id: str, worker: str, lease_s: float) -> Lease | None:
        """Take a queued, due job."""
        async with self._database.write() as session:
            return await JobLedger(session).claim(job_id, worker, lease_s)

    async def heartbeat(self, job_id: str, attempt: int, lease_s: float) -> HeartbeatAnswer:
        """Renew the lease."""
        async with self._database.write() as session:
            return await JobLedger(session).heartbeat(job_id, attempt, lease_s)

    async def progress(
        self,
        job_id: str,
        attempt: int,
        progress: Progress | None,
        points: Sequence[MetricPoint],
        log: Sequence[dict[str, Any]],
    ) -> bool:
        """Record what the child told."""
        async with self._database.write() as session:
            return await JobLedger(session).progress(job_id, attempt, progress, points, log)

    async def succeed(self, job_id: str, attempt: int, result: dict[str, Any]) -> bool:
        """Running → succeeded."""
        async with self._database.write() as session:
            return await JobLedger(session).succeed(job_id, attempt, result)

    async def fail(self, job_id: str, attempt: int, failure: JobFailure, backoff_s: float) -> bool:
        """Running → queued or failed."""
        async with self._database.write() as session:
            return await JobLedger(session).fail(job_id, attempt, failure, backoff_s)

    async def release(
        self, job_id: str, attempt: int, wait_s: float = 0.0, reason: str = "the worker is shutting down"
    ) -> bool:
        """Running → queued."""
        async with self._database.write() as session:
            return await JobLedger(session).release(job_id, attempt, wait_s, reason)

    async def cancelled(self, job_id: str, attempt: int) -> bool:
        """Running → cancelled."""
        async with self._database.write() as session:
            return await JobLedger(session).cancelled(job_id, attempt)

    async def cancel(self, job_id: str) -> Job:
        """Queued → cancelled; running → marked."""
        async with self._database.write() as session:
            return await JobLedger(session).cancel(job_id)

    async def expire(self, backoff_s: float) -> int:
        """Expired leases → queued or failed."""
        async with self._database.write() as session:
            return await JobLedger(session).expire(backoff_s)

    async def unannounced(self, repush_s: float) -> Sequence[Ready]:
        """Due jobs that agents should be told of."""
        async with self._database.write() as session:
            return await JobLedger(session).unannounced(repush_s)

    async def remove_ended(self, older_s: float, limit: int = 1000) -> int:
        """Remove jobs that ended longer ago, a transaction for each or for a part of its history."""
        async with self._database.read() as session:
            ended = await ended_jobs(session, older_s, limit)
        for job_id in ended:
            done = False
            while not done:
                begun = time.monotonic()
                async with self._database.write() as session:
                    done = await forget_job(session, job_id)
                # Half of the time is others': who waits for SQLite's lock looks only ten times a second.
                await asyncio.sleep(time.monotonic() - begun)
        return len(ended)
