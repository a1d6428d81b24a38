"""Check a job against what is registered, and queue it."""

from app.core.errors import Conflict, FieldError, InvalidSpec, NotFound
from app.core.jobs import DeviceClass, Job, NewJob
from app.core.resources import DatasetVersion
from app.registry.datasets import DatasetReader
from app.registry.job_ledger import JobLedger
from app.registry.jobs import JobReader
from app.registry.models import ModelReader
from app.registry.session import ReadSession
from app.services.announce import announce_job
from app.services.idempotent import Once, create_once
from app.services.platform import Platform
from app.specs.families import family
from app.specs.jobs import CompressSpec, TrainSpec, parse_dataset


async def submit_job(platform: Platform, request: Once, spec: TrainSpec | CompressSpec) -> Job:
    """The queued job. InvalidSpec names what does not fit; nothing is queued then."""
    if isinstance(spec, TrainSpec):
        spec = spec.check_family()
    job: Job | None = None
    async with platform.database.read() as reading:
        check = _check_train(reading, spec) if isinstance(spec, TrainSpec) else _check_compress(reading, spec)
        after = await check
    async with platform.database.write() as session:

        async def create() -> str:
            nonlocal job
            job = await JobLedger(session).enqueue(_new_job(platform, spec, after))
            return job.id

        made = await create_once(session, request, create)
        job = job or await JobLedger(session).get(made)
    await announce_job(platform, job)
    return job


async def retry_job(platform: Platform, request: Once, job_id: str) -> Job:
    """Queue a copy of a job that has failed or was cancelled. Conflict while it can still succeed."""
    async with platform.database.read() as reading:
        old = await JobReader(reading).get(job_id)
    if old.state not in {"failed", "cancelled"}:
        raise Conflict(f"job '{job_id}' is {old.state}; only failed and cancelled jobs can be retried")
    if old.kind == "ingest":
        raise Conflict("an ingest job belongs to its upload; upload the file again")
    kind = TrainSpec if old.kind == "train" else CompressSpec
    return await submit_job(platform, request, kind.model_validate(old.spec))


def _new_job(platform: Platform, spec: TrainSpec | CompressSpec, after: list[str]) -> NewJob:
    device: DeviceClass = "cuda" if spec.resources.device == "cuda" else "cpu"
    return NewJob(
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority,
        device=device,
        timeout_s=spec.timeout_s,
        memory_mb=spec.resources.memory_mb,
        max_attempts=platform.settings.queue.max_attempts,
        after=tuple(after),
        model=spec.model,
    )


async def _check_train(session: ReadSession, spec: TrainSpec) -> list[str]:
    """Ids of jobs to wait for. InvalidSpec when the data set cannot be trained on as asked."""
    name, number = parse_dataset(spec.dataset)
    try:
        data = await DatasetReader(session).version(name, number, files=False)
    except NotFound as error:
        raise InvalidSpec.at("dataset", msg=error.detail, type="not_found") from None
    if data.state == "failed":
        reason = (data.error or {}).get("detail", "unknown")
        raise InvalidSpec.at("dataset", msg=f"'{spec.dataset}' could not be ingested: {reason}")
    if data.state == "ingesting":
        return [*spec.after, *([data.job_id] if data.job_id else [])]
    _check_columns(data, spec)
    return spec.after


def _check_columns(data: DatasetVersion, spec: TrainSpec) -> None:
    expected = family(spec.family).data
    if data.kind != expected:
        msg = f"family '{spec.family}' learns from {expected} data, but '{spec.dataset}' is {data.kind}"
        raise InvalidSpec.at("family", msg=msg)
    known = [column["name"] for column in data.columns]
    errors = [
        FieldError(loc, f"there is no column '{name}'", "unknown_column")
        for loc, name in _named(spec)
        if name not in known
    ]
    if errors:
        shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")  # noqa: PLR2004 - enough to see the mistake
        raise InvalidSpec(f"'{spec.dataset}' has these columns: {shown}", errors=errors)
    if spec.target in spec.features.drop:
        raise InvalidSpec.at("features", "drop", msg=f"'{spec.target}' is the target and cannot be dropped")
    target = next(column for column in data.columns if column["name"] == spec.target)
    if data.rows is not None and target["missing"] >= data.rows:
        raise InvalidSpec.at("target", msg=f"every value of '{spec.target}' is missing; choose a column with labels")
    if spec.task == "classification" and target.get("unique") == 1:
        raise InvalidSpec.at("target", msg=f"'{spec.target}' has one class only; choose a target with two or more")
    if spec.task == "regression" and target["type"] not in {"integer", "number"}:
        raise InvalidSpec.at("target", msg=f"'{spec.target}' is {target['type']}; regression needs numbers")


def _named(spec: TrainSpec) -> list[tuple[tuple[str | int, ...], str]]:
    """(where, column) for every column that the spec names."""
    named: list[tuple[tuple[str | int, ...], str]] = [(("target",), spec.target)]
    named += [(("features", "drop", i), name) for i, name in enumerate(spec.features.drop)]
    named += [(("features", "types", name), name) for name in spec.features.types]
    named += [(("features", "steps", i, "column"), step.column) for i, step in enumerate(spec.features.steps)]
    for i, step in enumerate(spec.clean):
        columns: list[str] = getattr(step, "columns", [])
        named += [(("clean", i, "columns", k), name) for k, name in enumerate(columns)]
    return named


async def _check_compress(session: ReadSession, spec: CompressSpec) -> list[str]:
    try:
        version = await ModelReader(session).version(spec.model, spec.version)
    except NotFound as error:
        raise InvalidSpec.at("version", msg=error.detail, type="not_found") from None
    try:
        await DatasetReader(session).version(*parse_dataset(version.lineage["dataset"]), files=False)
    except NotFound as error:
        msg = f"compression is measured on the version's own data, but {error.detail}"
        raise InvalidSpec.at("version", msg=msg, type="not_found") from None
    return spec.after
