"""Jobs as the API shows them."""

from typing import Any

from pydantic import BaseModel, Field

from app.core.jobs import Job, MetricPoint, WorkerInfo
from app.gateway.schemas import Timestamp
from app.specs.families import Family


class ProgressOut(BaseModel):
    """How far a job is."""

    fraction: float = Field(description="0 to 1")
    step: str = Field(description="what the job does now")
    eta_s: float | None = Field(description="seconds left, if known")


class JobErrorOut(BaseModel):
    """Why a job ended badly, or why it is tried again."""

    code: str = Field(description="stable, for programs")
    detail: str = Field(description="what went wrong and what to do, for people")
    retryable: bool = Field(description="whether the same job may succeed another time")
    errors: list[dict[str, Any]] | None = Field(
        None, description="fields that are at fault, each with `loc`, `msg` and `type`"
    )


class JobOut(BaseModel):
    """A job."""

    id: str = Field(description="of the job")
    kind: str = Field(description="`train`, `compress`, `evaluate` and so on")
    state: str = Field(description="`queued`, `running`, `succeeded`, `failed` or `cancelled`")
    priority: int = Field(description="as it was asked for")
    progress: ProgressOut = Field(description="of the latest attempt")
    attempt: int = Field(description="counts from 1; a worker's death begins another")
    worker: str | None = Field(description="that runs it or ran it; null while it waits")
    created_at: Timestamp = Field(description="when it was queued")
    started_at: Timestamp | None = Field(description="when its latest attempt began")
    finished_at: Timestamp | None = Field(description="when it ended")
    error: JobErrorOut | None = Field(description="why it failed")
    result: dict[str, Any] | None = Field(description="of a job that succeeded; what it holds depends on the kind")
    after: list[str] = Field(description="ids of jobs that have to end first")
    spec: dict[str, Any] = Field(description="as it was accepted, with defaults")
    links: dict[str, str] = Field(description="addresses of the job and what belongs to it")

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

    step: int = Field(description="epoch, round or optimizer step")
    value: float = Field(description="of the metric")
    at: Timestamp = Field(description="when it was measured")


class MetricsOut(BaseModel):
    """Every curve of a job by name."""

    metrics: dict[str, list[MetricPointOut]] = Field(description="points by metric, in their order")

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

    at: Timestamp = Field(description="when it was written")
    level: str = Field(description="`info`, `warning` and so on")
    message: str = Field(description="for people")


class LogsOut(BaseModel):
    """The end of a job's log, oldest line first."""

    items: list[LogLineOut] = Field(description="lines in their order")


class FamilyOut(BaseModel):
    """A model family and the JSON schema of its `params`."""

    name: str = Field(description="as `family` of a train job")
    tasks: list[str] = Field(description="that it learns")
    data: str = Field(description="that it learns from: `tabular`, `text` or `image`")
    summary: str = Field(description="in a few words")
    params: dict[str, Any] = Field(description="JSON schema of `params` of a train job")

    @classmethod
    def of(cls, family: Family) -> "FamilyOut":
        """From the descriptor."""
        return cls(
            name=family.name, tasks=list(family.tasks), data=family.data, summary=family.summary, params=family.schema()
        )


class WorkerOut(BaseModel):
    """A live worker agent."""

    id: str = Field(description="of the worker")
    host: str = Field(description="that it runs on")
    device: str = Field(description="that it trains on")
    job: str | None = Field(description="id of the one it runs, if any")
    started_at: Timestamp = Field(description="when it began")
    seen_at: Timestamp = Field(description="when it was last heard of")

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
