"""KServe's V1 protocol in front of the same models."""

import json
from typing import Any

import pytest

ROW = {"age": 41, "charge €": 2.5, "member": True, "colour": "red"}
BODY = json.dumps({"instances": [ROW, ROW]}).encode()


@pytest.mark.parametrize("path", ["/v1/models/churn:predict", "/v1/models/churn/versions/3:predict"])
async def test_predict(call: Any, path: str):
    reply = await call("POST", path, BODY)
    assert reply.status == 200
    answer = reply.json()
    assert set(answer) == {"predictions"}
    assert len(answer["predictions"]) == 2
    other = await call("POST", "/api/v1/endpoints/churn/predict", BODY)
    assert other.json()["predictions"] == answer["predictions"]


async def test_lists_and_readiness(call: Any):
    assert (await call("GET", "/v1/models")).json() == {"models": ["bright", "churn"]}
    assert (await call("GET", "/v1/models/churn")).json() == {"name": "churn", "ready": True}


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("POST", "/v1/models/nope:predict", BODY, 404),
        ("POST", "/v1/models/churn/versions/4:predict", BODY, 404),
        ("GET", "/v1/models/nope", b"", 404),
        ("GET", "/v1/models/churn:predict", b"", 405),
        ("POST", "/v1/models/churn", b"", 405),
        ("GET", "/v1/models/churn:explain", b"", 404),
        ("POST", "/v1/models/churn:predict", b"{", 400),
        ("POST", "/v1/models/churn:predict", b'{"instances": [{"age": "x"}]}', 400),
        ("POST", "/v1/models/churn:predict", b'{"inputs": []}', 400),
    ],
)
async def test_errors_have_the_protocols_form(call: Any, verb: str, path: str, body: bytes, status: int):
    reply = await call(verb, path, body)
    assert (reply.status, list(reply.json())) == (status, ["error"])


async def test_keys(call: Any):
    assert (await call("POST", "/v1/models/churn:predict", BODY, key="reader")).status == 403
    assert (await call("GET", "/v1/models/churn", key="reader")).status == 200
    assert (await call("GET", "/v1/models", key="nobody")).status == 401


async def test_other_paths_are_not_taken(call: Any):
    assert (await call("GET", "/v1/other")).status == 299
