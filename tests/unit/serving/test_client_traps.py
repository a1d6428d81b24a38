"""What clients of the Open Inference Protocol do that breaks a plain web server; each has a test that names it.

 1. They send no Content-Type, or any.                 here, and in tests/integration/test_oip.py
 2. They send the header length always, or never.      test_oip_codec.py
 3. Tensors are binary unless they say otherwise.      test_oip_codec.py, test_oip.py
 4. Any status but 200 is an error, redirects too.     here
 5. An error must be JSON with the key `error`.        here, test_oip_paths.py, test_oip.py
 6. Answers are reshaped and cast by what they say.    here, test_oip.py
 7. Versions are text, and `/` in names is not quoted. here, test_oip_paths.py
 8. Both ways may be compressed, JSON and tensors.     here, test_oip.py
 9. Some parameters are reserved.                      test_oip_codec.py, test_oip_paths.py, test_oip_grpc.py
10. One connection is kept, and nothing is retried.    test_oip.py
11. The body of an index request may be empty.         here
12. `config` of a load request is text.                here, test_oip.py
13. C++ asks for liveness when it means readiness.     test_dispatcher.py
"""

import gzip
import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from tritonclient.http import InferResult

from app.core.signature import Signature, Tensor
from app.serving.effort import Wanted
from app.serving.host import Host
from app.serving.oip import OipCodec
from app.specs.endpoints import EndpointName
from tests.support.serving import COLOUR, INFER, NUMERIC, infer

LENGTH = "inference-header-content-length"
ALL_KEY = "fresh"  # may do everything


@pytest.mark.parametrize(
    "kind",
    [None, "", "application/json", "application/octet-stream", "text/plain", "application/x-www-form-urlencoded"],
)
@pytest.mark.parametrize("binary", [True, False])
async def test_trap_1_the_content_type_is_not_looked_at(call: Any, kind: str | None, *, binary: bool):
    raw, headers = infer(), {} if kind is None else {"content-type": kind}
    if binary:
        numeric = {key: value for key, value in NUMERIC.items() if key != "data"}
        header = infer(numeric | {"parameters": {"binary_data_size": 12}}, COLOUR)
        raw = header + np.array(NUMERIC["data"], "<f4").tobytes()
        headers[LENGTH] = str(len(header))
    reply = await call("POST", INFER, raw, headers)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json()["outputs"][0]["data"] == [pytest.approx(0.94), pytest.approx(0.06)]


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("GET", "/v2", b""),
        ("GET", "/v2/health/live", b""),
        ("GET", "/v2/health/ready", b""),
        ("GET", "/v2/models/stats", b""),
        ("POST", "/v2/repository/index", b""),
        ("POST", "/v2/repository/models/churn/load", b"{}"),
        ("POST", "/v2/repository/models/bright/unload", b'{"parameters":{"unload_dependents":false}}'),
        ("POST", INFER, infer()),
        *(("GET", f"/v2/models/churn{rest}", b"") for rest in ("", "/ready", "/config", "/stats", "/versions/3")),
    ],
)
async def test_trap_4_success_is_200_and_nothing_is_redirected(call: Any, verb: str, path: str, body: bytes):
    assert (await call(verb, path, body, key=ALL_KEY)).status == 200
    slashed = await call(verb, f"{path}/", body, key=ALL_KEY)
    assert (slashed.status, list(slashed.json())) == (404, ["error"])


@pytest.mark.parametrize(
    ("path", "raw", "headers", "key", "status"),
    [
        (INFER, b"{", {}, "good", 400),
        (INFER, infer(), {"content-encoding": "br"}, "good", 400),
        (INFER, infer(), {LENGTH: "-1"}, "good", 400),
        (INFER, infer(), {"x-request-timeout-ms": "soon"}, "good", 400),
        (INFER, infer(), {}, None, 401),
        (INFER, infer(), {}, "reader", 403),
        ("/v2/models/no pe/infer", infer(), {}, "good", 404),
        (INFER, b" " * (1 << 20) + b"{}", {}, "good", 413),
        (INFER, infer(parameters={"sequence_id": 1}), {}, "good", 501),
        (INFER, infer(), {"x-request-timeout-ms": "0"}, "good", 504),
    ],
)
async def test_trap_5_every_error_is_json_with_a_text(
    call: Any, path: str, raw: bytes, headers: dict[str, str], key: str | None, status: int
):
    reply = await call("POST", path, raw, headers, key=key)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert list(reply.json()) == ["error"]
    assert reply.json()["error"]


async def test_trap_5_a_full_queue_and_a_defect_are_json_with_a_text(call: Any, host: Host):
    served = host.lookup("churn")
    served._batcher._rows = 512
    full = await call("POST", INFER, infer())
    served._batcher._rows = 0

    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    served.infer = broken  # type: ignore[method-assign]
    defect = await call("POST", INFER, infer())
    assert [(reply.status, list(reply.json())) for reply in (full, defect)] == [(429, ["error"]), (500, ["error"])]


