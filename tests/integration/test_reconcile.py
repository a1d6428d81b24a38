"""Leases that end while the registry is away, on a real one."""

from dataclasses import replace

import pytest

from app.core.jobs import NewJob
from app.registry.ledger import SqlLedger
from app.services.platform import Platform, Steadiness
from app.services.reconcile import reconcile_queue


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def run_out(platform: Platform) -> str:
    """A job whose lease is past."""
    ledger = SqlLedger(platform.database)
    job = await ledger.enqueue(NewJob(kind="train", spec={}))
    assert await ledger.claim(job.id, "w", -1.0)
    return job.id


async def expired(platform: Platform, clock: Clock, *steps: float) -> list[int]:
    """How many leases had expired, at looks that lie so far apart."""
    found = []
    for step in steps:
        clock.now += step
        found.append(await reconcile_queue(platform))
    return found


async def test_none_expires_before_the_registry_has_answered_for_as_long_as_a_lease(platform: Platform) -> None:
    clock = Clock()
    watched = replace(platform, steadiness=Steadiness(clock))
    await run_out(watched)
    assert await expired(watched, clock, 0, 5, 5, 5, 5, 5, 4.9) == [0] * 7
    assert await expired(watched, clock, 0.1) == [1]


@pytest.mark.parametrize("silence", [16.0, 600.0])
async def test_a_heartbeat_comes_first_after_an_outage(platform: Platform, silence: float) -> None:
    clock = Clock()
    watched = replace(platform, steadiness=Steadiness(clock))
    job_id = await run_out(watched)
    assert await expired(watched, clock, *[5.0] * 6, silence, 5.0) == [0] * 8
    ledger = SqlLedger(platform.database)
    assert await ledger.heartbeat(job_id, 1, 30.0) == "held"
    assert await expired(watched, clock, *[5.0] * 9) == [0] * 9
    assert (await ledger.get(job_id)).state == "running"
