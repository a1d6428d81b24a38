"""What the queue is made of: `Ledger` (`app.registry.ledger`, `app.queue.memory`) and `Wake` (`redis`, `memory`)."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from app.core.errors import InvalidInput
from app.core.jobs import (
    DeviceClass,
    HeartbeatAnswer,
    Job,
    JobFailure,
    Lease,
    MetricPoint,
    NewJob,
    Progress,
    Ready,
)


class Ledger(Protocol):
    """The job table. Every write for a running job names its attempt and returns False when that lease is lost."""

    async def enqueue(self, job: NewJob) -> Job:
        """Add a job, waiting for those in `after`. InvalidSpec when one of them does not exist or has not succeeded."""

    async def enqueue_all(self, jobs: Sequence[NewJob]) -> list[Job | InvalidInput]:
        """`enqueue` of many, in order; a refused job leaves no trace and hinders no other."""

    async def get(self, job_id: str) -> Job:
        """The job. NotFound otherwise."""

    async def claim(self, job_id: str, worker: str, lease_s: float) -> Lease | None:
        """Take a queued, due job: compare-and-set to running with the next attempt. None when somebody else has it."""

    async def next_ready(self, devices: Sequence[DeviceClass]) -> str | None:
        """The id of the due job to run next on these device classes: lowest priority number first, then oldest."""

    async def heartbeat(self, job_id: str, attempt: int, lease_s: float) -> HeartbeatAnswer:
        """Renew the lease."""

    async def progress(
        self,
        job_id: str,
        attempt: int,
        progress: Progress | None,
        points: Sequence[MetricPoint],
        log: Sequence[dict[str, Any]],
    ) -> bool:
        """Record what the child told."""

    async def succeed(self, job_id: str, attempt: int, result: dict[str, Any]) -> bool:
        """Running → succeeded; jobs that waited for this one become ready."""

    async def fail(self, job_id: str, attempt: int, failure: JobFailure, backoff_s: float) -> bool:
        """Running → queued if the failure is retryable and attempts are left, otherwise → failed.

        The back-off doubles with each attempt, up to five minutes.
        """

    async def release(
        self, job_id: str, attempt: int, wait_s: float = 0.0, reason: str = "the worker is shutting down"
    ) -> bool:
        """Running → queued, due in `wait_s`, without using up an attempt. Cancelled if that was asked for."""

    async def cancelled(self, job_id: str, attempt: int) -> bool:
        """Running → cancelled: the child has stopped."""

    async def cancel(self, job_id: str) -> Job:
        """Queued → cancelled at once; running → marked, its agent stops it. A terminal job stays as it is."""

    async def expire(self, backoff_s: float) -> int:
        """Expired leases → queued or failed; how many there were."""

    async def unannounced(self, repush_s: float) -> Sequence[Ready]:
        """Due queued jobs that were not announced for `repush_s`; marks them announced now."""

    async def remove_ended(self, older_s: float, limit: int = 1000) -> int:
        """Remove jobs that ended longer ago than `older_s`, the oldest first, with what they have told; how many."""


class Wake(Protocol):
    """Wake-ups and cancels. Losing any of them costs time, never a job."""

    async def ping(self) -> None:
        """Unavailable when the server is away."""

    async def announce(self, *ready: Ready) -> None:
        """Tell an idle agent of each job's device class; telling again of a job that still waits changes nothing.

        Unavailable when the server is away.
        """

    async def next(self, devices: Sequence[DeviceClass], timeout_s: float) -> str | None:
        """The next announced job id: by priority, then by age; None after `timeout_s`. Unavailable without a server."""

    async def publish(self, channel: str, message: str) -> None:
        """Tell whoever listens now. Unavailable when the server is away."""

    def listen(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
        """(channel, message) as they come; ("", "") after every (re)connection, since messages may have been missed."""

    async def close(self) -> None:
        """Close every connection."""


CANCEL_CHANNEL = "cancel"  # message: a job id
JOB_CHANNEL = "job:{job_id}"  # message: "" - the job's events have grown
ENDPOINT_CHANNEL = "endpoints"  # message: an endpoint's name - its row has changed
