"""The Open Inference Protocol over gRPC as NVIDIA's own client speaks it, against a live server on this machine."""

import asyncio
import math
import queue
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Any

import grpc as grpcio
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from app.gateway.grpc import service
from app.serving.types import Answer, Tensors
from app.serving.waiting import DEFAULT_PRIORITY
from tests.support.oip import Addresses, inputs, sample, serve, sum_source
from tests.support.servers import wait_until

pytestmark = pytest.mark.enable_socket
KEY = {"x-api-key": "good"}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with serve(sum_source(tmp_path_factory.mktemp("sum"))) as found:
        yield found


@pytest.fixture
def client(addresses: Addresses) -> Iterator[Any]:
    with triton.InferenceServerClient(addresses.grpc) as client:
        yield client


def check(result: Any, words: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result.as_numpy("value"), expected, rtol=1e-5, atol=1e-5)
    assert [w.decode() for w in result.as_numpy("echo").ravel()] == words.ravel().tolist()


def test_health_needs_no_key(client: Any):
    assert client.is_server_live()
    assert client.is_server_ready()


def test_models_are_described_as_over_rest(client: Any):
    assert client.is_model_ready("sum", headers=KEY)
    assert client.is_model_ready("sum", "7", headers=KEY)
    assert not client.is_model_ready("sum", "8", headers=KEY)
    assert not client.is_model_ready("nope", headers=KEY)
    server = client.get_server_metadata(headers=KEY)
    assert server.name == "aimass"
    assert {"statistics", "model_repository", "binary_tensor_data"} <= set(server.extensions)
    metadata = client.get_model_metadata("sum", headers=KEY, as_json=True)
    assert metadata["inputs"] == [
        {"name": "numbers", "datatype": "FP32", "shape": ["-1", "3"]},
        {"name": "words", "datatype": "BYTES", "shape": ["-1", "1"]},
    ]
    config = client.get_model_config("sum", headers=KEY).config
    assert (config.name, config.max_batch_size, list(config.input[1].dims)) == ("sum", 16, [1])
    assert config.input[1].data_type == triton.model_config_pb2.TYPE_STRING
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize("rows", [1, 3, 50])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer(client: Any, rows: int, compression: str | None):
    numbers, words, expected = sample(rows, rows)
    result = client.infer(
        "sum", inputs(numbers, words), request_id="r-1", headers=KEY, compression_algorithm=compression
    )
    check(result, words, expected)
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("r-1", "sum", "7")
    chosen = client.infer(
        "sum", inputs(numbers, words), outputs=[triton.InferRequestedOutput("echo")], headers=KEY, model_version="7"
    )
    assert [output.name for output in chosen.get_response().outputs] == ["echo"]


def test_typed_contents(addresses: Addresses):
    """What clients that do not pack raw bytes send."""
    with grpcio.insecure_channel(addresses.grpc) as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="sum")
        tensor = request.inputs.add(name="words", datatype="BYTES", shape=[2, 1])
        tensor.contents.bytes_contents.extend([b"red", "né".encode()])
        tensor = request.inputs.add(name="numbers", datatype="FP32", shape=[2, 3])
        tensor.contents.fp32_contents.extend([1, 2, 3, 4, 5, 6])
        answer = stub.ModelInfer(request, metadata=(("authorization", "Bearer good"),))
        assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [106, 15]
        assert answer.raw_output_contents[1] == b"\3\0\0\0red\3\0\0\0n\xc3\xa9"
        wrong = [
            (lambda r: r.inputs[1].contents.int64_contents.append(1), "FP32 belongs into `fp32_contents`"),
            (lambda r: r.inputs[1].contents.fp32_contents.append(1), "`fp32_contents` holds 7 elements"),
            (lambda r: r.raw_input_contents.append(b""), "holds 1 tensors for 2 inputs"),
            (lambda r: r.raw_input_contents.extend([b"", b""]), "has both"),
            (lambda r: r.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"), "UTF-8"),
            (lambda r: r.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "x"), "release"),
            (lambda r: r.parameters["timeout"].__setattr__("string_param", "x"), "microseconds"),
            (lambda r: r.parameters["empty"].ClearField("int64_param"), "has no value"),
        ]
        for spoil, words in wrong:
            spoiled = pb.ModelInferRequest()
            spoiled.CopyFrom(request)
            spoil(spoiled)
            with pytest.raises(grpcio.RpcError, match=words) as failed:
                stub.ModelInfer(spoiled, metadata=(("x-api-key", "good"),))
            assert failed.value.code().name in {"INVALID_ARGUMENT", "UNIMPLEMENTED"}


def test_classes_as_texts(client: Any):
    numbers, words, expected = sample(3)
    output = triton.InferRequestedOutput("value", class_count=5)
    answer = client.infer("sum", inputs(numbers, words), outputs=[output], headers=KEY).as_numpy("value")
    assert [float(row[0].decode().split(":")[0]) for row in answer] == pytest.approx(expected.tolist(), abs=1e-4)


