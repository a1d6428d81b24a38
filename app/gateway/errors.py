"""From the product's errors to HTTP: one table, one body (RFC 9457), for every path below `/api/v1`."""

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.core.errors import AimassError, FieldError

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
    return orjson.dumps(body)


def problem_headers(error: AimassError, status: int) -> dict[str, str]:
    """Headers that belong to an error's status."""
    if status == HTTPStatus.UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    if error.retry_after_s is not None:
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return {}


def install(app: FastAPI) -> None:
    """Answer every error of the tree, of validation and of routing in one form."""

    @app.exception_handler(AimassError)
    async def _aimass(request: Request, error: AimassError) -> Response:
        status = STATUS[error.code]
        body = problem_body(status, error.code, error.detail, request.state.request_id, error.errors)
        return Response(body, status, problem_headers(error, status), PROBLEM_TYPE)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        fields = [FieldError(tuple(e["loc"][1:] or e["loc"]), e["msg"], e["type"]) for e in found]
        malformed = any(e["type"] == "json_invalid" for e in found)
        status, code = (400, "malformed") if malformed else (422, "invalid_input")
        first = fields[0]
        where = ".".join(str(part) for part in first.loc)
        detail = "the body is not valid JSON" if malformed else f"{where}: {first.msg}"
        return Response(
            problem_body(status, code, detail, request.state.request_id, fields), status, media_type=PROBLEM_TYPE
        )

    @app.exception_handler(HTTPException)
    async def _routing(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed", 400: "malformed"}
        detail = (
            f"there is nothing at {request.url.path}"
            if error.status_code == HTTPStatus.NOT_FOUND
            else str(error.detail)
        )
        code = codes.get(error.status_code, "http_error")
        body = problem_body(error.status_code, code, detail, request.state.request_id)
        return Response(body, error.status_code, error.headers, PROBLEM_TYPE)


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase, "content": {PROBLEM_TYPE: {}}}
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 501, 503)
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that an operation can give, besides 401, 403 and 503."""
    return {status: RESPONSES[status] for status in sorted({401, 403, 503, *statuses})}
