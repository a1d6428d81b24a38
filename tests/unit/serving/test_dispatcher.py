"""The prediction paths as ASGI, with real models and without a socket."""

import asyncio
import base64
import gzip
import io
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.core.errors import AimassError
from app.gateway.errors import STATUS
from app.gateway.predict.dispatcher import Dispatcher, route_of
from app.serving.host import Batching, Host, ModelSource, ServedModel
from app.settings import ServingSettings
from tests.support.repository import HostRepository
from tests.support.serving import COLOUR, GOOD, INFER, NUMERIC, PREDICT, Keys, body, infer, inner


async def test_predict(call: Any):
    reply = await call("POST", PREDICT, body(GOOD, GOOD | {"age": 141, "colour": None}), {"x-request-id": "my-id.7"})
    assert reply.status == 200
    answer = reply.json()
    assert answer | {"predictions": None} == {
        "predictions": None,
        "model": "telco",
        "version": 3,
        "variant": "fp32",
        "request_id": "my-id.7",
    }
    probabilities = [p["probabilities"] for p in answer["predictions"]]
    assert probabilities == [
        {"no": pytest.approx(0.94), "yes": pytest.approx(0.06)},
        {"no": pytest.approx(0.85), "yes": pytest.approx(0.15)},
    ]
    assert [p["label"] for p in answer["predictions"]] == ["no", "no"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"] == "my-id.7"
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert "server-timing" not in reply.headers


async def test_a_regressor_of_pictures(call: Any):
    reply = await call("POST", "/api/v1/endpoints/bright/predict", body([[0, 1, 2], [3, 4, 5]]))
    assert reply.json()["predictions"] == [{"value": 2.5}]


async def test_concurrent_random_requests_get_their_own_answers(call: Any):
    ages = [int(age) for age in np.random.default_rng(3).integers(0, 900, 200)]
    replies = await asyncio.gather(
        *(
            call("POST", PREDICT, body(GOOD | {"age": age, "charge €": 0, "member": False, "colour": ""}))
            for age in ages
        )
    )
    got = [reply.json()["predictions"][0]["probabilities"]["yes"] for reply in replies]
    assert got == [pytest.approx(age / 1000, abs=1e-6) for age in ages]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 200


async def test_phases_are_told_on_request(call: Any, host: Host):
    reply = await call("POST", PREDICT, body(GOOD), {"x-server-timing": "1"})
    names = [part.split(";dur=")[0] for part in reply.headers["server-timing"].split(", ")]
    assert names == ["receive", "parse", "queue", "batch", "compute", "encode"]
    metrics = host.lookup("churn").metrics
    assert metrics.statuses == {200: 1}
    assert [sum(phase.counts) for phase in metrics.phases] == [1] * 6


@pytest.mark.parametrize("given", ["", "a" * 129, "no spaces", 'quote"'])
async def test_a_strange_request_id_is_replaced(call: Any, given: str):
    reply = await call("POST", PREDICT, body(GOOD), {"x-request-id": given})
    assert reply.json()["request_id"] == reply.headers["x-request-id"] != given


async def test_problems_name_the_values(call: Any, host: Host):
    reply = await call("POST", PREDICT, body(GOOD, GOOD | {"age": "x"}), {"x-request-id": "r1"})
    assert reply.status == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json() == {
        "type": "urn:aimass:error:invalid_tensor",
        "title": reply.json()["title"],
        "status": 422,
        "detail": "instances.1.age: must be an integer, got 'x'",
        "code": "invalid_tensor",
        "request_id": "r1",
        "errors": [{"loc": ["instances", 1, "age"], "msg": "must be an integer, got 'x'", "type": "type"}],
    }
    assert host.lookup("churn").metrics.statuses == {422: 1}


@pytest.mark.parametrize(
    ("path", "raw", "status", "code"),
    [
        (PREDICT, b"{", 400, "malformed"),
        (PREDICT, b"{}", 422, "invalid_tensor"),
        ("/api/v1/endpoints/nope/predict", b"{}", 404, "not_found"),
        ("/api/v1/endpoints/soon/predict", b"{}", 503, "unavailable"),
        (PREDICT, b" " * (1 << 20) + b"{}", 413, "payload_too_large"),
        (PREDICT, body(*[GOOD] * 513), 413, "payload_too_large"),
    ],
)
async def test_errors_of_the_rest_form(call: Any, host: Host, path: str, raw: bytes, status: int, code: str):
    host.expect(["churn", "bright", "soon"])
    reply = await call("POST", path, raw)
    assert (reply.status, reply.json()["code"]) == (status, code)
    assert reply.headers.get("retry-after") == ("2" if status == 503 else None)


async def test_a_large_body_in_parts_is_refused_when_it_is_too_large(call: Any):
    assert (await call("POST", PREDICT, b" " * (1 << 20) + b"{}", parts=7)).status == 413
    assert (await call("POST", PREDICT, body(GOOD), parts=7)).status == 200


async def test_a_full_queue_is_429_with_retry_after(call: Any, host: Host):
    host.lookup("churn")._batcher._rows = 512
    reply = await call("POST", PREDICT, body(GOOD))
    assert (reply.status, reply.json()["code"]) == (429, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    assert (await call("POST", INFER, infer())).status == 429
    host.lookup("churn")._batcher._rows = 0
    assert (await call("POST", PREDICT, body(GOOD))).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer good"}, 200),
        ({"authorization": "bearer  good "}, 200),
        ({"x-api-key": "fresh"}, 200),
        ({"x-api-key": "reader"}, 403),
        ({"x-api-key": "unknown"}, 401),
        ({"authorization": "Basic good"}, 401),
        ({"authorization": ""}, 401),
        ({}, 401),
    ],
)
async def test_keys(call: Any, headers: dict[str, str], status: int):
    for path, raw in ((PREDICT, body(GOOD)), (INFER, infer())):
        reply = await call("POST", path, raw, headers, key=None)
        assert reply.status == status
        assert reply.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_a_cached_key_is_not_verified_again(call: Any, keys: Keys):
    await call("POST", PREDICT, body(GOOD))
    await call("POST", PREDICT, body(GOOD), key="fresh")
    assert keys.verified == [b"fresh"]


