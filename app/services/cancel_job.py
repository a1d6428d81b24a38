"""Cancel a job: at once when queued, within a second when running."""

import contextlib

from app.core.errors import Unavailable
from app.core.jobs import Job
from app.queue.ports import CANCEL_CHANNEL
from app.registry.job_ledger import JobLedger
from app.services.announce import tell_watchers
from app.services.platform import Platform


async def cancel_job(platform: Platform, job_id: str) -> Job:
    """The job after the request; a terminal one is returned as it is. NotFound otherwise."""
    async with platform.database.write() as session:
        job = await JobLedger(session).cancel(job_id)
    if job.state == "running":
        with contextlib.suppress(Unavailable):  # the agent's next heartbeat tells it all the same
            await platform.wake.publish(CANCEL_CHANNEL, job_id)
    await tell_watchers(platform, job_id)
    return job
