"""The Open Inference Protocol over REST as NVIDIA's own client speaks it, against a live server on this machine."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from tests.support.oip import sample, serve, sum_source

pytestmark = pytest.mark.enable_socket


def key() -> dict[str, str]:
    """A new one each time: the client writes its own headers into it."""
    return {"x-api-key": "good"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(sum_source(tmp_path_factory.mktemp("sum"))) as addresses:
        yield addresses.http


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(address, concurrency=4)
    yield client
    client.close()


def inputs(numbers: np.ndarray, words: np.ndarray, *, binary: tuple[bool, bool] = (True, True)) -> list[Any]:
    first = triton.InferInput("numbers", list(numbers.shape), "FP32")
    first.set_data_from_numpy(numbers, binary_data=binary[0])
    second = triton.InferInput("words", list(words.shape), "BYTES")
    second.set_data_from_numpy(words, binary_data=binary[1])
    return [first, second]


def test_metadata(client: Any):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum", headers=key())
    assert client.is_model_ready("sum", "7", headers=key())
    assert not client.is_model_ready("sum", "8", headers=key())
    assert not client.is_model_ready("nope", headers=key())
    assert client.get_server_metadata(headers=key())["extensions"][:3] == [
        "binary_tensor_data",
        "parameters",
        "classification",
    ]
    metadata = client.get_model_metadata("sum", "7", headers=key())
    assert metadata["inputs"] == [
        {"name": "numbers", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "words", "datatype": "BYTES", "shape": [-1, 1]},
    ]


def test_classes_as_texts(client: Any):
    numbers, words, expected = sample(3)
    for binary in (True, False):
        output = triton.InferRequestedOutput("value", binary_data=binary, class_count=5)
        answer = client.infer("sum", inputs(numbers, words), outputs=[output], headers=key()).as_numpy("value")
        assert answer.shape == (3, 1)
        for row, value in zip(answer[:, 0], expected, strict=True):
            text, index = (row.decode() if isinstance(row, bytes) else row).split(":")
            assert float(text) == pytest.approx(float(value), abs=1e-4)
            assert index == "0"


def test_statistics_count_rows_and_runs(client: Any):
    numbers, words, _ = sample(3)
    [before] = client.get_inference_statistics("sum", headers=key())["model_stats"]
    for _ in range(5):
        client.infer("sum", inputs(numbers, words), headers=key())
    for found in (
        client.get_inference_statistics("sum", "7", headers=key()),
        client.get_inference_statistics(headers=key()),
    ):
        [stats] = found["model_stats"]
        assert (stats["name"], stats["version"]) == ("sum", "7")
        assert stats["inference_count"] - before["inference_count"] == 15
        assert 1 <= stats["execution_count"] - before["execution_count"] <= 5
        assert stats["last_inference"] > before["last_inference"]
        members = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
        assert set(stats["inference_stats"]) == members | {"cache_hit", "cache_miss"}
        answers = stats["response_stats"]["0"]
        assert answers["success"]["count"] == stats["inference_stats"]["success"]["count"]
        assert set(answers) == {"compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"}
        assert all(type(n) is int for entry in stats["inference_stats"].values() for n in entry.values())
        assert stats["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 5
        runs = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]}
        assert sum(rows * count for rows, count in runs.items()) == stats["inference_count"]


def test_configuration_is_what_load_tools_need(client: Any):
    config = client.get_model_config("sum", headers=key())
    assert (config["name"], config["max_batch_size"]) == ("sum", 16)
    assert config["input"] == [
        {"name": "numbers", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "words", "data_type": "TYPE_STRING", "dims": [1]},
    ]
    assert [output["name"] for output in config["output"]] == ["value", "echo"]
    assert "dynamic_batching" in config
    assert config["model_transaction_policy"]["decoupled"] is False


def test_a_model_is_unloaded_and_loaded(client: Any):
    """Client traps 11 and 12: the index is asked for with an empty body, `config` is text."""
    numbers, words, _ = sample(1)
    assert client.get_model_repository_index(headers=key()) == [{"name": "sum", "version": "7", "state": "READY"}]
    client.unload_model("sum", headers=key())
    try:
        assert not client.is_model_ready("sum", headers=key())
        [listed] = client.get_model_repository_index(headers=key())
        assert (listed["state"], listed["reason"]) == ("UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException) as failed:
            client.infer("sum", inputs(numbers, words), headers=key())
        assert failed.value.status() == "503"
    finally:
        client.load_model("sum", headers=key())
    assert client.is_model_ready("sum", headers=key())
    client.infer("sum", inputs(numbers, words), headers=key())
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="there is no endpoint 'nope'"):
            change("nope", headers=key())
    with pytest.raises(InferenceServerException, match="not in this release"):
        client.load_model("sum", headers=key(), config='{"max_batch_size": 4}')


@pytest.mark.parametrize("rows", [1, 3, 50])
@pytest.mark.parametrize("binary_in", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_infer_binary_json_and_mixed(client: Any, rows: int, binary_in: tuple[bool, bool], *, binary_out: bool | None):
    """Client traps 3 and 6: tensors are binary by default, and answers are reshaped by what they say."""
    numbers, words, expected = sample(rows)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("echo", "value")]
    result = client.infer(
        "sum", inputs(numbers, words, binary=binary_in), outputs=outputs, request_id="r-1", headers=key()
    )
    np.testing.assert_allclose(result.as_numpy("value"), expected, rtol=1e-5)
    echo = [w.decode() if isinstance(w, bytes) else w for w in result.as_numpy("echo").ravel()]
    assert echo == words.ravel().tolist()
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", "sum", "7")
    names = [output["name"] for output in response["outputs"]]
    assert names == (["value", "echo"] if outputs is None else ["echo", "value"])


@pytest.mark.parametrize("request_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression(client: Any, request_compression: str | None, response_compression: str | None, *, binary: bool):
    """Client trap 8: JSON and tensors are compressed together."""
    numbers, words, expected = sample(500)
    result = client.infer(
        "sum",
        inputs(numbers, words, binary=(binary, binary)),
        headers=key(),
        request_compression_algorithm=request_compression,
        response_compression_algorithm=response_compression,
    )
    np.testing.assert_allclose(result.as_numpy("value"), expected, rtol=1e-5)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
async def test_the_asynchronous_client(address: str, compression: str | None):
    """Client traps 1 and 8: aiohttp sends a Content-Type of its own, and leaves decompression to the client."""
    numbers, words, expected = sample(500)
    async with aio.InferenceServerClient(address) as client:
        result = await client.infer(
            "sum",
            inputs(numbers, words),
            headers=key(),
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
        with pytest.raises(InferenceServerException, match="'nope' is not found"):
            await client.infer("nope", inputs(numbers, words), headers=key())
    np.testing.assert_allclose(result.as_numpy("value"), expected, rtol=1e-5)


def test_bytes_are_utf8(client: Any):
    # Binary only: for JSON the client counts characters, not bytes, and so cuts the body short.
    numbers, words = np.zeros((2, 3), np.float32), np.array([["ζ"], ["né€"]], object)
    echo = client.infer("sum", inputs(numbers, words), headers=key()).as_numpy("echo")
    assert [word.decode() for word in echo.ravel()] == ["ζ", "né€"]


def test_many_at_once_get_their_own_answers(client: Any):
    requests = [(sample(1 + seed % 5, seed)) for seed in range(100)]
    waiting = [client.async_infer("sum", inputs(numbers, words), headers=key()) for numbers, words, _ in requests]
    for job, (_, words, expected) in zip(waiting, requests, strict=True):
        result = job.get_result()
        np.testing.assert_allclose(result.as_numpy("value"), expected, rtol=1e-5)
        assert [w.decode() for w in result.as_numpy("echo").ravel()] == words.ravel().tolist()


def test_errors_reach_the_client_as_text(client: Any):
    """Client trap 5: the client shows what `error` says, and nothing of any other body."""
    numbers, words, _ = sample(2)
    cases = [
        ("nope", inputs(numbers, words), {}, "404", "Request for unknown model: 'nope' is not found"),
        ("sum", inputs(numbers, words), {"model_version": "8"}, "404", "version 8 is not found"),
        ("sum", inputs(numbers, words)[:1], {}, "400", "expected 2 inputs but got 1 inputs for model 'sum'"),
        ("sum", inputs(numbers[:, :2].copy(), words), {}, "400", "Expected [-1, 3], got [2, 2]"),
        ("sum", inputs(numbers, words), {"sequence_id": 3, "sequence_start": True}, "501", "sequences"),
        (
            "sum",
            inputs(numbers, words),
            {"outputs": [triton.InferRequestedOutput("x")]},
            "400",
            "unexpected inference output",
        ),
        (
            "sum",
            inputs(numbers, words),
            {"outputs": [triton.InferRequestedOutput("echo", class_count=1)]},
            "400",
            "no order",
        ),
    ]
    for model, tensors, more, status, words_ in cases:
        with pytest.raises(InferenceServerException) as failed:
            client.infer(model, tensors, headers=key(), **more)
        assert failed.value.status() == status
        assert words_ in failed.value.message()
    with pytest.raises(InferenceServerException) as failed:
        client.infer("sum", inputs(numbers, words))
    assert failed.value.status() == "401"
    with pytest.raises(InferenceServerException) as failed:
        client.get_trace_settings(headers=key())
    assert failed.value.status() == "501"


def test_reserved_parameters_that_are_honoured_or_harmless(client: Any):
    """Client trap 9, as the client sends them."""
    numbers, words, expected = sample(2)
    result = client.infer(
        "sum", inputs(numbers, words), priority=1, timeout=5_000_000, parameters={"mine": "x"}, headers=key()
    )
    np.testing.assert_allclose(result.as_numpy("value"), expected, rtol=1e-5)


def test_a_connection_is_kept_through_good_and_bad_answers(address: str):
    """Client trap 10: the client has one connection and tries nothing again."""
    connection = http.client.HTTPConnection(address, timeout=10)
    body = json.dumps({"instances": [{"a": 1, "b": 2, "c": 3, "word": "red"}]})
    for path, content, status in (
        ("/api/v1/endpoints/sum/predict", body, 200),
        ("/api/v1/endpoints/sum/predict", "{", 400),
        ("/api/v1/endpoints/nope/predict", body, 404),
        ("/elsewhere", body, 404),
        ("/api/v1/endpoints/s%75m/predict", body, 200),
    ):
        connection.request("POST", path, content, key())
        answer = connection.getresponse()
        text = answer.read()
        assert (answer.status, answer.getheader("connection")) == (status, None)
        if status == 200:
            assert json.loads(text)["predictions"] == [{"value": 106.0}]
    connection.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/sum/ready", 200),
        ("/v2/models/sum", 200),
        ("/v1/models/sum", 200),
        ("/v2/models/nope/ready", 404),
        ("/v2/models/sum/infer", 405),
    ],
)
def test_head_is_get_without_the_body(address: str, path: str, status: int):
    host, port = address.split(":")
    head, get = (
        b"%b %b HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\n" % (verb, path.encode()) for verb in (b"HEAD", b"GET")
    )
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(head + b"\r\n" + get + b"Connection: close\r\n\r\n")
        text = b"".join(iter(lambda: raw.recv(65536), b""))
    first, _, rest = text.partition(b"\r\n\r\n")
    second, _, body = rest.partition(b"\r\n\r\n")
    for found in (first, second):
        assert found.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-length: %d\r\n" % len(body) in found + b"\r\n"
    json.loads(body)


def test_head_and_pipelined_requests(address: str):
    host, port = address.split(":")
    body = json.dumps({"instances": [{"a": 1, "b": 2, "c": 3, "word": "-"}]}).encode()
    request = (
        b"POST /api/v1/endpoints/sum/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\nContent-Length: %d\r\n"
        % len(body)
    )
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall((request + b"\r\n" + body) * 2 + request + b"Connection: close\r\n\r\n" + body)
        answers = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b'{"value":6.0}') == 3
