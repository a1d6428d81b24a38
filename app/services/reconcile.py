"""Put right what crashes and lost messages have left; idempotent.

Every agent and every gateway reconciles the queue; only agents sweep.
"""

from app.registry.files import forget_blob, unused_blobs
from app.registry.idempotency import forget_old
from app.registry.job_ledger import JobLedger
from app.registry.ledger import SqlLedger
from app.registry.workers import forget_dead
from app.services.announce import announce_due
from app.services.platform import Platform

BLOB_GRACE_S = 3600.0  # longer than any upload or job output takes between being stored and being named
DEAD_WORKER_S = 3600.0
DAY_S = 86_400.0


async def reconcile_queue(platform: Platform) -> int:
    """Expired leases → queued or failed; forgotten jobs → announced. How many leases had expired.

    Leases also end while the registry is away, and those of healthy jobs are to be renewed before anyone looks at them:
    none expires until the registry has answered for as long as a lease lasts.
    """
    queue = platform.settings.queue
    async with platform.database.write() as session:
        # A heartbeat renews what has two thirds of a lease left, so that no shorter silence can have ended a lease.
        steady_s = platform.steadiness.answered(queue.reconcile_s + queue.lease_s / 3)
        expired = await JobLedger(session).expire(queue.backoff_s) if steady_s >= queue.lease_s else 0
    await announce_due(platform)
    return expired


async def sweep(platform: Platform, grace_s: float = BLOB_GRACE_S) -> int:
    """Remove contents that no file has named for `grace_s`, old bookkeeping, and jobs that ended too long ago to keep.

    How many contents were removed.
    """
    async with platform.database.write() as session:
        unused = await unused_blobs(session, grace_s)
        for sha256 in unused:
            # Within the transaction: whoever wants to name this content again waits for the row.
            await forget_blob(session, sha256)
            await platform.store.delete(sha256)
        await forget_old(session)
        await forget_dead(session, DEAD_WORKER_S)
    if days := platform.settings.queue.keep_days:
        await SqlLedger(platform.database).remove_ended(days * DAY_S)
    return len(unused)
