"""The body of `PUT /api/v1/endpoints/{name}`."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from app.core.errors import InvalidSpec
from app.specs.base import Name, Spec, VersionNumber

_ALL = 100  # percent
RESERVED = frozenset({"stats"})  # GET /v2/models/stats is the statistics of all models


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"'{name}' is reserved by the Open Inference Protocol; choose another name")
    return name


EndpointName = Annotated[Name, AfterValidator(_not_reserved)]


class RouteSpec(Spec):
    """Which version answers. Exactly one of `version` and `alias`."""

    version: VersionNumber | None = None
    alias: Name | None = None
    variant: Annotated[str | None, Field(description="null: the fastest accepted variant")] = None
    weight: Annotated[int, Field(ge=1, le=_ALL, description="share of the traffic, percent")] = _ALL

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.version is None) == (self.alias is None):
            raise ValueError("give either version or alias")
        return self


class BatchingSpec(Spec):
    """Batching of one endpoint. By default a batch is what arrived while the last one ran: nobody waits for company."""

    max_batch: Annotated[
        int | None, Field(ge=1, le=65_536, description="rows of one run; null: the gateway's setting")
    ] = None
    max_queue: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="rows that may wait before 429; null: the gateway's setting")
    ] = None
    max_delay_ms: Annotated[float, Field(ge=0, le=1000, description="longest wait for company")] = 0.0


class SloSpec(Spec):
    """What the endpoint promises. Requests that it could not answer in time get 429 at once."""

    p95_ms: Annotated[
        float,
        Field(gt=0, le=3_600_000, description="95 of 100 admitted requests are answered within, from queue to result"),
    ]


class CacheSpec(Spec):
    """Answers kept for requests with the very same tensors; identical requests at the same time share one run."""

    max_mb: Annotated[int, Field(ge=1, le=65_536, description="memory for answers in each gateway, MiB")] = 64


class EndpointSpec(Spec):
    """Where an endpoint's traffic goes and how it is batched."""

    model: Name
    routes: Annotated[list[RouteSpec], Field(min_length=1, max_length=10)]
    batching: BatchingSpec = BatchingSpec()
    slo: SloSpec | None = None
    cache: CacheSpec | None = None
    placement: Literal["gateway"] = "gateway"
    loaded: Annotated[bool, Field(description="false: the endpoint stays known, and its memory is freed")] = True

    def check_new(self) -> None:
        """InvalidSpec for what fields say against each other; not as they are read, for endpoints of before go on."""
        if self.slo is not None and self.batching.max_delay_ms >= self.slo.p95_ms:
            msg = f"must be below slo.p95_ms ({self.slo.p95_ms:g}), which it would use up; leave it out or lower it"
            raise InvalidSpec.at("batching", "max_delay_ms", msg=msg)
        if len(self.routes) == 1 and self.routes[0].weight != _ALL:
            msg = "a single route has all of the traffic; leave it out or make it 100"
            raise InvalidSpec.at("routes", 0, "weight", msg=msg)
