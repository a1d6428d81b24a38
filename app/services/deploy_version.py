"""Route an endpoint to a version that a job has just made, keeping whatever else the endpoint was given."""

from typing import Any

from app.core.errors import Conflict, InvalidSpec, NotFound
from app.core.resources import Endpoint, ModelVersion
from app.registry.endpoints import EndpointReader, EndpointWriter
from app.registry.session import ReadSession, WriteSession
from app.services.serve_version import best_where_made
from app.specs.endpoints import EndpointSpec, RouteSpec


async def check_deploy(session: ReadSession | WriteSession, model: str, endpoint: str) -> None:
    """InvalidSpec when the endpoint serves another model: a training must not take it over in passing."""
    current = await _current(EndpointReader(session), endpoint)
    if current is not None and current.model != model:
        raise InvalidSpec.at("deploy", "endpoint", msg=_taken(current), type="conflict")


async def deploy_version(session: WriteSession, endpoint: str, version: ModelVersion) -> dict[str, Any]:
    """What the job's result says of it: `endpoint`, or `not_deployed` and why; the version is good either way."""
    endpoints = EndpointWriter(session)
    current = await _current(endpoints, endpoint)
    if current is not None and current.model != version.model:  # it was checked, and changed while the job ran
        return {"not_deployed": _taken(current)}
    routes = [RouteSpec(version=version.version)]
    if current is None:
        spec = EndpointSpec(model=version.model, routes=routes)
    else:
        spec = EndpointSpec.model_validate(current.spec).model_copy(update={"routes": routes})
    variant = best_where_made(version)  # a gateway whose models run elsewhere takes the full one
    row = spec.model_dump(mode="json")
    try:
        await endpoints.put(endpoint, version.model, version.version, variant.name, row, take_over=False)
    except Conflict:  # another job has just made it, for another model
        return {"not_deployed": _taken(await endpoints.get(endpoint))}
    return {"endpoint": endpoint}


async def _current(endpoints: EndpointReader, name: str) -> Endpoint | None:
    try:
        return await endpoints.get(name)
    except NotFound:
        return None


def _taken(endpoint: Endpoint) -> str:
    return (
        f"endpoint '{endpoint.name}' serves model '{endpoint.model}'; choose another endpoint, "
        f"or route it with PUT /api/v1/endpoints/{endpoint.name} once the version is there"
    )
