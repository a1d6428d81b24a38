"""Who finds no room is told so before a byte of the body is looked at, in the words of the queue itself."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.gateway.errors import error_json
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.careful import CarefulTable
from app.serving.host import Batching, Host, ModelSource, ServedModel
from app.serving.oip_request import may_name_priority
from app.serving.waiting import Pending
from app.settings import ServingSettings
from tests.support.repository import HostRepository
from tests.support.serving import COLOUR, GOOD, INFER, NUMERIC, PREDICT, Keys, body, infer, inner

V1 = "/v1/models/churn:predict"
Say = Callable[..., Any]


@pytest.fixture
async def serve(source: Callable[..., ModelSource], table_folder: Any) -> AsyncIterator[Say]:
    """Loads the model of `churn` with these limits; (it, the application)."""
    host = Host(ServingSettings(threads=1))

    async def made(**limits: Any) -> tuple[ServedModel, Dispatcher]:
        served = await host.load(source(table_folder, batching=Batching(8, 512, **limits)))
        await host.swap(served)
        return served, Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings())

    yield made
    await host.close()


async def unread(app: Dispatcher, path: str, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """What a request is answered whose body must not be asked for."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"x-api-key": "good", "x-request-id": "r", **headers}
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    await app({"type": "http", "method": "POST", "path": path, "headers": named}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def keep_waiting(served: ServedModel, *priorities: int) -> None:
    """Requests of one row each that take ten seconds to be answered; nothing runs."""
    batcher = served._batcher
    assert batcher is not None
    for priority in priorities:
        gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        gone.cancel()
        batcher._waiting.append(Pending((), 1, gone, 0.0, priority=priority))
    batcher._rows = len(priorities)
    batcher.pace.expect = lambda *_: 10.0  # type: ignore[method-assign]


@pytest.mark.parametrize(("path", "raw"), [(PREDICT, body(GOOD)), (INFER, infer()), (V1, body(GOOD))])
async def test_a_full_queue_refuses_before_the_body_is_read(serve: Say, asgi: Say, path: str, raw: bytes):
    served, app = await serve()
    served._batcher._rows = 512
    status, headers, content = await unread(app, path)
    assert (status, served.metrics.rejected, served.metrics.statuses) == (429, {"queue_full": 1}, {429: 1})

    served.check_room = lambda *_: None
    late = await asgi(app)("POST", path, raw, {"x-request-id": "r"})  # refused at the queue
    assert (late.status, late.body) == (status, content)
    assert late.headers == {name.decode(): value.decode() for name, value in headers.items()}
    assert "retry-after" in late.headers
    assert (served.metrics.rejected, served.metrics.statuses) == ({"queue_full": 2}, {429: 2})


async def test_one_row_that_fits_is_read(serve: Say, asgi: Say):
    served, app = await serve()
    served._batcher._rows = 511
    assert (await asgi(app)("POST", PREDICT, body(GOOD))).status == 200
    served._batcher._rows = 511
    assert (await asgi(app)("POST", PREDICT, body(GOOD, GOOD))).status == 429
    served._batcher._rows = 512
    assert (await asgi(app)("POST", PREDICT, b"{")).status == 429  # what is wrong with it nobody looks at


async def test_who_may_ask_for_a_kept_answer_is_heard(serve: Say, asgi: Say):
    served, app = await serve(cache_bytes=1 << 20)
    call = asgi(app)
    first = await call("POST", INFER, infer())
    served._batcher._rows = 512
    assert (await call("POST", INFER, infer())).json() == first.json()
    other = infer(NUMERIC | {"data": [1, 2, 0]}, COLOUR)
    assert (await call("POST", INFER, other)).status == 429


async def test_a_promise_refuses_before_the_body_is_read(serve: Say, asgi: Say):
    served, app = await serve(p95_s=1.0)
    keep_waiting(served, 2, 2)
    for path in (PREDICT, V1):
        status, headers, content = await unread(app, path)
        assert (status, headers[b"retry-after"]) == (429, b"10")
        assert b"slo.p95_ms" in content
    assert served.metrics.rejected == {"slo": 2}
    served._batcher.pace.expect = lambda *_: 0.1
    assert (await asgi(app)("POST", PREDICT, body(GOOD))).status == 200


async def test_a_deadline_that_cannot_be_kept_refuses_before_the_body_is_read(serve: Say):
    served, app = await serve()
    keep_waiting(served, 2, 2)
    assert (await unread(app, PREDICT, x_request_timeout_ms="9000"))[0] == 429
    assert (await unread(app, PREDICT, x_request_timeout_ms="soon"))[0] == 400
    assert served.metrics.rejected == {"deadline": 1}


async def test_the_open_protocol_may_name_a_priority(serve: Say, asgi: Say):
    served, app = await serve(p95_s=1.0)
    call = asgi(app)
    for raw, status in (
        (infer(), 429),
        (b"not even JSON", 429),  # without a priority it waits behind the others, whatever it is
        (infer(parameters={"priority": 2}), 429),
        (infer(parameters={"priority": 1}), 200),
        (infer(parameters={"priority": 1}).replace(b"priority", b"\\u0070riority"), 200),
    ):
        keep_waiting(served, 2, 2)
        assert (await call("POST", INFER, raw)).status == status
        served._batcher._waiting.clear()
    keep_waiting(served, 1, 2)
    assert (await unread(app, INFER))[0] == 429  # nobody is overtaken by anybody here


def test_a_priority_in_the_tensors_is_none():
    header = infer()
    assert not may_name_priority(header + b'"priority"', len(header))
    assert may_name_priority(infer(parameters={"priority": 3}), 1 << 20)


@pytest.mark.parametrize("path", [PREDICT, V1])
async def test_a_large_refusal_is_decided_off_the_event_loop(
    serve: Say, asgi: Say, monkeypatch: pytest.MonkeyPatch, path: str
):
    _, app = await serve()
    by_loop: list[bool] = []
    read = CarefulTable.__call__

    def watched(*given: Any) -> Any:
        by_loop.append(threading.current_thread() is threading.main_thread())
        return read(*given)

    monkeypatch.setattr(CarefulTable, "__call__", watched)
    bad = GOOD | {"age": "x"}
    status = 422 if path == PREDICT else 400
    assert (await asgi(app)("POST", path, body(*[bad] * 2))).status == status
    assert (await asgi(app)("POST", path, body(*[bad] * 500))).status == status
    assert by_loop == [True, False]


@pytest.mark.parametrize("path", [PREDICT, V1])
async def test_what_may_take_long_is_decoded_off_the_event_loop(serve: Say, asgi: Say, path: str):
    served, app = await serve()
    asked: list[tuple[str, bool]] = []
    quick = {body(GOOD): True, body(GOOD, GOOD): False}

    class Decoder:
        inline_bytes = 1000
        pictures = False

        def __call__(self, raw: bytes, _before: object = None) -> Any:
            asked.append(("any", threading.current_thread() is threading.main_thread()))
            return real(raw)

        def at_once(self, raw: bytes) -> Any:
            asked.append(("at once", threading.current_thread() is threading.main_thread()))
            return real(raw) if quick[raw] else None

    real, served.instances = served.instances, Decoder()
    call = asgi(app)
    for rows in (1, 2, 50):  # the last are too long to be asked
        reply = await call("POST", path, body(*[GOOD] * rows))
        assert (reply.status, len(reply.json()["predictions"])) == (200, rows)
    assert asked == [("at once", True), ("at once", True), ("any", False), ("any", False)]


@pytest.mark.parametrize("path", [PREDICT, V1])
@pytest.mark.parametrize("rows", [[GOOD], [{}], [GOOD, {}]])
async def test_more_rows_than_the_queue_takes_are_refused_before_their_values_are_looked_at(
    serve: Say, asgi: Say, path: str, rows: list[Any]
):
    served, app = await serve()
    reply = await asgi(app)("POST", path, body(*rows * 513))
    assert reply.status == 413
    assert b"rows are more than the endpoint queues (512)" in reply.body
    assert served.metrics.rejected == {"too_large": 1}


@pytest.mark.parametrize("path", [PREDICT, V1])
@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (rb'{"instances":[{"\ud800":1}]}', ["instances", 0, r"\ud800"]),
        (b'{"instances":[{"\xed\xa0\x80":1}]}', ["instances", 0, r"\ud800"]),
        (rb'{"instances":[{"a\udfff\u00e9":1}]}', ["instances", 0, r"a\udfffé"]),
        (rb'{"\ud800":1,"instances":[]}', [r"\ud800"]),
        (rb'{"instances":[{"colour":"\ud800"}]}', ["instances", 0, "age"]),
        (rb'{"instances":["\ud800"]}', ["instances", 0]),
        (rb'{"\ud800', None),
    ],
)
async def test_half_a_character_is_told_in_letters(serve: Say, asgi: Say, path: str, raw: bytes, field: Any):
    _, app = await serve()
    reply = await asgi(app)("POST", path, raw, {"x-request-id": "r1"})
    assert reply.status == (400 if path == V1 or field is None else 422)
    assert reply.headers["x-request-id"] == "r1"
    told = reply.json()
    if path == V1:
        assert list(told) == ["error"]
        assert field is None or told["error"].startswith(".".join(map(str, field)) + ": ")
    else:
        assert reply.headers["content-type"] == "application/problem+json"
        assert field is None or told["errors"][0]["loc"] == field


@pytest.mark.parametrize("raw", [rb'"\ud800"', b'"\xed\xa0\x80"'])
@pytest.mark.parametrize(
    "request_", ['{"id":%,"inputs":[]}', '{"parameters":{%:1},"inputs":[]}', '{"inputs":[{"name":%}]}']
)
async def test_half_a_character_is_no_request_of_the_open_protocol(serve: Say, asgi: Say, raw: bytes, request_: str):
    _, app = await serve()
    for more in (b"", b" " * 5000):  # by either of its decoders
        reply = await asgi(app)("POST", INFER, request_.encode().replace(b"%", raw) + more)
        assert (reply.status, list(reply.json())) == (400, ["error"])


def test_errors_are_json_whatever_they_repeat():
    assert json.loads(error_json({"a": "é\ud800", "b": [{"c": ("\udfff", 1)}], "d": None})) == {
        "a": r"é\ud800",
        "b": [{"c": [r"\udfff", 1]}],
        "d": None,
    }
