"""Answers are bounded, before their run where that can be known, and large ones are written in pieces."""

import asyncio
import gzip
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.core.errors import InvalidTensor, PayloadTooLarge
from app.core.signature import Signature, Tensor
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.answer_limit import AnswerLimit
from app.serving.effort import Wanted
from app.serving.host import Batching, Host, ModelSource
from app.serving.joining import joined
from app.serving.large_answer import encode_large
from app.serving.oip import OipCodec
from app.settings import ServingSettings
from tests.support.batching import Model, build, rows
from tests.support.repository import HostRepository
from tests.support.serving import Keys, inner
from tests.unit.serving.conftest import save, value

MIB = 1 << 20
X = (Tensor("x", "FP32", (-1, 1)),)


def signature(*outputs: Tensor, batched: bool = True) -> Signature:
    return Signature("inference", X, outputs, (), batched=batched)


KINDS = signature(
    *(Tensor(kind.lower(), kind, (-1, -1)) for kind in ("FP32", "INT64", "BOOL", "BF16", "BYTES", "FP16"))
)


def of_kinds(rows: int, width: int) -> tuple[Any, ...]:
    numbers = np.random.default_rng(3).normal(size=(rows, width)).astype(np.float32)
    texts = np.array([[f'{row}"é{at}' for at in range(width)] for row in range(rows)], object)
    whole = (numbers * 9).astype(np.int64)[:, ::-1]  # not in the order of memory
    some = numbers.copy()
    some[0, :2] = np.nan, np.inf
    return some, whole, numbers > 0, numbers, texts, numbers.astype(np.float16)


@pytest.mark.parametrize("width", [3, 30_000])
@pytest.mark.parametrize("binary", [(), (0,), (2, 4), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("request_id", [None, "id-1"])
def test_a_large_answer_says_what_a_small_one_would(width: int, binary: tuple[int, ...], request_id: str | None):
    codec, outputs = OipCodec("m", KINDS), of_kinds(4, width)
    wanted = [Wanted(at, binary=at in binary) for at in range(6) if at in binary or at not in {3, 5}]
    whole = codec.encode(outputs, wanted, "3", request_id)
    large = encode_large(codec, outputs, wanted, "3", request_id)
    assert isinstance(whole.body, bytes)
    assert isinstance(large.body, bytes) is (width == 3)
    body = large.body if isinstance(large.body, bytes) else b"".join(large.body)
    assert (large.header_length is None) is (whole.header_length is None)
    assert json.loads(body[: large.header_length]) == json.loads(whole.body[: whole.header_length])
    if large.header_length is not None:
        assert body[large.header_length :] == whole.body[whole.header_length :]


def test_an_output_without_a_json_form_is_refused_in_a_large_answer_too():
    with pytest.raises(InvalidTensor, match="FP16 has no JSON form"):
        encode_large(OipCodec("m", KINDS), of_kinds(2, 2), [Wanted(5, binary=False)], "3", None)


def test_binary_tensors_are_not_copied():
    array = np.zeros((2, MIB), np.float32)
    encoded = encode_large(
        OipCodec("m", signature(Tensor("y", "FP32", (-1, MIB)))), (array,), [Wanted(0, binary=True)], "3", None
    )
    assert not isinstance(encoded.body, bytes)
    assert np.shares_memory(np.frombuffer(encoded.body[-1], np.float32), array)


FIXED = signature(
    Tensor("wide", "FP32", (-1, MIB)), Tensor("narrow", "FP32", (-1, 2)), Tensor("text", "BYTES", (-1, 1))
)
WIDE, NARROW, TEXT, CLASSES = (
    Wanted(0, binary=True),
    Wanted(1, binary=True),
    Wanted(2, binary=True),
    Wanted(0, binary=False, classes=5),
)


@pytest.mark.parametrize(
    ("rows", "wanted", "fits"),
    [
        (4, [WIDE], True),
        (4, [WIDE, NARROW], False),
        (5, [WIDE], False),
        (5, [NARROW, TEXT], True),
        (5, [CLASSES], True),
        (2 * MIB, [NARROW], True),
        (2 * MIB + 1, [NARROW], False),
    ],
)
def test_rows_whose_answer_is_too_large_are_known_before_the_run(rows: int, wanted: list[Wanted], *, fits: bool):
    rejected = Counter[str]()
    limit = AnswerLimit(FIXED, 16 * MIB, rejected)
    assert limit.sure_rows == 3
    if fits:
        limit.check_rows(rows, wanted)
    else:
        with pytest.raises(
            PayloadTooLarge, match=r"^outputs: .* of 16 allowed \(AIMASS_LIMIT_ANSWER_MB\): send fewer rows"
        ):
            limit.check_rows(rows, wanted)
    assert rejected["too_large"] == (not fits)


@pytest.mark.parametrize("output", [Tensor("y", "FP32", (-1, -1)), Tensor("y", "BYTES", (-1, 1))])
def test_what_only_the_outputs_can_tell_is_asked_of_them(output: Tensor):
    limit = AnswerLimit(signature(output), 1000)
    limit.check_rows(10**9, [Wanted(0, binary=True)])
    large: Any = (
        np.array([["é" * 500], ["b" * 500]], object) if output.datatype == "BYTES" else np.zeros((2, 130), "<f4")
    )
    with pytest.raises(PayloadTooLarge, match="AIMASS_LIMIT_ANSWER_MB"):
        limit.check((large,), [Wanted(0, binary=True)])
    limit.check((large[:1],), [Wanted(0, binary=True)])


@pytest.mark.parametrize("batched", [True, False])
def test_json_that_becomes_too_large_is_not_written_to_its_end(batched: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.serving.large_answer._AT_ONCE", 100)
    outputs = (np.full((1, 1000), 1 / 3, np.float32),)
    codec = OipCodec("m", signature(Tensor("y", "FP32", (-1, 1000)), batched=batched), max_answer=5000)
    encode_large(codec, outputs, [Wanted(0, binary=True)], "3", None)
    with pytest.raises(PayloadTooLarge, match="as binary data"):
        encode_large(codec, outputs, [Wanted(0, binary=False)], "3", None)


async def test_parts_of_a_request_that_have_become_too_much_end_it():
    model = Model()
    batcher, lanes, _ = build(model, Batching(2, 100, max_answer=100), lanes=1)  # 20 bytes a row
    asked = asyncio.ensure_future(batcher.infer((rows(10),), 10))
    own = asyncio.ensure_future(batcher.prove((rows(10),), 10))
    await asyncio.sleep(0)
    while lanes.jobs:
        await lanes.run_one()
    with pytest.raises(PayloadTooLarge, match="AIMASS_LIMIT_ANSWER_MB"):
        await asked
    assert len((await own).outputs[0]) == 10  # the server's own rows are no caller's answer
    assert sum(model.sizes) < 20  # the rest was not run
    assert batcher._rows == 0


async def test_parts_are_joined_in_a_thread_if_they_are_large(monkeypatch: pytest.MonkeyPatch):
    seen = list[bool]()

    def watched(parts: Any) -> Any:
        seen.append(threading.current_thread() is threading.main_thread())
        return tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))

    monkeypatch.setattr("app.serving.joining._concatenated", watched)
    batcher, _, _ = build(Model(), Batching(50_000, 300_000))
    for count in (50_001, 60_000, 200_000):
        sent = rows(count)
        answer = await batcher.infer((sent,), count)
        np.testing.assert_array_equal(answer.outputs[0], sent * 2)
    assert seen == [True, False, False]


async def test_of_parts_that_fail_none_is_told_of_as_lost():
    lost = list[Any]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: lost.append(context))
    parts = [loop.create_future() for _ in range(3)]
    for part in parts[:2]:
        part.set_exception(InvalidTensor("bad"))
    with pytest.raises(InvalidTensor, match="bad"):
        await joined(parts)
    assert parts.pop().cancelled()
    parts.clear()
    await asyncio.sleep(0)
    assert lost == []


