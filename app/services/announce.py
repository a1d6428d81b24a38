"""Tell agents of jobs that are due. Losing an announcement costs time, never the job."""

import contextlib

from app.core.errors import Unavailable
from app.core.jobs import Job, Ready
from app.queue.ports import JOB_CHANNEL
from app.registry.job_ledger import JobLedger
from app.services.platform import Platform


async def announce_due(platform: Platform) -> int:
    """Announce every due job that agents have not been told of lately; how many. Without Redis it is done later."""
    async with platform.database.write() as session:
        ready = await JobLedger(session).unannounced(platform.settings.queue.repush_s)
    await announce(platform, *ready)
    return len(ready)


async def announce(platform: Platform, *ready: Ready) -> None:
    """Announce jobs."""
    with contextlib.suppress(Unavailable):
        await platform.wake.announce(*ready)


async def announce_job(platform: Platform, job: Job) -> None:
    """Announce a job that was just committed. If it waits for others, whoever is told finds that it is not due."""
    if job.state == "queued":
        await announce(platform, Ready(job.id, job.device, job.priority))


async def tell_watchers(platform: Platform, job_id: str) -> None:
    """Wake up whoever follows the job's events."""
    with contextlib.suppress(Unavailable):
        await platform.wake.publish(JOB_CHANNEL.format(job_id=job_id), "")
