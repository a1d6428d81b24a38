"""`/api/v1/endpoints` except prediction, which the dispatcher answers in front of FastAPI."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import ValidationError

from app.core.errors import InvalidSpec, NotBuilt, NotFound
from app.core.resources import ModelVersion
from app.gateway.deps import Gateway, GatewayDep, PageDep, Reader, Trainer, name_cursor
from app.gateway.endpoints.schemas import EndpointOut, PhaseOut, StatsOut
from app.gateway.errors import about, responses
from app.gateway.schemas import PageOf
from app.registry.endpoints import EndpointReader
from app.registry.models import ModelReader
from app.services.serve_version import choose_variant
from app.specs.base import field_error
from app.specs.endpoints import EndpointName, EndpointSpec, RouteSpec
from app.telemetry.metrics import PHASES

router = APIRouter(prefix="/api/v1/endpoints", tags=["endpoints"])
LATER = ("shadow", "replicas")
_NOT_EVERYWHERE = (
    "The change is made and holds in the gateway process that answers, but not (yet) in every other one: "
    "see `state`, `error` and `processes`"
)
_EXAMPLE: dict[str, Any] = {"model": "churn", "routes": [{"version": 1}]}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EndpointSpec"}, "example": _EXAMPLE}},
    }
}


@router.put(
    "/{name}",
    operation_id="endpoints_put",
    responses={
        **responses(400, 404, 409, 501),
        201: {"model": EndpointOut, "description": "Created"},
        202: {"model": EndpointOut, "description": _NOT_EVERYWHERE},
    },
    openapi_extra=_BODY,
)
async def put(
    name: EndpointName, response: Response, state: GatewayDep, _: Trainer, body: Annotated[dict[str, Any], Body()]
) -> EndpointOut:
    """Route an endpoint to a model version. Answers once it is loaded and proven; until then nothing changes.

    200 and 201 say that every gateway process serves it.
    """
    spec = _parse(body)
    route = spec.routes[0]
    version = await _version(state, spec.model, route)
    with about(*_target(route)):  # it may be deleted meanwhile
        change = await state.loader.put(name, version, route.variant, spec)
    done = HTTPStatus.CREATED if change.new else HTTPStatus.OK
    response.status_code = done if change.standing.applied else HTTPStatus.ACCEPTED
    return EndpointOut.of(change.endpoint, change.standing)


async def _version(state: Gateway, model: str, route: RouteSpec) -> ModelVersion:
    """The version that the route names. NotFound for a model, version or alias and Conflict for a variant name it."""
    async with state.platform.database.read() as session:
        models = ModelReader(session)
        try:
            with about(*_target(route)):
                number = route.version or await models.resolve_alias(model, route.alias or "")
                version = await models.version(model, number)
        except NotFound:
            with about("model"):
                await models.get(model)
            raise
    with about("routes", 0, "variant"):
        choose_variant(version, route.variant, state.platform.settings.serving.provider)
    return version


def _target(route: RouteSpec) -> tuple[str | int, ...]:
    return "routes", 0, "alias" if route.version is None else "version"


def _parse(body: dict[str, Any]) -> EndpointSpec:
    later = [key for key in LATER if body.get(key) is not None]
    slo = body.get("slo")
    if isinstance(slo, dict) and slo.get("error_rate") is not None:
        later.append("slo.error_rate")
    if body.get("placement") == "pool":
        later.append("placement: pool")
    if isinstance(body.get("routes"), list) and len(body["routes"]) > 1:
        later.append("several routes")
    if later:
        raise NotBuilt(f"{', '.join(later)}: not in this release; an endpoint routes to one version in the gateway")
    try:
        spec = EndpointSpec.model_validate(body)
    except ValidationError as error:
        errors = [field_error(e) for e in error.errors(include_url=False)]
        where = ".".join(str(part) for part in errors[0].loc) or "body"
        raise InvalidSpec(f"{where}: {errors[0].msg}", errors=errors) from None
    spec.check_new()
    return spec


@router.get("", operation_id="endpoints_list", responses=responses())
async def list_all(state: GatewayDep, _: Reader, page: PageDep) -> PageOf[EndpointOut]:
    """Endpoints by name."""
    async with state.platform.database.read() as session:
        found = await EndpointReader(session).page(page.limit, name_cursor(page))
    standings = await state.loader.standings.of(found.items)
    return PageOf(items=list(map(EndpointOut.of, found.items, standings)), next_cursor=found.next_cursor)


@router.get("/{name}", operation_id="endpoints_get", responses=responses(404))
async def get(name: str, state: GatewayDep, _: Reader) -> EndpointOut:
    """One endpoint, and whether every gateway process has loaded it."""
    async with state.platform.database.read() as session:
        endpoint = await EndpointReader(session).get(name)
    [standing] = await state.loader.standings.of([endpoint])
    return EndpointOut.of(endpoint, standing)


@router.delete(
    "/{name}",
    status_code=204,
    operation_id="endpoints_delete",
    responses={**responses(404), 202: {"description": "Deleted; a gateway process still answers for it"}},
)
async def delete(name: str, state: GatewayDep, _: Trainer) -> Response:
    """Stop serving, in every gateway process; requests under way are finished."""
    gone = await state.loader.delete(name)
    return Response(status_code=HTTPStatus.NO_CONTENT if gone else HTTPStatus.ACCEPTED)


@router.get("/{name}/stats", operation_id="endpoints_stats", responses=responses(404))
async def stats(name: str, state: GatewayDep, _: Reader) -> StatsOut:
    """Counts and mean phase times of the served version in the gateway that answers."""
    about = state.host.about(name)
    counted = about.metrics
    phases = {
        phase: PhaseOut(count=sum(h.counts), mean_ms=1e3 * h.total / max(1, sum(h.counts)))
        for phase, h in zip(PHASES, counted.phases, strict=True)
    }
    return StatsOut(
        endpoint=name,
        version=about.source.version,
        variant=about.source.variant,
        requests={str(status): count for status, count in sorted(counted.statuses.items())},
        phases=phases,
        batches=sum(counted.batch_rows.counts),
        rows=int(counted.batch_rows.total),
        queued_rows=counted.queue_rows,
    )
