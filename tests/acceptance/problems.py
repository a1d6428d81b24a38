"""What every refusal of `/api/v1` must look like."""

from typing import Any

import httpx

ID = "acceptance-test-1"
FIELDS = {"type", "title", "status", "detail", "code", "request_id"}


def check_problem(
    answer: httpx.Response, status: int, code: str, loc: list[str | int] | None = None, word: str = ""
) -> dict[str, Any]:
    """The body of an RFC 9457 problem; `loc` must be among its bad fields, `word` in what a person reads."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    body: dict[str, Any] = answer.json()
    assert set(body) - {"errors"} == FIELDS
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:aimass:error:{code}")
    assert body["title"]
    assert answer.headers["x-request-id"] == body["request_id"]
    sent = answer.request.headers.get("x-request-id")
    assert sent is None or sent == body["request_id"]
    errors = body.get("errors", [])
    assert all(set(error) == {"loc", "msg", "type"} and error["msg"] and error["type"] for error in errors)
    if loc is not None:
        assert loc in [error["loc"] for error in errors], body
    said = " ".join([body["detail"], *(error["msg"] for error in errors)])
    assert word in said, said
    return body