ARRAYS = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "INT64": np.array([[-(2**63)], [2**63 - 1]]),
    "UINT64": np.array([2**64 - 1], np.uint64),
    "FP16": np.array([0.5, -2], np.float16),
    "FP32": np.array([[[1.5], [np.nan]]], np.float32),
    "FP64": np.array([1e300, -0.1]),
    "BYTES": np.array([["né"], [""]], object),
}


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(datatype, binary) for datatype in ARRAYS for binary in (True, False) if binary or datatype != "FP16"],
)
def test_trap_6_the_client_gets_the_array_back_in_its_shape_and_type(datatype: str, *, empty: bool, binary: bool):
    """Without any binary bytes there is no header, and the client makes an empty array of the shape."""
    array = ARRAYS[datatype][:0] if empty else ARRAYS[datatype]
    tensor = Tensor("y", datatype, (-1, *array.shape[1:]))  # type: ignore[arg-type]
    codec = OipCodec("m", Signature("inference", (Tensor("x", "FP32", (-1, 1)),), (tensor,), ()))
    encoded = codec.encode((array,), [Wanted(0, binary=binary)], "1", None)
    assert (encoded.header_length is None) == (empty or not binary)
    got = InferResult.from_response_body(encoded.body, header_length=encoded.header_length).as_numpy("y")
    assert got.shape == array.shape
    assert datatype == "BYTES" or got.dtype == array.dtype
    plain = [text.decode() if isinstance(text, bytes) else text for text in got.ravel().tolist()]
    np.testing.assert_array_equal(plain, array.ravel().tolist())


@pytest.mark.parametrize("name", ["a/b", "a/versions/1", "/", "a:b", "a b", "é"])
async def test_trap_7_no_endpoint_has_a_name_that_a_path_could_not_hold(call: Any, name: str):
    with pytest.raises(ValidationError):
        TypeAdapter(EndpointName).validate_python(name)
    reply = await call("POST", f"/v2/models/{name}/infer", infer())
    assert (reply.status, list(reply.json())) == (404, ["error"])


async def test_trap_7_a_version_is_text(call: Any):
    found = {path: (await call("GET", f"/v2/models/churn{path}")).json() for path in ("", "/stats")}
    assert found[""]["versions"] == ["3"]
    assert found["/stats"]["model_stats"][0]["version"] == "3"
    assert (await call("POST", INFER, infer())).json()["model_version"] == "3"
    assert [item["version"] for item in (await call("POST", "/v2/repository/index")).json()] == ["1", "3"]


async def test_trap_8_the_header_length_is_that_of_plain_json(call: Any):
    rows = 500
    numeric = {"name": "numeric", "datatype": "FP32", "shape": [rows, 3], "parameters": {"binary_data_size": rows * 12}}
    colour = COLOUR | {"shape": [rows, 1], "data": ["red"] * rows}
    header = infer(numeric, colour, parameters={"binary_data_output": True})
    raw = header + np.zeros((rows, 3), "<f4").tobytes()
    headers = {LENGTH: str(len(header)), "content-encoding": "gzip", "accept-encoding": "gzip"}
    reply = await call("POST", INFER, gzip.compress(raw), headers)
    assert (reply.status, reply.headers["content-encoding"]) == (200, "gzip")
    plain = gzip.decompress(reply.body)
    length = int(reply.headers[LENGTH])
    assert json.loads(plain[:length])["outputs"][0]["parameters"] == {"binary_data_size": rows * 8}
    assert len(plain) == length + rows * 8


@pytest.mark.parametrize(
    ("body", "listed"),
    [
        (b"", ["bright", "churn"]),
        (b"{}", ["bright", "churn"]),
        (b'{"ready": false}', ["bright", "churn"]),
        (b'{"ready": true}', ["churn"]),
    ],
)
async def test_trap_11_the_body_of_an_index_request_may_be_empty(call: Any, body: bytes, listed: list[str]):
    assert (await call("POST", "/v2/repository/models/bright/unload", key=ALL_KEY)).status == 200
    reply = await call("POST", "/v2/repository/index", body)
    assert (reply.status, [item["name"] for item in reply.json()]) == (200, listed)
    assert {item["state"] for item in reply.json()} <= {"READY", "UNAVAILABLE"}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({}, 200),
        ({"config": '{"max_batch_size": 4}'}, 501),
        ({"config": {"max_batch_size": 4}}, 501),
        ({"file:1/model.onnx": "AAAA", "config": "{}"}, 501),
        ([], 400),
    ],
)
async def test_trap_12_a_model_that_comes_with_a_load_request_is_refused(call: Any, parameters: Any, status: int):
    body = json.dumps({"parameters": parameters}).encode()
    reply = await call("POST", "/v2/repository/models/churn/load", body, key=ALL_KEY)
    assert (reply.status, list(reply.json())) == (status, [] if status == 200 else ["error"])
