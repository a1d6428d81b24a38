"""Turn an upload that is in the store into a data set version, and queue its parsing."""

from app.core.jobs import Job, NewJob
from app.core.resources import DatasetVersion, StoredFile
from app.registry.datasets import DatasetWriter
from app.registry.job_ledger import JobLedger
from app.services.announce import announce_job
from app.services.idempotent import Once, create_once
from app.services.platform import Platform
from app.specs.jobs import IngestSpec

ORIGINAL = "original"
KINDS = ("auto", "tabular", "image")


async def upload_dataset(
    platform: Platform, request: Once, name: str, kind: str, original: StoredFile, filename: str
) -> DatasetVersion:
    """The new version, state `ingesting`."""
    job: Job | None = None
    async with platform.database.write() as session:
        datasets = DatasetWriter(session)

        async def create() -> str:
            nonlocal job
            version = await datasets.create(name, kind, original, filename)
            spec = IngestSpec(dataset=f"{name}@{version.version}", format=kind, filename=filename)
            new = NewJob(
                kind="ingest",
                spec=spec.model_dump(mode="json"),
                priority=0,
                memory_mb=platform.settings.limit.ingest_memory_mb,
                max_attempts=platform.settings.queue.max_attempts,
            )
            job = await JobLedger(session).enqueue(new)
            await datasets.attach_job(version.id, job.id)
            return str(version.version)

        number = int(await create_once(session, request, create))
        version = await datasets.version(name, number)
    if job is not None:
        await announce_job(platform, job)
    return version
