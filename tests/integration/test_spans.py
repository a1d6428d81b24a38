"""Spans as a collector of OpenTelemetry receives them from a live platform."""

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tritonclient.utils import InferenceServerException

from tests.support.platform import KEY, Platform
from tests.support.servers import wait_until

pytestmark = pytest.mark.enable_socket
REFUSED = "5bf92f3577b34da6a3ce929d0e0e4736"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PHASES = ["receive", "parse", "queue", "batch", "compute", "encode"]


class Collector:
    """Keeps every span that is sent to it."""

    def __init__(self) -> None:
        spans: list[Any] = []
        services: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in sent.resource_spans:
                    services.append({a.key: a.value.string_value for a in resource.resource.attributes})
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.spans, self.services = spans, services
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def of(self, trace: str) -> list[Any]:
        return [span for span in self.spans if span.trace_id.hex() == trace]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def doubled() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def refuse_by_grpc(client: Any) -> None:
    """Calls that fail, each for another reason, and a stream of a good one and a bad one."""
    stranger = {"traceparent": f"00-{REFUSED}-{PARENT}-01"}
    headers = {"authorization": f"Bearer {KEY}", **stranger}
    tensor = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.ones((1, 2), np.float32))
    wide = triton.InferInput("x", [1, 3], "FP32").set_data_from_numpy(np.ones((1, 3), np.float32))
    for call in (
        lambda: client.infer("nope", [tensor], headers=headers),
        lambda: client.infer("double", [tensor], headers=stranger),
        lambda: client.infer("double", [wide], headers=headers),
        lambda: client.infer("double", [tensor], headers=headers, timeout=1),
        lambda: client.get_model_metadata("nope", headers=headers),
        lambda: client.get_trace_settings(headers=headers),
    ):
        with pytest.raises(InferenceServerException):
            call()
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=headers)
    for name in ("double", "nope"):
        client.async_stream_infer(name, [tensor])
        answers.get(timeout=60)
    client.stop_stream()


def check_refused(spans: list[Any]) -> None:
    """A span each, with gRPC's status, and with the endpoint where one was found."""
    found = []
    for span in spans:
        told = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
        if span.parent_span_id.hex() == PARENT:
            assert span.name == f"inference.GRPCInferenceService/{told['rpc.method']}"
            failed = span.status.code == span.status.STATUS_CODE_ERROR
            found.append((told["rpc.method"], told.get("rpc.grpc.status_code", 0), told.get("aimass.endpoint"), failed))
    assert sorted(found, key=str) == [
        ("ModelInfer", 16, None, True),
        ("ModelInfer", 3, "double", True),
        ("ModelInfer", 4, "double", True),
        ("ModelInfer", 5, None, True),
        ("ModelMetadata", 5, None, True),
        ("ModelStreamInfer", 0, "double", False),
        ("ModelStreamInfer", 5, None, True),
        ("TraceSetting", 12, None, True),
    ]


def test_requests_are_spans_and_phases_are_below_them(collector: Collector) -> None:
    with Platform(AIMASS_TELEMETRY_OTLP_URL=collector.url, AIMASS_TELEMETRY_TRACE_RATIO="0") as platform:
        job = platform.call("POST", "/api/v1/models/m/versions", 202, files={"model": ("m.onnx", doubled())})
        platform.wait(job["id"], "succeeded")
        platform.call("PUT", "/api/v1/endpoints/double", 201, json={"model": "m", "routes": [{"version": 1}]})
        sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        path, body = "/api/v1/endpoints/double/predict", {"instances": [[1.0, 2.0]]}
        answer = platform.client.post(path, json=body, headers=sampled).raise_for_status()
        ours = answer.headers["traceparent"].split("-")[2]
        platform.client.get("/api/v1/jobs/nope", headers=sampled)
        platform.client.post(path, json=body)  # begins a trace of its own, of which none are exported here
        platform.client.post(path, json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        with triton.InferenceServerClient(platform.grpc) as client:
            tensor = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.ones((1, 2), np.float32))
            client.infer("double", [tensor], headers={"authorization": f"Bearer {KEY}", **sampled})
            refuse_by_grpc(client)
    # The platform has ended, and with it sent what it had.
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE, REFUSED}
    check_refused(collector.of(REFUSED))
    roots = {span.name: span for span in collector.of(TRACE) if span.parent_span_id.hex() == PARENT}
    assert set(roots) == {
        "POST /api/v1/endpoints/{name}/predict",
        "GET /api/v1/jobs/{job_id}",
        "inference.GRPCInferenceService/ModelInfer",
    }
    assert collector.services[0]["service.name"] == "aimass-gateway"
    root = roots["POST /api/v1/endpoints/{name}/predict"]
    assert root.span_id.hex() == ours
    told = {a.key: a.value.string_value or a.value.int_value for a in root.attributes}
    assert (told["aimass.endpoint"], told["aimass.version"], told["http.response.status_code"]) == ("double", "1", 200)
    assert told["aimass.request_id"] == answer.headers["x-request-id"]
    below = [span for span in collector.of(TRACE) if span.parent_span_id == root.span_id]
    assert [span.name for span in below] == PHASES
    times = [root.start_time_unix_nano, *[span.end_time_unix_nano for span in below], root.end_time_unix_nano]
    assert times == sorted(times)
    refused = {a.key: a.value.int_value for a in roots["GET /api/v1/jobs/{job_id}"].attributes}
    assert refused["http.response.status_code"] in {404, 422}


def test_a_collector_that_is_away_holds_up_nobody() -> None:
    with Platform(AIMASS_TELEMETRY_OTLP_URL="http://127.0.0.1:9", AIMASS_TELEMETRY_OTLP_TIMEOUT_S="0.5") as platform:
        for _ in range(50):
            assert platform.client.get("/api/v1/jobs").status_code == httpx.codes.OK
        wait_until(lambda: platform.client.get("/readyz").status_code == httpx.codes.OK, 30, "it stays ready")
