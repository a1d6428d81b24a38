"""`/livez`, `/readyz`, `/metrics`: open, and true."""

import asyncio
from collections.abc import Awaitable
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from app.core.errors import AimassError
from app.gateway.deps import Gateway, GatewayDep
from app.services.check_platform import CHECKS

router = APIRouter(tags=["probes"])
CHECK_S = 2.0


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok", "loading"] = Field(description="`loading` until the endpoints of the start are loaded")


class Readiness(BaseModel):
    """What the gateway needs, and the state of each."""

    status: str = Field(description="`ok`; `degraded`: serving, but not every endpoint; or `unready`")
    checks: dict[str, str] = Field(
        description="`ok`, or what is wrong",
        examples=[{"registry": "ok", "redis": "ok", "store": "ok", "endpoints": "ok"}],
    )


@router.head("/livez", include_in_schema=False)  # the server leaves out the body, here and below
@router.get("/livez", operation_id="probes_live")
async def livez(state: GatewayDep) -> Alive:
    """200 while the process can answer at all, also while it loads its endpoints."""
    return Alive(status="ok" if state.loader.synced else "loading")


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    operation_id="probes_ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Unready"}},
)
async def readyz(state: GatewayDep) -> JSONResponse:
    """200 when registry, Redis and store answer and endpoints were loaded; otherwise 503 that names what is not.

    An endpoint that cannot be loaded, or that was taken out, is named and makes the status `degraded`: it must not take
    the others along.
    """
    names = list(CHECKS)
    results = await asyncio.gather(*(_checked(CHECKS[name](state.platform)) for name in names))
    checks = dict(zip(names, results, strict=True)) | {"endpoints": _endpoints(state)}
    ready = all(result == "ok" for result in results) and state.loader.synced
    status = ("ok" if checks["endpoints"] == "ok" else "degraded") if ready else "unready"
    headers = {} if ready else {"retry-after": "2"}
    return JSONResponse({"status": status, "checks": checks}, 200 if ready else 503, headers)


async def _checked(check: Awaitable[None]) -> str:
    try:
        await asyncio.wait_for(check, CHECK_S)
    except AimassError as error:
        return error.detail
    except TimeoutError:
        return f"no answer within {CHECK_S:g} s"
    return "ok"


def _endpoints(state: Gateway) -> str:
    if not state.loader.synced:
        missing = state.loader.standings.missing()
        return f"not loaded yet: {', '.join(missing)}" if missing else "endpoints have not been loaded yet"
    failures = state.loader.standings.failures() | state.host.outages()
    return "; ".join(f"{name}: {why}" for name, why in sorted(failures.items())) or "ok"


@router.get("/metrics", operation_id="probes_metrics", response_class=Response)
async def metrics(state: GatewayDep, of: Literal["all", "this"] = "all") -> Response:
    """Prometheus metrics of every gateway process of the launcher, labelled `process`; `of=this`: of this one alone.

    A process that does not answer is told by `aimass_gateway_up`.
    """
    if of == "this":
        return Response(state.exposition.own(), media_type=CONTENT_TYPE_LATEST)
    found = await state.exposition.all() + await state.job_metrics.exposition()
    return Response(found, media_type=CONTENT_TYPE_LATEST)
