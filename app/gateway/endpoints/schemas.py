"""Endpoints as the API shows them."""

from typing import Any

from pydantic import BaseModel, Field

from app.core.resources import Endpoint
from app.gateway.schemas import Timestamp


class EndpointOut(BaseModel):
    """A name that callers predict with."""

    name: str
    model: str
    version: int
    variant: str
    state: str = Field(description="in the gateway that answers: `loading`, `ready`, `unloaded` or `failed`")
    error: str | None = Field(description="why the latest revision could not be loaded; the one before goes on serving")
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
    def of(cls, endpoint: Endpoint, state: tuple[str, str | None]) -> "EndpointOut":
        """From the registry's object and this gateway's state of it."""
        here = f"/api/v1/endpoints/{endpoint.name}"
        return cls.model_validate(
            {
                "name": endpoint.name,
                "model": endpoint.model,
                "version": endpoint.version,
                "variant": endpoint.variant,
                "state": state[0],
                "error": state[1],
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
