"""The paths of the Open Inference Protocol as ASGI, with real models and without a socket."""

from collections.abc import Awaitable
from typing import Any

import pytest

from app.serving.host import Host
from app.serving.types import Answer, Tensors
from tests.support.serving import COLOUR, INFER, NUMERIC, infer

SOON = "endpoint 'soon' is not loaded: it is on its way, or was unloaded and waits to be loaded again"
EXTENSIONS = [
    "binary_tensor_data",
    "parameters",
    "classification",
    "statistics",
    "model_configuration",
    "model_repository",
]


async def test_model_metadata(call: Any):
    for path in ("/v2/models/churn", "/v2/models/churn/versions/3"):
        assert (await call("GET", path)).json() == {
            "name": "churn",
            "versions": ["3"],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "numeric", "datatype": "FP32", "shape": [-1, 3]},
                {"name": "categorical", "datatype": "BYTES", "shape": [-1, 1]},
            ],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
        }
    assert (await call("GET", "/v2")).json()["extensions"] == EXTENSIONS
    assert (await call("GET", "/v2/models/churn/ready")).status == 200


@pytest.mark.parametrize(
    ("verb", "path", "status", "error"),
    [
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/churn/versions/4", 404, "Request for unknown model: 'churn' version 4 is not found"),
        (
            "GET",
            "/v2/models/churn/versions/v10/ready",
            404,
            "Request for unknown model: 'churn' version v10 is not found",
        ),
        ("POST", "/v2/models/churn/versions/4/infer", 404, "Request for unknown model: 'churn' version 4 is not found"),
        ("GET", "/v2/models/soon/ready", 503, SOON),
        ("GET", "/v2/models/churn/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/models/churn", 405, "Method Not Allowed"),
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/models", 404, "Not Found"),
        ("GET", "/v2/models/churn/nope", 404, "Not Found"),
        ("POST", "/v2/models/churn/generate", 501, None),
        ("GET", "/v2/logging", 501, None),
        ("GET", "/v2/trace/setting", 501, None),
        ("GET", "/v2/systemsharedmemory/status", 501, None),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501, None),
    ],
)
async def test_other_paths_of_the_protocol(call: Any, host: Host, verb: str, path: str, status: int, error: str | None):
    """Client traps 5 and 7: every error has the key `error`, and a version may be any text."""
    host.expect(["churn", "bright", "soon"])
    reply = await call(verb, path)
    assert reply.status == status
    assert list(reply.json()) == ["error"]
    assert error is None or reply.json()["error"] == error


@pytest.mark.parametrize("path", [INFER, "/v2/models/churn/versions/3/infer"])
async def test_infer_json(call: Any, path: str):
    reply = await call("POST", path, infer(id="é-1"))
    assert reply.status == 200
    answer = reply.json()
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "churn", "model_version": "3", "id": "é-1"}
    assert output == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [1, 2],
        "data": [pytest.approx(0.94), pytest.approx(0.06)],
    }
    assert "inference-header-content-length" not in reply.headers


async def test_bad_tensors_are_400_in_the_protocols_form(call: Any):
    reply = await call("POST", INFER, infer(NUMERIC | {"shape": [1, 4]}, COLOUR))
    assert (reply.status, list(reply.json())) == (400, ["error"])
    assert "unexpected shape for input 'numeric'" in reply.json()["error"]
    assert (await call("POST", INFER, b"{")).status == 400
    assert (await call("POST", INFER, infer(), {"inference-header-content-length": "x"})).status == 400


@pytest.mark.parametrize(
    "parameters", [{"timeout": 10**400}, {"timeout": 1e400}, {"binary_data_output": 3}, {"timeout": True}]
)
async def test_hostile_parameters_are_400(call: Any, parameters: dict[str, Any]):
    assert (await call("POST", INFER, infer(parameters=parameters))).status == 400


@pytest.mark.parametrize("shape", [[10**30, 3], [2**63, 0], [1, -1], [True, 3], [1.5, 3], "1", [[1], 3], []])
async def test_hostile_shapes_are_400(call: Any, shape: Any):
    assert (await call("POST", INFER, infer(NUMERIC | {"shape": shape}, COLOUR))).status == 400


@pytest.mark.parametrize(
    ("given", "queued"), [({}, 0), ({"priority": 0}, 0), ({"priority": 1}, 1), ({"priority": 7}, 7)]
)
async def test_the_priority_of_a_request_reaches_the_queue(
    call: Any, host: Host, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], queued: int
):
    """Client trap 9: 1 is the highest, 0 is the default."""
    served = host.lookup("churn")
    answer, seen = served.infer, []

    def record(inputs: Tensors, rows: int, deadline: float, priority: int) -> Awaitable[Answer]:
        seen.append(priority)
        return answer(inputs, rows, deadline, priority)

    monkeypatch.setattr(served, "infer", record)
    assert (await call("POST", INFER, infer(parameters=given))).status == 200
    assert seen == [queued]
