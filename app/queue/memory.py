"""The queue's in-memory twins, for tests and for a single process: same promises, the caller's clock."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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


@dataclass(slots=True)
class _Entry:
    job: Job
    timeout_s: float
    memory_mb: int
    max_attempts: int
    not_before: float
    lease_until: float = 0.0
    pushed_at: float | None = None
    cancel_requested: bool = False


class MemoryLedger:
    """`app.queue.ports.Ledger` in a dictionary."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self.points: dict[str, list[MetricPoint]] = defaultdict(list)
        self.logs: dict[str, list[dict[str, Any]]] = defaultdict(list)

    async def enqueue(self, job: NewJob) -> Job:
        """Add a job."""
        for position, other in enumerate(job.after):
            if other not in self._entries:
                raise InvalidSpec.at("after", position, msg=f"there is no job '{other}'", type="not_found")
            if self._entries[other].job.state in {"failed", "cancelled"}:
                state = self._entries[other].job.state
                raise InvalidSpec.at("after", position, msg=f"job '{other}' has {state}; this job could never start")
        created = Job(
            id=new_id(),
            kind=job.kind,
            state="queued",
            spec=job.spec,
            priority=job.priority,
            device=job.device,
            attempt=0,
            max_attempts=job.max_attempts,
            progress=Progress(),
            created_at=self._clock(),
            model=job.model,
            after=tuple(dict.fromkeys(job.after)),
        )
        self._entries[created.id] = _Entry(created, job.timeout_s, job.memory_mb, job.max_attempts, self._clock())
        return created

    async def enqueue_all(self, jobs: Sequence[NewJob]) -> list[Job | InvalidInput]:
        """Add jobs; a refused one is answered with its error."""
        answers: list[Job | InvalidInput] = []
        for job in jobs:
            try:
                answers.append(await self.enqueue(job))
            except InvalidInput as refusal:
                answers.append(refusal)
        return answers

    async def get(self, job_id: str) -> Job:
        """The job."""
        if job_id not in self._entries:
            raise NotFound(f"there is no job '{job_id}'")
        return self._entries[job_id].job

    def _due(self, entry: _Entry) -> bool:
        ready = all(self._entries[other].job.state == "succeeded" for other in entry.job.after)
        return entry.job.state == "queued" and ready and entry.not_before <= self._clock()

    async def claim(self, job_id: str, worker: str, lease_s: float) -> Lease | None:
        """Queued and due → running."""
        entry = self._entries.get(job_id)
        if entry is None or not self._due(entry):
            return None
        entry.job = replace(
            entry.job,
            state="running",
            attempt=entry.job.attempt + 1,
            worker=worker,
            started_at=entry.job.started_at or self._clock(),
        )
        entry.lease_until = self._clock() + lease_s
        return Lease(job_id, entry.job.attempt, entry.job.kind, entry.job.spec, entry.timeout_s, entry.memory_mb)

    async def next_ready(self, devices: Sequence[DeviceClass]) -> str | None:
        """The due job to run next."""
        due = [entry.job for entry in self._entries.values() if entry.job.device in devices and self._due(entry)]
        return min(due, key=lambda job: (job.priority, job.id)).id if due else None

    def _held(self, job_id: str, attempt: int) -> _Entry | None:
        entry = self._entries.get(job_id)
        return entry if entry and entry.job.state == "running" and entry.job.attempt == attempt else None

    async def heartbeat(self, job_id: str, attempt: int, lease_s: float) -> HeartbeatAnswer:
        """Renew the lease."""
        entry = self._held(job_id, attempt)
        if entry is None:
            return "lost"
        entry.lease_until = self._clock() + lease_s
        return "cancel" if entry.cancel_requested else "held"

    async def progress(
        self,
        job_id: str,
        attempt: int,
        progress: Progress | None,
        points: Sequence[MetricPoint],
        log: Sequence[dict[str, Any]],
    ) -> bool:
        """Record what the child told."""
        entry = self._held(job_id, attempt)
        if entry is None:
            return False
        entry.job = replace(entry.job, progress=progress or entry.job.progress)
        self.points[job_id] += points
        self.logs[job_id] += log
        return True

    def _leave(self, entry: _Entry | None, **changes: Any) -> bool:  # noqa: ANN401 - fields of Job
        if entry is None:
            return False
        entry.job = replace(entry.job, finished_at=self._clock(), **changes)
        if entry.job.state in {"failed", "cancelled"}:
            detail = f"job '{entry.job.id}', which this job waits for, has {entry.job.state}"
            for waiter in self._entries.values():
                if entry.job.id in waiter.job.after and waiter.job.state == "queued":
                    self._leave(waiter, state="failed", error=JobFailure("dependency_failed", detail).to_json())
        return True

    async def succeed(self, job_id: str, attempt: int, result: dict[str, Any]) -> bool:
        """Running → succeeded."""
        return self._leave(
            self._held(job_id, attempt), state="succeeded", result=result, error=None, progress=Progress(1.0, "done")
        )

    async def fail(self, job_id: str, attempt: int, failure: JobFailure, backoff_s: float) -> bool:
        """Running → queued or failed."""
        entry = self._held(job_id, attempt)
        if entry and failure.retryable and attempt < entry.max_attempts and not entry.cancel_requested:
            entry.job = replace(entry.job, state="queued", worker=None, error=failure.to_json())
            entry.not_before = self._clock() + doubled(backoff_s, attempt)
            entry.pushed_at = None
            return True
        if entry and entry.cancel_requested:
            return self._leave(entry, state="cancelled")
        return self._leave(entry, state="failed", error=failure.to_json())

    async def release(
        self,
        job_id: str,
        attempt: int,
        wait_s: float = 0.0,
        reason: str = "the worker is shutting down",  # noqa: ARG002 - the twin keeps no events
    ) -> bool:
        """Running → queued, due in `wait_s`, or cancelled if that was asked for."""
        entry = self._held(job_id, attempt)
        if entry is None or entry.cancel_requested:
            return self._leave(entry, state="cancelled")
        entry.job = replace(entry.job, state="queued", worker=None)
        entry.not_before = self._clock() + wait_s
        entry.max_attempts += 1
        entry.pushed_at = None
        return True

    async def cancelled(self, job_id: str, attempt: int) -> bool:
        """Running → cancelled."""
        return self._leave(self._held(job_id, attempt), state="cancelled")

    async def cancel(self, job_id: str) -> Job:
        """Queued → cancelled; running → marked."""
        job = await self.get(job_id)
        entry = self._entries[job_id]
        if job.state == "queued":
            self._leave(entry, state="cancelled")
        entry.cancel_requested = job.state not in TERMINAL
        return entry.job

    async def expire(self, backoff_s: float) -> int:
        """Expired leases → queued or failed."""
        late = [
            entry
            for entry in self._entries.values()
            if entry.job.state == "running" and entry.lease_until < self._clock()
        ]
        for entry in late:
            failure = JobFailure.of(Crashed(f"worker '{entry.job.worker}' stopped answering"))
            await self.fail(entry.job.id, entry.job.attempt, failure, backoff_s)
        return len(late)

    async def unannounced(self, repush_s: float) -> Sequence[Ready]:
        """Due jobs not announced for `repush_s`."""
        clock = self._clock()
        found = [
            e
            for e in self._entries.values()
            if self._due(e) and (e.pushed_at is None or e.pushed_at < clock - repush_s)
        ]
        for entry in found:
            entry.pushed_at = clock
        return [
            Ready(e.job.id, e.job.device, e.job.priority)
            for e in sorted(found, key=lambda e: (e.job.priority, e.job.id))
        ]

    async def remove_ended(self, older_s: float, limit: int = 1000) -> int:
        """Forget jobs that ended longer ago."""
        until = self._clock() - older_s
        ended = [(e.job.finished_at, e.job.id) for e in self._entries.values() if e.job.state in TERMINAL]
        old = [job_id for at, job_id in sorted(ended) if at is not None and at < until][:limit]
        for job_id in old:
            del self._entries[job_id]
            self.points.pop(job_id, None)
            self.logs.pop(job_id, None)
        for entry in self._entries.values():
            entry.job = replace(entry.job, after=tuple(it for it in entry.job.after if it in self._entries))
        return len(old)


