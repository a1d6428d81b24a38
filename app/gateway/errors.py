"""From the product's errors to HTTP: one table, one body (RFC 9457), for every path below `/api/v1`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.core.errors import AimassError, Conflict, FieldError, NotFound
from app.specs.base import field_error

STATUS: dict[str, int] = {
    "invalid_input": 422,
    "invalid_spec": 422,
    "invalid_data": 422,
    "invalid_tensor": 422,
    "malformed": 400,
    "payload_too_large": 413,
    "not_found": 404,
    "conflict": 409,
    "idempotency_key_reused": 409,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_built": 501,
    "overloaded": 429,
    "unavailable": 503,
    "insufficient_memory": 507,
    "deadline_exceeded": 504,
    "job_failed": 500,
    "job_crashed": 500,
    "job_timed_out": 500,
    "job_memory_exceeded": 500,
    "export_parity_failed": 500,
    "corrupt": 500,
    "misconfigured": 500,
    "internal": 500,
}
PROBLEM_TYPE = "application/problem+json"


class ProblemField(BaseModel):
    """One bad field of a request."""

    loc: list[str | int] = Field(examples=[["params", "num_leaves"]])
    msg: str = Field(examples=["Input should be greater than or equal to 2"])
    type: str = Field(examples=["greater_than_equal"])


class Problem(BaseModel):
    """An error (RFC 9457); `code` is stable, `detail` is for the reader."""

    type: str = Field(examples=["urn:aimass:error:not_found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no data set 'telco@7'"])
    code: str = Field(examples=["not_found"])
    request_id: str
    errors: list[ProblemField] | None = None


def problem_body(status: int, code: str, detail: str, request_id: str, errors: Sequence[FieldError] = ()) -> bytes:
    """The JSON of a problem."""
    body: dict[str, Any] = {
        "type": f"urn:aimass:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    if errors:
        body["errors"] = [{"loc": e.loc, "msg": e.msg, "type": e.type} for e in errors]
    return error_json(body)


def error_json(document: dict[str, Any]) -> bytes:
    r"""The JSON of an error, which may repeat any text of a request.

    JSON can name half a character (`\ud800`), but no bytes can hold it: it is told as those six letters.
    """
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:
        return orjson.dumps(_in_letters(document))


def _in_letters(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_in_letters(key): _in_letters(item) for key, item in value.items()}
    return [_in_letters(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def about(*loc: str | int) -> Iterator[None]:
    """What is missing or in conflict inside is in this field of the request, unless the error names one itself."""
    try:
        yield
    except (NotFound, Conflict) as error:
        error.errors = error.errors or (FieldError(loc, error.detail, error.code),)
        raise


def retry_after(wait_s: float) -> str:
    """When to try again, as the header has it: whole seconds, at least one."""
    return str(max(1, math.ceil(wait_s)))


def problem_headers(error: AimassError, status: int) -> dict[str, str]:
    """Headers that belong to an error's status."""
    if status == HTTPStatus.UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    if error.retry_after_s is not None:
        return {"retry-after": retry_after(error.retry_after_s)}
    return {}


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Answer every error of the tree, of validation and of routing in one form."""

    @app.exception_handler(AimassError)
    async def _aimass(request: Request, error: AimassError) -> Response:
        status = STATUS[error.code]
        body = problem_body(status, error.code, error.detail, request.state.request_id, error.errors)
        return Response(body, status, problem_headers(error, status), PROBLEM_TYPE)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        fields = [_request_field(request, e) for e in error.errors()]
        status, code = (400, "malformed") if fields[0].type == "json_invalid" else (422, "invalid_input")
        detail = f"{'.'.join(str(part) for part in fields[0].loc)}: {fields[0].msg}"
        body = problem_body(status, code, detail, request.state.request_id, fields)
        return Response(body, status, media_type=PROBLEM_TYPE)

    @app.exception_handler(HTTPException)
    async def _routing(request: Request, error: HTTPException) -> Response:
        headers, detail = error.headers, str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(sorted(_methods(routers, request)))
            headers, detail = {"allow": allowed}, f"only {allowed} is possible here"
        elif error.status_code == HTTPStatus.BAD_REQUEST:  # what Starlette says of any body that breaks its parser
            detail = "body: cannot be read as JSON; it is nested too deeply or not UTF-8"
        code = _ROUTING_CODES.get(error.status_code, "http_error")
        body = problem_body(error.status_code, code, detail, request.state.request_id)
        return Response(body, error.status_code, headers, PROBLEM_TYPE)


_ROUTING_CODES = {404: "not_found", 405: "method_not_allowed", 400: "malformed"}


def _request_field(request: Request, found: dict[str, Any]) -> FieldError:
    """One entry of FastAPI's errors; the first part of its location says where in the request, such as `body`."""
    if found["type"] == "json_invalid":
        msg = f"is not valid JSON: {found['ctx']['error']} at character {found['loc'][-1]}"
        return FieldError(("body",), msg, "json_invalid")
    if found["loc"] == ("body",) and "json" not in request.headers.get("content-type", "application/json"):
        return FieldError(("Content-Type",), "must be application/json", "content_type")
    return field_error({**found, "loc": found["loc"][1:] or found["loc"]})


def _methods(routers: Sequence[APIRouter], request: Request) -> set[str]:
    """The verbs that the path has, over all of its routes; Starlette names those of the first alone."""
    every = [route for router in routers for route in router.routes]
    same = [route for route in every if route.matches(request.scope)[0] is Match.PARTIAL]
    return {method for route in same for method in getattr(route, "methods", None) or ()}


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 501, 503)
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that an operation can give, besides 401, 403, 422 and 503."""
    return {status: RESPONSES[status] for status in sorted({401, 403, 422, 503, *statuses})}


def document_problems(openapi: dict[str, Any]) -> None:
    """Give every refusal in FastAPI's document its real form, in place: FastAPI knows only `application/json`."""
    problem = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    own = ("#/components/schemas/Problem", "#/components/schemas/HTTPValidationError")
    for item in openapi["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values():
                schema = response.get("content", {}).get("application/json", {}).get("schema", {})
                if schema.get("$ref") in own:
                    response["content"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        openapi["components"]["schemas"].pop(unused, None)
