"""Jobs as the API shows them."""

from typing import Any

from pydantic import BaseModel, Field

from app.core.jobs import Job, MetricPoint, WorkerInfo
from app.gateway.schemas import Timestamp
from app.specs.families import Family


class ProgressOut(BaseModel):
    """How far a job is."""

    fraction: float = Field(description="0 to 1")
    step: str
    eta_s: float | None


class JobErrorOut(BaseModel):
    """Why a job ended badly, or why it is tried again."""

    code: str
    detail: str
    retryable: bool
    errors: list[dict[str, Any]] | None = None


class JobOut(BaseModel):
    """A job."""

    id: str
    kind: str
    state: str = Field(description="`queued`, `running`, `succeeded`, `failed` or `cancelled`")
    priority: int
    progress: ProgressOut
    attempt: int
    worker: str | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    error: JobErrorOut | None
    result: dict[str, Any] | None
    after: list[str]
    spec: dict[str, Any]
    links: dict[str, str]

    @classmethod
    def of(cls, job: Job) -> "JobOut":
        """From the registry's object."""
        here = f"/api/v1/jobs/{job.id}"
        links = {"self": here} | {name: f"{here}/{name}" for name in ("events", "logs", "metrics", "cancel")}
        if job.result and "version" in job.result:
            links["version"] = f"/api/v1/models/{job.result['model']}/versions/{job.result['version']}"
        return cls.model_validate(
            {
                "id": job.id,
                "kind": job.kind,
                "state": job.state,
                "priority": job.priority,
                "progress": {"fraction": job.progress.fraction, "step": job.progress.step, "eta_s": job.progress.eta_s},
                "attempt": job.attempt,
                "worker": job.worker,
                "created_at": job.created_at,
                "started_at": job.started_at,
                "finished_at": job.finished_at,
                "error": job.error,
                "result": job.result,
                "after": list(job.after),
                "spec": job.spec,
                "links": links,
            }
        )


class MetricPointOut(BaseModel):
    """One point of a curve."""

    step: int
    value: float
    at: Timestamp


class MetricsOut(BaseModel):
    """Every curve of a job by name."""

    metrics: dict[str, list[MetricPointOut]]

    @classmethod
    def of(cls, points: list[MetricPoint], most: int | None) -> "MetricsOut":
        """Curves of at most `most` points each: every n-th, and always the last."""
        curves: dict[str, list[MetricPointOut]] = {}
        for p in points:
            curves.setdefault(p.name, []).append(MetricPointOut(step=p.step, value=p.value, at=p.at))
        if most is not None:
            curves = {name: _thin(curve, most) for name, curve in curves.items()}
        return cls(metrics=curves)


def _thin(curve: list[MetricPointOut], most: int) -> list[MetricPointOut]:
    if len(curve) <= most:
        return curve
    step = -(-len(curve) // (most - 1)) if most > 1 else len(curve)
    return [*curve[:-1:step], curve[-1]][-most:] if most > 1 else [curve[-1]]


class LogLineOut(BaseModel):
    """One line of a job's log."""

    at: Timestamp
    level: str
    message: str


class LogsOut(BaseModel):
    """The end of a job's log, oldest line first."""

    items: list[LogLineOut]


class FamilyOut(BaseModel):
    """A model family and the JSON schema of its `params`."""

    name: str
    tasks: list[str]
    data: str
    summary: str
    params: dict[str, Any]

    @classmethod
    def of(cls, family: Family) -> "FamilyOut":
        """From the descriptor."""
        return cls(
            name=family.name, tasks=list(family.tasks), data=family.data, summary=family.summary, params=family.schema()
        )


class WorkerOut(BaseModel):
    """A live worker agent."""

    id: str
    host: str
    device: str
    job: str | None
    started_at: Timestamp
    seen_at: Timestamp

    @classmethod
    def of(cls, worker: WorkerInfo) -> "WorkerOut":
        """From the registry's object."""
        return cls.model_validate(
            {
                "id": worker.id,
                "host": worker.host,
                "device": worker.device,
                "job": worker.job_id,
                "started_at": worker.started_at,
                "seen_at": worker.seen_at,
            }
        )
