"""Large answers over real connections, and those that are larger than they may be."""

import http.client
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from app.serving.host import Batching
from tests.support.oip import Addresses, serve
from tests.support.wide import FACTORS, wide_source

WIDTH = 1 << 16  # 256 KiB a row
MOST = 64  # rows whose tensors may be answered; as JSON, which is longer, some 20
KEY = {"x-api-key": "good"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    limits = Batching(16, 4096, max_answer=MOST * 4 * WIDTH)
    with serve(wide_source(tmp_path_factory.mktemp("wide"), WIDTH, limits)) as addresses:
        yield addresses


def ask(server: Addresses, rows: int, headers: dict[str, str], *, binary: bool) -> tuple[int, bytes, int]:
    """Status, body and how much of the body is JSON."""
    connection = http.client.HTTPConnection(server.http, timeout=60)
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 1], "data": list(range(rows))}
    request = {"inputs": [tensor], "parameters": {"binary_data_output": binary}}
    connection.request("POST", "/v2/models/wide/infer", json.dumps(request), KEY | headers)
    answer = connection.getresponse()
    body = answer.read()
    if packing := answer.headers.get("content-encoding"):
        body = zlib.decompress(body, 31 if packing == "gzip" else 15)
    connection.close()
    return answer.status, body, int(answer.headers.get("inference-header-content-length", len(body)))


def right(rows: int) -> np.ndarray[Any, Any]:
    return np.arange(rows, dtype=np.float32).reshape(-1, 1) * FACTORS[:WIDTH]


@pytest.mark.parametrize("rows", [1, 9, 40, MOST])
@pytest.mark.parametrize("headers", [{}, {"accept-encoding": "gzip"}, {"accept-encoding": "deflate"}])
def test_binary_answers_of_any_size_arrive_whole(server: Addresses, rows: int, headers: dict[str, str]):
    status, body, length = ask(server, rows, headers, binary=True)
    assert (status, json.loads(body[:length])["outputs"][0]["shape"]) == (200, [rows, WIDTH])
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32).reshape(rows, WIDTH), right(rows))


def test_a_large_answer_as_json_arrives_whole(server: Addresses):
    status, body, _ = ask(server, 9, {}, binary=False)
    assert status == 200
    np.testing.assert_array_equal(np.reshape(json.loads(body)["outputs"][0]["data"], (9, WIDTH)), right(9))


@pytest.mark.parametrize(("rows", "binary"), [(MOST + 1, True), (MOST, False)])
def test_an_answer_that_is_too_large_is_413_and_the_connection_goes_on(server: Addresses, rows: int, *, binary: bool):
    status, body, _ = ask(server, rows, {}, binary=binary)
    assert (status, b"of 16 allowed (AIMASS_LIMIT_ANSWER_MB)" in body) == (413, True)
    assert ask(server, 1, {}, binary=True)[0] == 200
    assert server.bodies.held == 0


def test_over_grpc_it_is_resource_exhausted(server: Addresses):
    def tensor(rows: int) -> list[Any]:
        found = triton.InferInput("x", [rows, 1], "FP32")
        found.set_data_from_numpy(np.arange(rows, dtype=np.float32).reshape(-1, 1))
        return [found]

    client = triton.InferenceServerClient(server.grpc)
    np.testing.assert_array_equal(client.infer("wide", tensor(MOST), headers=KEY).as_numpy("y"), right(MOST))
    with pytest.raises(InferenceServerException, match="AIMASS_LIMIT_ANSWER_MB") as refused:
        client.infer("wide", tensor(MOST + 1), headers=KEY)
    assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    client.close()
