"""What would hold up the event loop is done in a thread."""

import json
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.core.signature import Signature, Tensor
from app.serving import effort
from app.serving.effort import Wanted, are_small, inline_raw_bytes, inline_rows
from app.serving.host import Host
from app.serving.large_answer import encode_large
from app.serving.predictions import in_parts
from tests.support.serving import COLOUR, GOOD, INFER, NUMERIC, PREDICT, body, infer


def signature(*outputs: Tensor, batched: bool = True) -> Signature:
    return Signature("inference", (Tensor("x", "FP32", (-1, 2)),), outputs, (), batched=batched)


@pytest.mark.parametrize(
    ("outputs", "batched", "rows"),
    [
        ([Tensor("y", "FP32", (-1, 2))], True, 512),
        ([Tensor("y", "FP32", (-1,))], True, 1024),
        ([Tensor("y", "FP32", (-1, 2)), Tensor("z", "INT64", (-1, 2))], True, 256),
        ([Tensor("y", "FP32", (-1, 1000))], True, 1),
        ([Tensor("y", "FP32", (-1, 100_000))], True, 0),
        ([Tensor("y", "FP32", (-1, -1))], True, 0),
        ([Tensor("y", "BYTES", (-1, 1))], True, 0),
        ([Tensor("y", "FP32", (2, 2))], False, 256),
        ([Tensor("y", "FP32", (-1, 2))], False, 0),
    ],
)
def test_rows_that_need_no_look_at_the_outputs(outputs: list[Tensor], batched: Any, rows: int):
    assert inline_rows(signature(*outputs, batched=batched)) == rows


def test_raw_tensors_that_are_not_the_array_yet():
    assert inline_raw_bytes(signature(Tensor("y", "FP32", (-1,)))) == float("inf")
    texts = Signature("inference", (Tensor("x", "FP32", (-1,)), Tensor("t", "BYTES", (-1, -1))), (), ())
    assert inline_raw_bytes(texts) == 16 * 1024


@pytest.mark.parametrize(
    ("array", "wanted", "small"),
    [
        (np.zeros((1, 4096), np.float32), Wanted(0, binary=False), True),
        (np.zeros((1, 4097), np.float32), Wanted(0, binary=False), False),
        (np.zeros((1, 400_000), np.float32), Wanted(0, binary=True), True),
        (np.zeros((1, 600_000), np.float32), Wanted(0, binary=True), False),
        (np.zeros((1, 4000), np.float32), Wanted(0, binary=False, classes=5), True),
        (np.zeros((1, 4000), np.float32), Wanted(0, binary=False, classes=50), False),
        (np.zeros((), np.float32), Wanted(0, binary=False, classes=5), True),
        (np.array([["a"] * 1000], object), Wanted(0, binary=True), True),
        (np.array([["a"] * 2000], object), Wanted(0, binary=True), False),
        (np.array([["a" * 200_000]], object), Wanted(0, binary=True), False),
    ],
)
def test_what_is_small(array: Any, wanted: Wanted, *, small: bool):
    assert are_small((array,), [wanted]) is small


def test_over_grpc_all_is_raw():
    assert are_small((np.zeros(5000, np.float32),), [Wanted(0, binary=False)], raw=True)


@pytest.fixture
def threads(host: Host, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """By method of the codec: whether the event loop called it."""
    found: dict[str, bool] = {}
    oip = host.lookup("churn").oip

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            found[name] = threading.current_thread() is threading.main_thread()
            return method(*given)

        return call

    for name in ("decode", "encode"):
        monkeypatch.setattr(oip, name, watched(name, getattr(oip, name)))
    monkeypatch.setattr("app.gateway.predict.oip.encode_large", watched("encode", encode_large))
    return found


async def test_a_small_request_stays_on_the_event_loop(call: Any, threads: dict[str, bool]):
    assert (await call("POST", INFER, infer())).status == 200
    assert threads == {"decode": True, "encode": True}


async def test_a_large_tensor_of_texts_is_decoded_in_a_thread(call: Any, threads: dict[str, bool]):
    text = struct.pack("<I", 20_000) + b"a" * 20_000
    colour = {key: COLOUR[key] for key in ("name", "datatype", "shape")}
    header = json.dumps({"inputs": [NUMERIC, colour | {"parameters": {"binary_data_size": len(text)}}]}).encode()
    reply = await call("POST", INFER, header + text, {"Inference-Header-Content-Length": str(len(header))})
    assert (reply.status, threads) == (200, {"decode": False, "encode": True})


async def test_a_large_answer_is_written_in_a_thread(
    call: Any, host: Host, threads: dict[str, bool], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(host.lookup("churn").oip, "inline_rows", 0)
    monkeypatch.setattr(effort, "_ELEMENTS", 1)
    reply = await call("POST", INFER, infer())
    assert (reply.status, threads) == (200, {"decode": True, "encode": False})


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/churn:predict"])
@pytest.mark.parametrize(("rows", "inline"), [(4, True), (5, False)])
async def test_large_predictions_are_written_in_a_thread(
    call: Any, host: Host, monkeypatch: pytest.MonkeyPatch, path: str, rows: int, *, inline: bool
):
    served = host.lookup("churn")
    whole, seen = served.predictions, set[bool]()

    def watched(outputs: Any) -> bytes:
        seen.add(threading.current_thread() is threading.main_thread())
        return whole(outputs)

    monkeypatch.setattr(served, "v1_predictions" if path.startswith("/v1") else "predictions", watched)
    monkeypatch.setattr(served.oip, "inline_rows", 0)
    monkeypatch.setattr(effort, "_ELEMENTS", 4 * 10)
    monkeypatch.setattr("app.serving.predictions._AT_ONCE", 4)
    reply = await call("POST", path, body(*(GOOD | {"age": age} for age in range(rows))))
    assert (reply.status, seen) == (200, {inline})
    probabilities = [prediction["probabilities"]["yes"] for prediction in reply.json()["predictions"]]
    assert probabilities == [pytest.approx((19 + age) / 1000, abs=1e-6) for age in range(rows)]


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr("app.serving.predictions._AT_ONCE", 7)
    outputs = (np.arange(rows * 3).reshape(rows, 3), np.arange(rows))
    sizes = []

    def encode(part: Any) -> bytes:
        sizes.append(sum(array.size for array in part))
        return json.dumps(list(zip(part[0].tolist(), part[1].tolist(), strict=True))).encode()

    assert json.loads(in_parts(encode, outputs)) == [[row, n] for n, row in enumerate(outputs[0].tolist())]
    assert max(sizes) <= 7
