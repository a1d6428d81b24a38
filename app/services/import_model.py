"""Queue the check of an uploaded ONNX model; the version is made when the job has found it good."""

from collections.abc import Sequence

from app.core.ids import new_id
from app.core.jobs import Job, NewJob
from app.core.resources import StoredFile
from app.registry.files import add_files
from app.registry.job_ledger import JobLedger
from app.services.announce import announce_job
from app.services.idempotent import Once, create_once
from app.services.platform import Platform
from app.specs.jobs import ImportMetadata, ImportSpec


async def import_model(
    platform: Platform, request: Once, model: str, files: Sequence[StoredFile], metadata: ImportMetadata
) -> Job:
    """The queued job. The files belong to its upload until it ends."""
    job: Job | None = None
    limit = platform.settings.limit
    async with platform.database.write() as session:
        ledger = JobLedger(session)

        async def create() -> str:
            nonlocal job
            spec = ImportSpec(model=model, upload=new_id(), files=[file.path for file in files], metadata=metadata)
            await add_files(session, spec.upload, files)
            new = NewJob(
                kind="import",
                spec=spec.model_dump(mode="json"),
                memory_mb=limit.import_memory_mb,
                timeout_s=limit.import_timeout_s,
                max_attempts=1,  # a model that ends its process once does so again
                model=model,
            )
            job = await ledger.enqueue(new)
            return job.id

        made = await create_once(session, request, create)
        job = job or await ledger.get(made)
    await announce_job(platform, job)
    return job
