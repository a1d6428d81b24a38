"""Endpoints as the API shows them."""

from typing import Any

from pydantic import BaseModel, Field

from app.core.resources import Endpoint
from app.gateway.processes import Standing
from app.gateway.schemas import Timestamp


class ProcessesOut(BaseModel):
    """How many gateway processes there are, and how many of them have made what of the latest revision."""

    total: int = Field(description="gateway processes that there are")
    applied: int = Field(description="of them have made the latest revision their own")
    loading: int = Field(description="still have the revision before, if any")
    failed: int = Field(description="could not load it, and go on with the one before, if any")


class EndpointOut(BaseModel):
    """A name that callers predict with."""

    name: str = Field(description="of the endpoint")
    model: str = Field(description="that it serves")
    version: int = Field(description="that it serves, of its first route")
    variant: str = Field(description="that it serves, of its first route")
    state: str = Field(description="of the worst gateway process: `failed`, `loading`, or else `ready` or `unloaded`")
    error: str | None = Field(description="why the latest revision could not be loaded; the one before goes on serving")
    processes: ProcessesOut = Field(description="how far gateway processes are with the latest revision")
    routes: list[dict[str, Any]] = Field(description="versions and their shares of the traffic")
    batching: dict[str, Any] = Field(description="how rows of many callers share a run")
    slo: dict[str, Any] | None = Field(None, description="what it promises, if anything")
    cache: dict[str, Any] | None = Field(None, description="of answers, if there is one")
    placement: str = Field(description="where it runs")
    revision: int = Field(description="counts from 1; each change makes another")
    created_at: Timestamp = Field(description="when it was made")
    updated_at: Timestamp = Field(description="when it was changed last")
    links: dict[str, str] = Field(description="addresses of the endpoint and what it serves")

    @classmethod
    def of(cls, endpoint: Endpoint, standing: Standing) -> "EndpointOut":
        """From the registry's object and what the gateway processes have made of it."""
        here = f"/api/v1/endpoints/{endpoint.name}"
        return cls.model_validate(
            {
                "name": endpoint.name,
                "model": endpoint.model,
                "version": endpoint.version,
                "variant": endpoint.variant,
                "state": standing.state,
                "error": standing.error,
                "processes": standing.processes,
                "routes": endpoint.spec["routes"],
                "batching": endpoint.spec.get("batching", {}),
                "slo": endpoint.spec.get("slo"),
                "cache": endpoint.spec.get("cache"),
                "placement": endpoint.spec.get("placement", "gateway"),
                "revision": endpoint.revision,
                "created_at": endpoint.created_at,
                "updated_at": endpoint.updated_at,
                "links": {
                    "self": here,
                    "predict": f"{here}/predict",
                    "oip": f"/v2/models/{endpoint.name}",
                    "stats": f"{here}/stats",
                },
            }
        )


class PhaseOut(BaseModel):
    """How long one phase of a prediction took since the model was loaded here."""

    count: int = Field(description="how often it was timed")
    mean_ms: float = Field(description="milliseconds, on average")


class StatsOut(BaseModel):
    """What this gateway has counted for the served version since it was loaded."""

    endpoint: str = Field(description="that is told of")
    version: int = Field(description="that it serves")
    variant: str = Field(description="that it serves")
    requests: dict[str, int] = Field(description="by HTTP status")
    phases: dict[str, PhaseOut] = Field(description="times by phase of a prediction")
    batches: int = Field(description="runs of the model")
    rows: int = Field(description="that were predicted")
    queued_rows: int = Field(description="that wait now")
