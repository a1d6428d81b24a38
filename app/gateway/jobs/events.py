"""A job's events as Server-Sent Events: from the registry, woken up by Redis, resumed by `Last-Event-ID`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson

from app.core.jobs import TERMINAL, JobEvent
from app.queue.ports import JOB_CHANNEL
from app.registry.jobs import JobReader
from app.services.platform import Platform

POLL_S = 1.0  # how long a lost wake-up can hold an event up
KEEP_ALIVE_S = 15.0


async def follow(platform: Platform, job_id: str, last_id: int) -> AsyncIterator[bytes]:
    """Events after `last_id`, live, until the job has ended and all was told."""
    woken = asyncio.Event()

    async def listen() -> None:
        async for _ in platform.wake.listen(JOB_CHANNEL.format(job_id=job_id)):
            woken.set()

    listener = asyncio.create_task(listen(), name=f"events of {job_id}")
    quiet_s = 0.0
    try:
        while True:
            woken.clear()
            async with platform.database.read() as session:
                jobs = JobReader(session)
                ended = (await jobs.get(job_id)).state in TERMINAL
                events = await jobs.events(job_id, last_id)
            for event in events:
                yield _frame(event)
                last_id = event.id
            if ended and not events:
                return
            quiet_s = 0.0 if events else quiet_s + POLL_S
            if quiet_s >= KEEP_ALIVE_S:
                yield b": still here\n\n"
                quiet_s = 0.0
            if not events:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), POLL_S)
    finally:
        listener.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listener


def _frame(event: JobEvent) -> bytes:
    data = orjson.dumps({"at": event.at, **event.data})  # a line of the log knows when it was said
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.type.encode(), data)