WIDTH = 1000


@pytest.fixture
async def wide_host(tmp_path: Path) -> AsyncIterator[Host]:
    """Endpoints that answer x with [x, x, …], 4000 bytes a row; `open` does not say how many."""
    ones = numpy_helper.from_array(np.ones((1, WIDTH), np.float32), "ones")
    host = Host(ServingSettings(threads=1))
    for name, width, most in (("fixed", WIDTH, 100), ("open", -1, 100), ("roomy", WIDTH, 1000)):
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "ones"], ["y"])],
            name,
            [value("x", TensorProto.FLOAT, ["n", 1])],
            [value("y", TensorProto.FLOAT, ["n", WIDTH if width > 0 else "w"])],
            [ones],
        )
        golden = {
            "inputs": {"x": {"datatype": "FP32", "shape": [1, 1], "data": [2]}},
            "outputs": {"y": {"datatype": "FP32", "shape": [1, WIDTH], "data": [2] * WIDTH}},
        }
        folder = save(graph, tmp_path / name, signature(Tensor("y", "FP32", (-1, width))), golden)
        limits = Batching(8, 4096, max_answer=most * 4 * WIDTH)
        await host.swap(await host.load(ModelSource(name, "m", 1, "fp32", folder, folder / "model.onnx", limits)))
    yield host
    await host.close()


def request(count: int, *, binary: bool) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [count, 1], "data": [2] * count}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()


@pytest.mark.parametrize("name", ["fixed", "open"])
@pytest.mark.parametrize("form", ["binary", "JSON", "V1", "predict"])
async def test_an_answer_that_is_too_large_is_413(wide_host: Host, asgi: Callable[[Any], Any], name: str, form: str):
    call = asgi(Dispatcher(inner, wide_host, Keys(), HostRepository(wide_host), ServingSettings()))
    path = {"V1": f"/v1/models/{name}:predict", "predict": f"/api/v1/endpoints/{name}/predict"}.get(form)
    metrics = wide_host.lookup(name).metrics

    async def ask(count: int) -> Any:
        if path is not None:
            return await call("POST", path, json.dumps({"instances": [[2.0]] * count}).encode())
        return await call("POST", f"/v2/models/{name}/infer", request(count, binary=form == "binary"))

    assert (await ask(90)).status == 200
    ran = metrics.batch_rows.total
    refused = await ask(3000)
    assert (refused.status, b"AIMASS_LIMIT_ANSWER_MB" in refused.body) == (413, True)
    assert metrics.batch_rows.total - ran <= (0 if name == "fixed" else 200)
    assert metrics.statuses[413] == 1


@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_a_large_answer_counts_among_the_bodies_until_it_is_taken(wide_host: Host, encoding: str | None):
    bodies, held = Bodies(1), list[int]()
    app = Dispatcher(inner, wide_host, Keys(), HostRepository(wide_host), ServingSettings(), bodies=bodies)
    messages = [{"type": "http.request", "body": request(600, binary=True)}]
    sent = list[Any]()

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        held.append(bodies.held)
        sent.append(message)

    headers = [(b"x-api-key", b"good"), *([(b"accept-encoding", encoding.encode())] if encoding else [])]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/roomy/infer",
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    size = int(dict(sent[0]["headers"])[b"content-length"])
    body = b"".join(message["body"] for message in sent[1:])
    assert len(body) == size
    assert set(held) == {size}
    assert bodies.held == 0
    plain = gzip.decompress(body) if encoding else body
    assert plain.endswith(np.full((600, WIDTH), 2, np.float32).tobytes())
