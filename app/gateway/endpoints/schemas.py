"""Endpoints as the API shows them."""

from typing import Any

from pydantic import BaseModel, Field

from app.core.resources import Endpoint
from app.gateway.processes import Standing
from app.gateway.schemas import Timestamp


class ProcessesOut(BaseModel):
    """How many gateway processes there are, and how many of them have made what of the latest revision."""

    total: int
    applied: int
    loading: int = Field(description="still have the revision before, if any")
    failed: int = Field(description="could not load it, and go on with the one before, if any")


class EndpointOut(BaseModel):
    """A name that callers predict with."""

    name: str
    model: str
    version: int
    variant: str
    state: str = Field(description="of the worst gateway process: `failed`, `loading`, or else `ready` or `unloaded`")
    error: str | None = Field(description="why the latest revision could not be loaded; the one before goes on serving")
    processes: ProcessesOut
    routes: list[dict[str, Any]]
    batching: dict[str, Any]
    slo: dict[str, Any] | None = None
    cache: dict[str, Any] | None = None
    placement: str
    revision: int
    created_at: Timestamp
    updated_at: Timestamp
    links: dict[str, str]

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

    count: int
    mean_ms: float


class StatsOut(BaseModel):
    """What this gateway has counted for the served version since it was loaded."""

    endpoint: str
    version: int
    variant: str
    requests: dict[str, int] = Field(description="by HTTP status")
    phases: dict[str, PhaseOut]
    batches: int
    rows: int
    queued_rows: int
