"""`/api/v1/jobs`, `/api/v1/families`, `/api/v1/workers`."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError

from app.core.errors import InvalidSpec, NotBuilt
from app.core.jobs import JobState
from app.gateway.deps import GatewayDep, IdempotencyKey, PageDep, Reader, Trainer, id_cursor, only_once
from app.gateway.errors import responses
from app.gateway.jobs.events import follow
from app.gateway.jobs.schemas import (
    FamilyOut,
    JobOut,
    LogLineOut,
    LogsOut,
    MetricsOut,
    WorkerOut,
)
from app.gateway.schemas import PageOf
from app.registry.jobs import JobReader
from app.registry.workers import live
from app.services.cancel_job import cancel_job
from app.services.submit_job import retry_job, submit_job
from app.specs.base import field_error
from app.specs.families import families
from app.specs.jobs import NOT_BUILT_KINDS, SUBMITTED, AnyJobSpec, SubmittedSpec

router = APIRouter(prefix="/api/v1", tags=["jobs"])
_SPEC: TypeAdapter[SubmittedSpec] = TypeAdapter(AnyJobSpec)
_TRAIN: dict[str, Any] = {
    "kind": "train",
    "model": "churn",
    "dataset": "telco@1",
    "task": "classification",
    "target": "Churn",
    "family": "gbdt",
    "compress": {"max_metric_drop": 0.01},
    "deploy": {"endpoint": "churn"},
}
_COMPRESS = {"kind": "compress", "model": "churn", "version": 1, "budget": {"max_metric_drop": 0.01}}
_REPRODUCE = {"kind": "reproduce", "model": "churn", "version": 1}
_MEASURE = {"kind": "measure", "model": "churn", "version": 1}
_EVALUATE = {
    "kind": "evaluate",
    "model": "resnet",
    "version": 1,
    "dataset": "flowers@2",
    "mapping": {
        "task": "classification",
        "classes": ["daisy", "rose"],
        "inputs": {"x": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [{"$ref": f"#/components/schemas/{spec.__name__}"} for spec in SUBMITTED.values()]},
                "examples": {
                    example["kind"]: {"summary": f"a {example['kind']} job", "value": example}
                    for example in (_TRAIN, _COMPRESS, _EVALUATE, _MEASURE, _REPRODUCE)
                },
            }
        },
    }
}


@router.post(
    "/jobs", status_code=202, operation_id="jobs_create", responses=responses(400, 409, 501), openapi_extra=_BODY
)
async def create(
    request: Request,
    response: Response,
    state: GatewayDep,
    caller: Trainer,
    key: IdempotencyKey,
    body: Annotated[dict[str, Any], Body()],
) -> JobOut:
    """Queue a job. The whole spec is checked first: against its schema, the family's parameters and the data set."""
    spec = _parse(body)
    job = await submit_job(state.platform, only_once(caller, key, request, body), spec)
    response.headers["location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of(job)


def _parse(body: dict[str, Any]) -> SubmittedSpec:
    kind = body.get("kind")
    if isinstance(kind, str) and kind in NOT_BUILT_KINDS:
        raise NotBuilt(f"jobs of kind '{kind}' are not in this release; this one has: {', '.join(SUBMITTED)}")
    try:
        return _SPEC.validate_python(body, strict=False)
    except ValidationError as error:
        # The first part of a location is the kind that the discriminator chose, not a field of the request.
        found = error.errors(include_url=False)
        errors = [field_error({**e, "loc": e["loc"][1:]}) for e in found]
        where = ".".join(str(part) for part in errors[0].loc)
        raise InvalidSpec(f"{where}: {errors[0].msg}", errors=errors) from None


@router.get("/jobs", operation_id="jobs_list", responses=responses())
async def list_all(
    state: GatewayDep,
    _: Reader,
    page: PageDep,
    job_state: Annotated[JobState | None, Query(alias="state")] = None,
    kind: Annotated[
        Literal["ingest", "train", "compress", "evaluate", "measure", "reproduce", "import"] | None, Query()
    ] = None,
    model: Annotated[str | None, Query(max_length=100)] = None,
) -> PageOf[JobOut]:
    """Jobs, newest first."""
    async with state.platform.database.read() as session:
        found = await JobReader(session).page(page.limit, id_cursor(page), state=job_state, kind=kind, model=model)
    return PageOf(items=[JobOut.of(job) for job in found.items], next_cursor=found.next_cursor)


@router.get("/jobs/{job_id}", operation_id="jobs_get", responses=responses(404))
async def get(job_id: str, state: GatewayDep, _: Reader) -> JobOut:
    """One job."""
    async with state.platform.database.read() as session:
        return JobOut.of(await JobReader(session).get(job_id))


@router.get(
    "/jobs/{job_id}/events",
    operation_id="jobs_events",
    response_class=StreamingResponse,
    responses={
        **responses(404),
        200: {"content": {"text/event-stream": {}}, "description": "`state`, `progress`, `metric` and `log` events"},
    },
)
async def events(
    job_id: str,
    state: GatewayDep,
    _: Reader,
    last_event_id: Annotated[
        int, Header(alias="Last-Event-ID", ge=0, lt=2**63, description="resume after this event")
    ] = 0,
) -> StreamingResponse:
    """Server-Sent Events from the beginning (or after `Last-Event-ID`) until the job ends."""
    async with state.platform.database.read() as session:
        await JobReader(session).get(job_id)
    return StreamingResponse(
        follow(state.platform, job_id, last_event_id),
        media_type="text/event-stream",
        headers={"cache-control": "no-store"},
    )


@router.get("/jobs/{job_id}/logs", operation_id="jobs_logs", responses=responses(404))
async def logs(
    job_id: str, state: GatewayDep, _: Reader, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000
) -> LogsOut:
    """The last lines of the job's log."""
    async with state.platform.database.read() as session:
        jobs = JobReader(session)
        await jobs.get(job_id)
        lines = await jobs.logs(job_id, limit)
    return LogsOut(items=[LogLineOut.model_validate({"at": line.at, **line.data}) for line in lines])


@router.get("/jobs/{job_id}/metrics", operation_id="jobs_metrics", responses=responses(404))
async def metrics(
    job_id: str,
    state: GatewayDep,
    _: Reader,
    name: Annotated[str | None, Query(max_length=100, description="one curve only")] = None,
    points: Annotated[
        int | None, Query(ge=1, le=100_000, description="most points a curve; every n-th is kept")
    ] = None,
) -> MetricsOut:
    """The job's curves."""
    async with state.platform.database.read() as session:
        jobs = JobReader(session)
        await jobs.get(job_id)
        return MetricsOut.of(await jobs.metrics(job_id, name), points)


@router.post("/jobs/{job_id}/cancel", status_code=202, operation_id="jobs_cancel", responses=responses(404))
async def cancel(job_id: str, state: GatewayDep, _: Trainer) -> JobOut:
    """Cancel a job; a job that has ended stays as it is."""
    return JobOut.of(await cancel_job(state.platform, job_id))


@router.post("/jobs/{job_id}/retry", status_code=202, operation_id="jobs_retry", responses=responses(404, 409))
async def retry(
    job_id: str, request: Request, response: Response, state: GatewayDep, caller: Trainer, key: IdempotencyKey
) -> JobOut:
    """Queue a new job like one that has failed or was cancelled."""
    job = await retry_job(state.platform, only_once(caller, key, request, {"retry": job_id}), job_id)
    response.headers["location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of(job)


@router.get("/families", operation_id="families_list", responses=responses())
async def list_families(_: Reader) -> PageOf[FamilyOut]:
    """The installed model families."""
    return PageOf(items=[FamilyOut.of(family) for family in families().values()])


@router.get("/workers", operation_id="workers_list", responses=responses())
async def list_workers(state: GatewayDep, _: Reader) -> PageOf[WorkerOut]:
    """Worker agents seen within a lease."""
    async with state.platform.database.read() as session:
        found = await live(session, state.platform.settings.queue.lease_s)
    return PageOf(items=[WorkerOut.of(worker) for worker in found])