def test_errors_are_statuses(client: Any):
    numbers, words, _ = sample(2)
    twice = [triton.InferRequestedOutput("value"), triton.InferRequestedOutput("value", class_count=1)]
    cases = [
        ("nope", inputs(numbers, words), {}, "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("sum", inputs(numbers, words), {"model_version": "8"}, "NOT_FOUND", "version 8 is not found"),
        ("sum", inputs(numbers, words)[:1], {}, "INVALID_ARGUMENT", "expected 2 inputs but got 1 inputs"),
        ("sum", inputs(numbers[:, :2].copy(), words), {}, "INVALID_ARGUMENT", "Expected [-1, 3], got [2, 2]"),
        ("sum", inputs(numbers, words), {"sequence_id": 3, "sequence_start": True}, "UNIMPLEMENTED", "sequences"),
        ("sum", inputs(numbers, words), {"outputs": twice}, "INVALID_ARGUMENT", "output 'value' is asked for twice"),
        ("sum", inputs(numbers, words), {"timeout": 1}, "DEADLINE_EXCEEDED", "time"),
    ]
    for model, tensors, more, status, text in cases:
        with pytest.raises(InferenceServerException) as failed:
            client.infer(model, tensors, headers=KEY, **more)
        assert failed.value.status() == f"StatusCode.{status}"
        assert text in failed.value.message()
    for headers, status in (({}, "UNAUTHENTICATED"), ({"x-api-key": "bad"}, "UNAUTHENTICATED")):
        with pytest.raises(InferenceServerException) as failed:
            client.infer("sum", inputs(numbers, words), headers=headers)
        assert failed.value.status() == f"StatusCode.{status}"
    with pytest.raises(InferenceServerException) as failed:
        client.get_trace_settings(headers=KEY)
    assert failed.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(("letters", "inline"), [(10, True), (300_000, False)])
def test_much_text_is_read_and_written_beside_the_event_loop(
    client: Any, monkeypatch: pytest.MonkeyPatch, letters: int, *, inline: bool
):
    loops: list[bool] = []
    for name in ("read_infer", "write_infer", "write_large"):
        method = getattr(service, name)

        def watched(*given: Any, method: Any = method) -> Any:
            loops.append(asyncio._get_running_loop() is not None)
            return method(*given)

        monkeypatch.setattr(service, name, watched)
    word = "a" * letters
    result = client.infer("sum", inputs(np.ones((1, 3), np.float32), np.array([[word]], object)), headers=KEY)
    assert result.as_numpy("echo").tolist() == [[word.encode()]]
    assert loops == [inline, inline]


@pytest.fixture
def queued(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """(seconds until the deadline, priority) of each request, as the batcher gets it."""
    batcher = addresses.host.lookup("sum")._queue()
    answer, seen = batcher.infer, list[tuple[float, int]]()

    def record(inputs: Tensors, rows: int, deadline: float, priority: int) -> Awaitable[Answer]:
        seen.append((deadline - time.perf_counter(), priority))
        return answer(inputs, rows, deadline, priority)

    monkeypatch.setattr(batcher, "infer", record)
    return seen


@pytest.mark.parametrize(
    ("given", "expected"), [({}, DEFAULT_PRIORITY), ({"priority": 1}, 1), ({"priority": 7}, 7), ({"priority": 0}, 2)]
)
def test_the_priority_of_a_request_reaches_the_batcher(
    client: Any, queued: list[tuple[float, int]], given: dict[str, int], expected: int
):
    """Client trap 9: the client sends `priority` as a parameter, and leaves 0 out."""
    numbers, words, _ = sample(1)
    client.infer("sum", inputs(numbers, words), headers=KEY, **given)
    assert [priority for _, priority in queued] == [expected]


@pytest.mark.parametrize(
    ("metadata_ms", "call_s", "timeout_us", "expected_s"),
    [
        (None, None, None, math.inf),
        (30_000, None, None, 30),
        (30_000, 60, 90_000_000, 30),
        (60_000, 30, 90_000_000, 30),
        (60_000, 90, 30_000_000, 30),
        (90_000, None, 30_000_000, 30),
    ],
)
def test_the_earliest_of_three_deadlines_holds(
    client: Any,
    queued: list[tuple[float, int]],
    metadata_ms: int | None,
    call_s: float | None,
    timeout_us: int | None,
    expected_s: float,
):
    numbers, words, _ = sample(1)
    headers = KEY if metadata_ms is None else {**KEY, "x-request-timeout-ms": str(metadata_ms)}
    client.infer("sum", inputs(numbers, words), headers=headers, client_timeout=call_s, timeout=timeout_us)
    [(left_s, _)] = queued
    assert left_s == expected_s or expected_s - 25 < left_s < expected_s + 1  # gRPC rounds deadlines up on their way


@pytest.mark.parametrize(
    ("given", "status"),
    [("0", "DEADLINE_EXCEEDED"), *((bad, "INVALID_ARGUMENT") for bad in ("-1", "1.5", "", "soon", "9" * 50))],
)
def test_a_deadline_in_the_metadata_that_has_passed_or_is_none(client: Any, given: str, status: str):
    numbers, words, _ = sample(1)
    headers = {**KEY, "x-request-timeout-ms": given}
    with pytest.raises(InferenceServerException) as failed:
        client.infer("sum", inputs(numbers, words), headers=headers)
    assert failed.value.status() == f"StatusCode.{status}"
    malformed = status == "INVALID_ARGUMENT"
    assert ("x-request-timeout-ms" in failed.value.message()) == malformed
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=headers)
    if not malformed:
        client.async_stream_infer("sum", inputs(numbers, words))
    _, error = answers.get(timeout=60)
    client.stop_stream(cancel_requests=malformed)
    assert ("x-request-timeout-ms" in str(error)) == malformed
    assert error.status() == (f"StatusCode.{status}" if malformed else None)  # the stream goes on after the other


def test_refusals_are_counted_as_over_http(client: Any, addresses: Addresses):
    numbers, words, _ = sample(1)
    refused, statuses = addresses.host.metrics.refused, addresses.host.lookup("sum").metrics.statuses
    before = refused["not_found"], refused["unauthenticated"], statuses[400]
    for name, tensors, headers in (
        ("nope", inputs(numbers, words), KEY),
        ("sum", inputs(numbers, words), {}),
        ("sum", inputs(numbers, words)[:1], KEY),
    ):
        with pytest.raises(InferenceServerException):
            client.infer(name, tensors, headers=headers)
    after = refused["not_found"], refused["unauthenticated"], statuses[400]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]


