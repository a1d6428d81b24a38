"""KServe's V1 protocol in front of the same models."""

import json
import threading
from typing import Any

import pytest

from app.gateway.predict import v1
from app.serving.host import Host
from tests.support.serving import GOOD, PREDICT

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


async def test_another_method_wakes_no_model(call: Any, host: Host, monkeypatch: pytest.MonkeyPatch):
    async def reach(*_: Any) -> Any:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(host, "get", lambda *_: None)
    monkeypatch.setattr(host, "reach", reach)
    assert (await call("GET", "/v1/models/churn:predict")).status == 405


async def test_keys(call: Any):
    assert (await call("POST", "/v1/models/churn:predict", BODY, key="reader")).status == 403
    assert (await call("GET", "/v1/models/churn", key="reader")).status == 200
    assert (await call("GET", "/v1/models", key="nobody")).status == 401


async def test_other_paths_are_not_taken(call: Any):
    assert (await call("GET", "/v1/other")).status == 299


@pytest.mark.parametrize("name", ["serving_default", "", 'a\\"b, "instances": [] }', "é" * 100])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("indent", [None, 4])
async def test_the_signature_name_of_tensorflows_clients_is_ignored(call: Any, name: str, indent: Any, *, first: bool):
    fields: dict[str, Any] = {"signature_name": name, "instances": [GOOD]}
    sent = json.dumps(fields if first else dict(reversed(fields.items())), indent=indent).encode()
    reply = await call("POST", "/v1/models/churn:predict", sent)
    assert (reply.status, len(reply.json()["predictions"])) == (200, 1)


@pytest.mark.parametrize(("rows", "inline"), [(1, True), (400, False)])
@pytest.mark.parametrize("first", [True, False])
async def test_it_is_taken_out_of_a_large_body_in_a_thread(
    call: Any, host: Host, monkeypatch: pytest.MonkeyPatch, rows: int, *, first: bool, inline: bool
):
    seen: list[bool] = []
    bare = v1._without_signature

    def watched(body: bytes) -> bytes:
        seen.append(threading.current_thread() is threading.main_thread())
        return bare(body)

    monkeypatch.setattr(v1, "_without_signature", watched)
    monkeypatch.setattr(host.lookup("churn").instances, "inline_bytes", 1000)
    fields: dict[str, Any] = {"signature_name": "serving_default", "instances": [GOOD] * rows}
    sent = json.dumps(fields if first else dict(reversed(fields.items()))).encode()
    reply = await call("POST", "/v1/models/churn:predict", sent)
    assert (reply.status, len(reply.json()["predictions"]), seen) == (200, rows, [inline])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (PREDICT, {"signature_name": "serving_default", "instances": [GOOD]}),
        ("/v1/models/churn:predict", {"signature_name": 1, "instances": [GOOD]}),
        ("/v1/models/churn:predict", {"instances": [GOOD], "signature_name": None}),
        (
            "/v1/models/churn:predict",
            {"instances": [GOOD | {"colour": ',"signature_name":"x"}', "signature_name": "x"}]},
        ),
        ("/v1/models/churn:predict", {"signature_name": "serving_default"}),
    ],
)
async def test_a_signature_name_elsewhere_is_an_unknown_field(call: Any, path: str, fields: dict[str, Any]):
    assert (await call("POST", path, json.dumps(fields).encode())).status in {400, 422}
