"""Check a job against what is registered, and queue it."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.core.errors import Conflict, InvalidInput, NotFound
from app.core.jobs import DeviceClass, Job, NewJob
from app.registry.job_ledger import JobLedger
from app.registry.jobs import JobReader
from app.registry.session import WriteSession
from app.services.announce import announce_job
from app.services.check_spec import SpecChecker
from app.services.idempotent import Made, Once, create_all_once
from app.services.platform import Platform
from app.specs.jobs import SUBMITTED, SubmittedSpec, TrainSpec


@dataclass(frozen=True, slots=True)
class _Submission:
    request: Once
    spec: SubmittedSpec
    max_attempts: int


async def submit_job(platform: Platform, request: Once, spec: SubmittedSpec) -> Job:
    """The queued job. InvalidSpec names what does not fit; nothing is queued then.

    Submissions that come at the same time are committed together, each accepted or refused by itself.
    """
    submission = _Submission(request, spec, platform.settings.queue.max_attempts)
    job = await platform.database.together(_submit_all, submission)
    await announce_job(platform, job)
    return job


async def retry_job(platform: Platform, request: Once, job_id: str) -> Job:
    """Queue a copy of a job that has failed or was cancelled. Conflict while it can still succeed."""
    async with platform.database.read() as reading:
        old = await JobReader(reading).get(job_id)
    if old.state not in {"failed", "cancelled"}:
        raise Conflict(f"job '{job_id}' is {old.state}; only failed and cancelled jobs can be retried")
    if old.kind in {"ingest", "import"}:
        raise Conflict(f"an {old.kind} job belongs to its upload; upload the file again, or send its address")
    return await submit_job(platform, request, SUBMITTED[old.kind].model_validate(old.spec))


async def _submit_all(session: WriteSession, submissions: Sequence[_Submission]) -> list[Job | Exception]:
    """The jobs, in order; one that its key has made before is answered as it is now."""
    ledger, checker = JobLedger(session), SpecChecker(session)
    jobs: dict[str, Job] = {}

    async def create(positions: Sequence[int]) -> list[Made]:
        queued = await _enqueue(ledger, checker, [submissions[i] for i in positions])
        jobs.update({job.id: job for job in queued if isinstance(job, Job)})
        return [job.id if isinstance(job, Job) else job for job in queued]

    made = await create_all_once(session, [submission.request for submission in submissions], create)
    jobs |= await ledger.get_all([it for it in made if isinstance(it, str) and it not in jobs])
    return [it if isinstance(it, Exception) else jobs.get(it) or _removed(it) for it in made]


def _removed(job_id: str) -> NotFound:
    """Of a key that is remembered for longer than the job it has made."""
    return NotFound(f"there is no job '{job_id}' any more, which this Idempotency-Key has made; use a new key")


async def _enqueue(
    ledger: JobLedger, checker: SpecChecker, submissions: Sequence[_Submission]
) -> list[Job | InvalidInput]:
    checked = [await _checked(checker, submission) for submission in submissions]
    queued = iter(await ledger.enqueue_all([it for it in checked if isinstance(it, NewJob)]))
    return [next(queued) if isinstance(it, NewJob) else it for it in checked]


async def _checked(checker: SpecChecker, submission: _Submission) -> NewJob | InvalidInput:
    spec = submission.spec
    try:
        if isinstance(spec, TrainSpec):
            spec = spec.check_family()
        after = await checker.check(spec)
    except InvalidInput as error:
        return error
    device: DeviceClass = "cuda" if spec.resources.device == "cuda" else "cpu"
    return NewJob(
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority,
        device=device,
        timeout_s=spec.timeout_s,
        memory_mb=spec.resources.memory_mb,
        max_attempts=submission.max_attempts,
        after=tuple(after),
        model=spec.model,
    )
