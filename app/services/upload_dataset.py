"""Turn an upload that is in the store, or an address, into a data set version, and queue its parsing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.core.jobs import Job, NewJob
from app.core.resources import DatasetVersion, StoredFile
from app.registry.datasets import DatasetWriter
from app.registry.job_ledger import JobLedger
from app.services.announce import announce_job
from app.services.idempotent import Once, create_once
from app.services.platform import Platform
from app.specs.jobs import IngestSpec
from app.store.allowed import Allowed

ORIGINAL = "original"
KINDS = ("auto", "tabular", "image")


async def upload_dataset(
    platform: Platform, request: Once, name: str, kind: str, original: StoredFile, filename: str
) -> DatasetVersion:
    """The new version, state `ingesting`."""
    spec = _Draft(name, kind, filename)
    return await _ingest(platform, request, spec, lambda datasets: datasets.create(name, kind, original, filename))


async def fetch_dataset(platform: Platform, request: Once, name: str, kind: str, uri: str) -> DatasetVersion:
    """The new version, state `ingesting`; its job fetches the file. InvalidSpec unless the operator lists `uri`."""
    found = Allowed(platform.settings.sources).check(uri)
    spec = _Draft(name, kind, found.filename)
    return await _ingest(
        platform, request, spec, lambda datasets: datasets.create_from(name, kind, uri, found.shown, found.filename)
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """What the ingest job is told, but for the number of the version."""

    name: str
    kind: str
    filename: str


async def _ingest(
    platform: Platform, request: Once, draft: _Draft, make: Callable[[DatasetWriter], Awaitable[DatasetVersion]]
) -> DatasetVersion:
    """Make the version and queue its ingest job, once for each key of `request`."""
    job: Job | None = None
    async with platform.database.write() as session:
        datasets = DatasetWriter(session)

        async def create() -> str:
            nonlocal job
            version = await make(datasets)
            spec = IngestSpec(dataset=f"{draft.name}@{version.version}", format=draft.kind, filename=draft.filename)
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
        version = await datasets.version(draft.name, number)
    if job is not None:
        await announce_job(platform, job)
    return version