class MemoryWake:
    """`app.queue.ports.Wake` within one event loop."""

    def __init__(self) -> None:
        self._ready: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._arrived = asyncio.Condition()
        self._listeners: list[tuple[frozenset[str], asyncio.Queue[tuple[str, str]]]] = []

    async def ping(self) -> None:
        """Always there."""

    async def announce(self, *ready: Ready) -> None:
        """Tell waiting callers of `next`."""
        async with self._arrived:
            for job in ready:
                self._ready[job.device, job.priority].add(job.job_id)
            self._arrived.notify_all()

    async def next(self, devices: Sequence[DeviceClass], timeout_s: float) -> str | None:
        """The next announced id, by priority, then age."""
        keys = [(device, priority) for priority in (0, 1, 2) for device in devices]
        try:
            async with asyncio.timeout(timeout_s), self._arrived:
                await self._arrived.wait_for(lambda: any(self._ready[key] for key in keys))
                ids = next(self._ready[key] for key in keys if self._ready[key])
        except TimeoutError:
            return None
        ids.remove(first := min(ids))
        return first

    async def publish(self, channel: str, message: str) -> None:
        """Tell whoever listens now."""
        for channels, queue in self._listeners:
            if channel in channels:
                queue.put_nowait((channel, message))

    async def listen(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
        """Messages as they come."""
        entry: tuple[frozenset[str], asyncio.Queue[tuple[str, str]]] = (frozenset(channels), asyncio.Queue())
        self._listeners.append(entry)
        try:
            yield "", ""
            while True:
                yield await entry[1].get()
        finally:
            self._listeners.remove(entry)

    async def close(self) -> None:
        """Nothing is kept open."""