async def test_metadata_needs_read_and_health_nothing(call: Any):
    assert (await call("GET", "/v2/models/churn", key="reader")).status == 200
    assert (await call("GET", "/v2", key=None)).status == 401
    assert (await call("GET", "/v2/health/live", key=None)).status == 200
    assert (await call("GET", "/v2/health/ready", key=None)).json() == {"ready": True}


async def test_an_empty_host_is_alive_and_not_ready(asgi: Callable[[Any], Any], keys: Keys):
    """Client trap 13: C++ clients that mean the second ask the first; docs/serving.md says so."""
    host = Host(ServingSettings())
    call = asgi(Dispatcher(inner, host, keys, HostRepository(host), ServingSettings()))
    assert (await call("GET", "/v2/health/live")).status == 200
    reply = await call("GET", "/v2/health/ready")
    assert (reply.status, reply.json(), reply.headers["retry-after"]) == (503, {"error": "no model is loaded"}, "1")
    await host.close()


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress), ("identity", bytes)],
)
@pytest.mark.parametrize(("path", "raw"), [(INFER, infer()), (PREDICT, body(GOOD))])
async def test_compressed_requests(call: Any, encoding: str, compress: Callable[[bytes], bytes], path: str, raw: bytes):
    assert (await call("POST", path, compress(raw), {"content-encoding": encoding})).status == 200


async def test_bad_and_hostile_compression(call: Any):
    packed = gzip.compress(infer())
    for raw, encoding, status in (
        (packed[:-9], "gzip", 400),
        (packed + b"more", "gzip", 400),
        (packed, "deflate", 400),
        (packed, "br", 400),
        (gzip.compress(b" " * (64 << 20)), "gzip", 413),  # 64 MiB of spaces in 64 KiB
    ):
        assert (await call("POST", INFER, raw, {"content-encoding": encoding})).status == status


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("gzip;q=0.2, deflate;q=0.9", "deflate"),
        ("gzip;q=0", None),
        ("br", None),
        ("gzip;q=oops", None),
        ("gzip; q=0", None),
        ("gzip; q=0.5", "gzip"),
    ],
)
async def test_compressed_answers(call: Any, accepted: str, encoding: str | None):
    rows = 200
    numeric = NUMERIC | {"shape": [rows, 3], "data": [41, 2.5, 1] * rows}
    colour = COLOUR | {"shape": [rows, 1], "data": ["red"] * rows}
    raw = infer(numeric, colour)
    plain = await call("POST", INFER, raw)
    reply = await call("POST", INFER, raw, {"accept-encoding": accepted})
    assert reply.headers.get("content-encoding") == encoding
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding]
    assert unpack(reply.body) == plain.body
    assert int(reply.headers["content-length"]) == len(reply.body)