def test_what_is_told_of_a_sleeping_model_wakes_it_not(client: Any, addresses: Addresses):
    numbers, words, _ = sample(1)
    host, served = addresses.host, addresses.host.lookup("sum")

    def told() -> list[Any]:
        config = client.get_model_config("sum", headers=KEY)
        counted = client.get_inference_statistics("sum", headers=KEY).model_stats[0].inference_count
        listed = [model.name for model in client.get_inference_statistics(headers=KEY).model_stats]
        return [client.get_model_metadata("sum", headers=KEY), config, counted, listed]

    awake = told()
    served._queue()._loop.call_soon_threadsafe(host._sleep, served)
    wait_until(lambda: host.get("sum") is None, 60, "the model sleeps")
    assert told() == awake
    assert host.get("sum") is None
    client.infer("sum", inputs(numbers, words), headers=KEY)
    assert host.get("sum") is not None


def test_statistics_and_repository(client: Any):
    numbers, words, _ = sample(4)
    before = client.get_inference_statistics("sum", headers=KEY).model_stats[0]
    client.infer("sum", inputs(numbers, words), headers=KEY)
    after = client.get_inference_statistics(headers=KEY).model_stats[0]
    assert after.inference_count - before.inference_count == 4
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    client.unload_model("sum", headers=KEY)
    try:
        assert not client.is_model_ready("sum", headers=KEY)
        [listed] = client.get_model_repository_index(headers=KEY).models
        assert (listed.name, listed.state, listed.reason) == ("sum", "UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException) as failed:
            client.infer("sum", inputs(numbers, words), headers=KEY)
        assert failed.value.status() == "StatusCode.UNAVAILABLE"
    finally:
        client.load_model("sum", headers=KEY)
    assert client.is_model_ready("sum", headers=KEY)
    with pytest.raises(InferenceServerException, match="not in this release"):
        client.load_model("sum", headers=KEY, config='{"max_batch_size": 4}')


def test_many_at_once_get_their_own_answers(client: Any):
    answers: queue.Queue[Any] = queue.Queue()
    requests = [sample(1 + seed % 5, seed) for seed in range(100)]
    for at, (numbers, words, _) in enumerate(requests):
        client.async_infer(
            "sum",
            inputs(numbers, words),
            callback=partial(lambda at, result, error: answers.put((at, result, error)), at),
            headers=KEY,
        )
    for _ in requests:
        at, result, error = answers.get(timeout=60)
        assert error is None
        check(result, *requests[at][1:])


def test_a_stream_answers_in_order_and_outlives_an_error(client: Any):
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=KEY)
    requests = [sample(1 + seed % 5, seed) for seed in range(150)]
    for at, (numbers, words, _) in enumerate(requests):
        name = "nope" if at == 70 else "sum"
        client.async_stream_infer(
            name, inputs(numbers, words), request_id=str(at), enable_empty_final_response=at == 80
        )
    for at, (_, words, expected) in enumerate(requests):
        result, error = answers.get(timeout=60)
        if at == 70:
            assert "Request for unknown model" in str(error)
            continue
        assert error is None
        assert result.get_response().id == str(at)
        assert ("triton_final_response" in result.get_response().parameters) == (at == 80)
        check(result, words, expected)
    client.stop_stream()


def test_a_stream_needs_a_key(client: Any):
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    assert answers.get(timeout=60)[1].status() == "StatusCode.UNAUTHENTICATED"
    client.stop_stream(cancel_requests=True)
