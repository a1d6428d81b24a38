"""Keep a job's checkpoint where another worker can find it."""

from pathlib import Path

from app.core.jobs import Lease
from app.registry.files import add_files, remove_files
from app.registry.job_ledger import JobLedger
from app.services.keep_files import Known, keep_changed
from app.services.platform import Platform


async def save_checkpoint(platform: Platform, lease: Lease, folder: Path, known: Known) -> bool:
    """Replace the job's checkpoint by the files in `folder`. False when the attempt's lease was lost.

    `known` has what this attempt's last checkpoint consisted of, and is brought up to date.
    """
    kept = await keep_changed(platform, folder, known)
    async with platform.database.write() as session:
        if not await JobLedger(session).holds(lease.job_id, lease.attempt):
            return False
        await remove_files(session, lease.job_id)
        await add_files(session, lease.job_id, list(kept.values()))
    known.clear()  # what no transaction has named may be swept
    known.update(kept)
    return True