async def test_a_deadline_is_504(call: Any, host: Host):
    served = host.lookup("churn")
    served._batcher._clock = lambda: 1e18
    reply = await call("POST", PREDICT, body(GOOD), {"x-request-timeout-ms": "50"})
    assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")
    assert (await call("POST", INFER, infer(parameters={"timeout": 50_000}))).status == 504
    for value in ("-1", "1.5", "", "9" * 5000):
        reply = await call("POST", PREDICT, body(GOOD), {"x-request-timeout-ms": value})
        assert (reply.status, "milliseconds, in at most 15 digits" in reply.json()["detail"]) == (400, True)
    assert host.lookup("churn").metrics.statuses == {504: 2, 400: 4}


async def test_predict_is_post_only(call: Any):
    reply = await call("GET", PREDICT)
    assert (reply.status, reply.json()["code"], reply.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v1/models/churn"])
async def test_what_is_read_is_read_by_get_and_head(call: Any, path: str):
    assert (await call("HEAD", path)).status == 200
    reply = await call("POST", path)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


async def test_half_a_character_is_refused(call: Any):
    raw = body(GOOD).replace(b'"red"', rb'"\ud800"')
    reply = await call("POST", PREDICT, raw)
    assert (reply.status, reply.json()["errors"][0]["loc"]) == (422, ["instances", 0, "colour"])
    assert (await call("POST", INFER, infer().replace(b'"red"', rb'"\ud800"'))).status == 400


async def on_the_loop(host: Host, source: ModelSource) -> ServedModel:
    """The model, served; whoever asks is answered within a turn of the event loop."""
    served = await host.load(source)
    await host.swap(served)
    if not served.plan.inline:
        pytest.skip("the machine was too busy to plan this model on the event loop")
    return served


@pytest.mark.parametrize("limits", [Batching(8, 64, max_delay_ms=60_000), Batching(8, 64, 60_000, cache_bytes=1 << 20)])
async def test_who_waits_for_company_is_dropped_when_gone(
    call: Any, host: Host, source: Callable[..., ModelSource], table_folder: Path, limits: Batching
):
    served = await on_the_loop(host, source(table_folder, batching=limits))
    leave = asyncio.Event()
    async with asyncio.timeout(30):
        gone = asyncio.create_task(call("POST", PREDICT, body(GOOD), leave=leave))
        await asyncio.sleep(0.01)
        leave.set()
        assert (await gone).status == 0
    assert served.metrics.statuses == {499: 1}
    batcher = served._batcher
    assert batcher is not None
    batcher._pump()  # as the timer would
    assert served.metrics.runs == {}


async def test_who_waits_for_the_run_of_another_who_waits_for_company_is_answered_in_time(
    call: Any, host: Host, source: Callable[..., ModelSource], table_folder: Path
):
    limits = Batching(8, 64, 60_000, cache_bytes=1 << 20)
    served = await on_the_loop(host, source(table_folder, batching=limits))
    leave = asyncio.Event()
    async with asyncio.timeout(30):
        gone = asyncio.create_task(call("POST", PREDICT, body(GOOD), leave=leave))
        await asyncio.sleep(0.01)
        for path, content in ((PREDICT, body(GOOD)), (INFER, infer())):
            assert (await call("POST", path, content, {"x-request-timeout-ms": "20"})).status == 504
        leave.set()
        assert (await gone).status == 0
    assert served.metrics.statuses == {499: 1, 504: 2}
    batcher = served._batcher
    assert batcher is not None
    batcher._pump()  # as the timer would
    assert served.metrics.runs == {}


async def test_the_parts_of_a_request_are_dropped_when_its_caller_has_gone(
    call: Any, host: Host, source: Callable[..., ModelSource], table_folder: Path
):
    """On the event loop too, where each part has a turn of its own."""
    rows = 200
    served = await on_the_loop(host, source(table_folder, batching=Batching(1, 2 * rows)))
    leave = asyncio.Event()
    task = asyncio.create_task(call("POST", PREDICT, body(*[GOOD] * rows), leave=leave))
    for _ in range(20):
        await asyncio.sleep(0)
    assert served.metrics.runs[1][0] < rows
    leave.set()
    assert (await task).status == 0
    assert served.metrics.statuses == {499: 1}
    for _ in range(2 * rows):
        await asyncio.sleep(0)
    assert served.metrics.runs[1][0] < rows


async def test_an_answer_that_is_kept_is_given_without_watching_its_caller(
    call: Any, host: Host, source: Callable[..., ModelSource], table_folder: Path
):
    await host.swap(await host.load(source(table_folder, batching=Batching(8, 64, cache_bytes=1 << 20))))
    assert (await call("POST", PREDICT, body(GOOD))).status == 200
    kept = asyncio.create_task(call("POST", PREDICT, body(GOOD), {"x-request-timeout-ms": "1000"}))
    await asyncio.sleep(0)
    assert kept.done()


async def test_a_caller_who_leaves_a_slow_model_is_dropped(call: Any, host: Host, caplog: pytest.LogCaptureFixture):
    served = host.lookup("churn")
    served.leave_loop()
    runs: list[asyncio.Future[None]] = []

    async def slow(*_: Any) -> Any:
        runs.append(asyncio.get_running_loop().create_future())
        await runs[-1]

    served.infer = slow  # type: ignore[method-assign]
    leave = asyncio.Event()
    task = asyncio.create_task(call("POST", PREDICT, body(GOOD), leave=leave))
    await asyncio.sleep(0.01)
    leave.set()
    assert (await task).status == 0
    assert runs[0].cancelled()
    assert served.metrics.statuses == {499: 1}
    with caplog.at_level(logging.ERROR):
        late = await call("POST", PREDICT, body(GOOD), {"x-request-timeout-ms": "5"})
    assert late.status == 504
    assert runs[1].cancelled()
    assert not caplog.records


async def test_an_unexpected_failure_is_500_and_logged(call: Any, host: Host, caplog: pytest.LogCaptureFixture):
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret")

    host.lookup("churn").infer = broken  # type: ignore[method-assign]
    for path, raw in ((PREDICT, body(GOOD)), (INFER, infer())):
        reply = await call("POST", path, raw)
        assert reply.status == 500
        assert b"secret" not in reply.body
    assert host.lookup("churn").metrics.statuses == {500: 2}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/api/v1/endpoints/churn/explain"),
        ("POST", "/api/v1/endpoints"),
        ("GET", "/api/v1/endpoints/predict"),
        ("PUT", "/api/v1/endpoints/predict"),
        ("GET", "/v22"),
        ("GET", "/docs"),
    ],
)
async def test_other_paths_go_to_the_inner_application(call: Any, verb: str, path: str):
    reply = await call(verb, path)
    assert (reply.status, reply.body.decode()) == (299, path)


async def test_a_picture_by_base64(call: Any):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(file, "PNG")
    reply = await call("POST", "/api/v1/endpoints/bright/predict", body(base64.b64encode(file.getvalue()).decode()))
    assert reply.json()["predictions"] == [{"value": 9.0}]


def test_every_error_of_the_tree_has_a_status():
    def leaves(error: type[AimassError]) -> list[type[AimassError]]:
        return [error, *(leaf for child in error.__subclasses__() for leaf in leaves(child))]

    assert {error.code for error in leaves(AimassError)} <= set(STATUS)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/api/v1/endpoints/predict/predict", "/api/v1/endpoints/{name}/predict"),
        ("/v2/models/v2/versions/3/infer", "/v2/models/{name}/versions/{version}/infer"),
        ("/v2/repository/models/models/load", "/v2/repository/models/{name}/load"),
        ("/v1/models/v1:predict", "/v1/models/{name}:predict"),
        ("/v2/health/ready", "/v2/health/ready"),
    ],
)
def test_a_span_is_named_by_its_route(path: str, route: str):
    assert route_of(path) == route
