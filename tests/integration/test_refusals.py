"""Refusals that do not wait for the body, on real connections: what follows on one is answered as if nothing were."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from app.serving.host import Batching
from tests.support.oip import Addresses, serve, sum_source

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Where `sum` answers; `full` has no room for anybody."""
    source = sum_source(tmp_path_factory.mktemp("sum"))
    with serve(source, replace(source, endpoint="full", batching=Batching(16, 16))) as addresses:
        addresses.host.lookup("full")._batcher._rows = 16
        yield addresses


@pytest.fixture
def address(servers: Addresses) -> str:
    """For HTTP."""
    return servers.http


def answers(raw: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """So many answers, whole, and nothing after them."""
    found, text = [], b""

    def more() -> bytes:
        part = raw.recv(65536)
        assert part, "the connection ended"
        return part

    for _ in range(count):
        while b"\r\n\r\n" not in text:
            text += more()
        head, _, text = text.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ") for line in lines)
        size = int(headers["content-length"])
        while len(text) < size:
            text += more()
        found.append((int(status.split()[1]), headers, text[:size]))
        text = text[size:]
    assert text == b""
    return found


@pytest.mark.parametrize("size", [70, 300, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_connection_goes_on_after_a_refusal_that_did_not_wait_for_the_body(address: str, size: int, *, chunked: bool):
    host, port = address.split(":")
    body = json.dumps({"instances": [{"a": 1, "b": 2, "c": 3, "word": "red"}]}).encode().ljust(size)
    head = b"POST /api/v1/endpoints/%b/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\n"
    length, sent = b"Content-Length: %d\r\n\r\n" % size, body
    if chunked:
        length, sent = b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    refused, good = head % b"full" + length, head % b"sum" + length
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(refused)  # and nothing of the body: the answer is there all the same
        [(status, headers, content)] = answers(raw, 1)
        assert (status, json.loads(content)["code"]) == (429, "overloaded")
        assert int(headers["retry-after"]) >= 1
        assert "connection" not in headers
        raw.sendall(sent[:40])
        raw.sendall(sent[40:] + good + sent[:-9])
        raw.sendall(sent[-9:])
        [(status, _, content)] = answers(raw, 1)
        assert (status, json.loads(content)["predictions"]) == (200, [{"value": 106.0}])
        raw.sendall(refused + sent + good + sent + refused + sent + refused + sent + good + sent)  # pipelined
        assert [status for status, _, _ in answers(raw, 5)] == [429, 200, 429, 429, 200]


def test_a_refused_request_that_ends_the_connection_ends_it(address: str):
    host, port = address.split(":")
    head = b"POST /v2/models/full/infer HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\nContent-Length: 2\r\n"
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(head + b"Connection: close\r\n\r\n{}")
        text = b"".join(iter(lambda: raw.recv(65536), b""))
    assert text.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nconnection: close\r\n" in text
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(head + b"Expect: 100-continue\r\n\r\n")
        [(status, _, content)] = answers(raw, 1)
    assert (status, json.loads(content)["error"]) == (429, "16 rows wait already, of 16 allowed")


@pytest.mark.parametrize(
    ("model", "code"), [("sum", grpc.StatusCode.INVALID_ARGUMENT), ("full", grpc.StatusCode.RESOURCE_EXHAUSTED)]
)
def test_grpc_refuses_before_it_looks_at_the_tensors(servers: Addresses, model: str, code: grpc.StatusCode):
    request = pb.ModelInferRequest(model_name=model, inputs=[{"name": "nonsense", "datatype": "FP32", "shape": [-1]}])
    with grpc.insecure_channel(servers.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            stub.ModelInfer(request, metadata=[("x-api-key", "good")], timeout=10)
    assert failed.value.code() is code


@pytest.mark.parametrize(
    ("path", "expected"), [("/api/v1/endpoints/sum/predict", 422), ("/v1/models/sum:predict", 400)]
)
def test_half_a_character_in_a_name_is_a_refusal_like_any_other(address: str, path: str, expected: int):
    host, port = address.split(":")
    body = rb'{"instances":[{"\ud800":1}]}'
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\nX-Request-Id: r1\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall((head.encode() + body) * 2)
        for status, headers, content in answers(raw, 2):
            told = json.loads(content)
            assert (status, headers["x-request-id"]) == (expected, "r1")
            assert told.get("detail", told.get("error")).startswith(r"instances.0.\ud800: unknown column")


@pytest.mark.parametrize(("rows", "status"), [(4096, 422), (4097, 413), (85_000, 413)])
def test_a_body_that_is_all_wrong_is_refused(address: str, rows: int, status: int):
    host, port = address.split(":")
    body = b'{"instances":[%b]}' % b",".join([b"{}"] * rows)
    head = b"POST /api/v1/endpoints/sum/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: good\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(head % len(body) + body)
        [(found, _, content)] = answers(raw, 1)
    assert found == status
    assert len(json.loads(content).get("errors", ())) == (100 if status == 422 else 0)
