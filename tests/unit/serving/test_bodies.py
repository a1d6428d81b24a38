"""Bodies are bounded together: above the budget a new one is refused, and small ones are not counted."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import Overloaded
from app.gateway.middleware import RequestMiddleware
from app.gateway.predict.bodies import SMALL_BODY, Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.host import Host, ModelSource
from app.settings import ServingSettings
from tests.support.repository import HostRepository
from tests.support.serving import GOOD, INFER, PREDICT, Keys, body, infer, inner

KIB = 1024
LARGE = 150 * KIB
Messages = list[dict[str, Any]]


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(200 * KIB)


@pytest.fixture
def app(host: Host, bodies: Bodies) -> Dispatcher:
    api = RequestMiddleware(reading, 1 << 20, bodies)
    return Dispatcher(api, host, Keys(), HostRepository(host), ServingSettings(max_body_mb=1), bodies=bodies)


async def reading(_scope: Any, receive: Any, send: Any) -> None:
    """An application that takes whatever it could not read for a mistake of the caller, as FastAPI does."""
    status = 200
    try:
        while (await receive()).get("more_body"):
            pass
    except Exception:  # noqa: BLE001 - as it does
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Upload:
    """A request whose body comes as the test says."""

    def __init__(self, app: Callable[..., Awaitable[None]], path: str, **headers: str) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answer: Messages = []
        self.answered, self.fetches = asyncio.Event(), asyncio.Event()
        self.fetches.set()
        given = {"x-api-key": "good"} | headers
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": named}
        self.task = asyncio.create_task(app(scope, self.messages.get, self._send))  # type: ignore[arg-type] # a coroutine

    async def _send(self, message: dict[str, Any]) -> None:
        self.answered.set()
        await self.fetches.wait()
        self.answer.append(message)

    async def sends(self, part: bytes, *, more: bool = True) -> None:
        await self.messages.put({"type": "http.request", "body": part, "more_body": more})
        for _ in range(5):
            await asyncio.sleep(0)

    async def leaves(self) -> None:
        await self.messages.put({"type": "http.disconnect"})
        await self.task

    async def status(self) -> int:
        await asyncio.wait_for(self.task, 5)
        return self.answer[0]["status"]


def test_the_budget():
    bodies = Bodies(200 * KIB)
    held = bodies.grow(0, LARGE)
    assert (held, bodies.held) == (LARGE, LARGE)
    assert bodies.grow(held, LARGE - 1) == LARGE
    assert bodies.grow(0, SMALL_BODY) == 0
    with pytest.raises(Overloaded, match="AIMASS_LIMIT_BODIES_MB") as refused:
        bodies.grow(0, LARGE)
    assert refused.value.retry_after_s == 1.0
    assert bodies.held == LARGE
    bodies.check(SMALL_BODY)
    bodies.check(200 * KIB, held)
    with pytest.raises(Overloaded):
        bodies.check(LARGE)
    assert bodies.held == LARGE
    assert bodies.grow(held, 200 * KIB) == 200 * KIB
    bodies.give_back(200 * KIB)
    assert bodies.held == 0


@pytest.mark.parametrize("path", [PREDICT, INFER, "/v1/models/churn:predict", "/api/v1/jobs"])
async def test_above_it_a_body_is_refused_before_it_is_read(app: Dispatcher, bodies: Bodies, path: str):
    first = Upload(app, path, content_length=str(LARGE + 10))
    await first.sends(b" " * LARGE)  # and holds the rest back
    assert bodies.held == LARGE
    second = Upload(app, path, content_length=str(LARGE))
    assert await second.status() == 429
    assert dict(second.answer[0]["headers"])[b"retry-after"] == b"1"
    assert b"AIMASS_LIMIT_BODIES_MB" in second.answer[1]["body"]
    small = Upload(app, PREDICT)
    await small.sends(body(GOOD), more=False)
    assert await small.status() == 200
    await first.leaves()
    assert bodies.held == 0
    third = Upload(app, path, content_length=str(LARGE))
    await third.sends(b" " * LARGE, more=False)
    assert await third.status() == (200 if path == "/api/v1/jobs" else 400)
    assert bodies.held == 0


@pytest.mark.parametrize("path", [PREDICT, INFER, "/api/v1/jobs"])
async def test_what_is_announced_and_does_not_come_takes_nothing(app: Dispatcher, bodies: Bodies, path: str):
    idle = [Upload(app, path, content_length=str(LARGE)) for _ in range(8)]
    for upload in idle:
        await upload.sends(b" " * SMALL_BODY)
    assert bodies.held == 0
    honest = Upload(app, path, content_length=str(LARGE))
    await honest.sends(b" " * 100 * KIB)
    assert bodies.held == 100 * KIB
    await idle[0].sends(b" " * 50 * KIB)  # there is no room for it now
    assert await idle[0].status() == 429
    assert bodies.held == 100 * KIB
    await honest.sends(b" " * 50 * KIB, more=False)
    assert await honest.status() == (200 if path == "/api/v1/jobs" else 400)
    for upload in idle[1:]:
        await upload.leaves()
    assert bodies.held == 0


@pytest.mark.parametrize("path", [PREDICT, INFER, "/api/v1/jobs"])
async def test_what_came_of_a_body_that_grew_too_large_is_given_back(app: Dispatcher, bodies: Bodies, path: str):
    bodies.most = 4 << 20
    upload = Upload(app, path)
    await upload.sends(b" " * (1 << 20))
    assert bodies.held == 1 << 20
    await upload.sends(b" ")
    assert (await upload.status(), bodies.held) == (413, 0)
    announced = Upload(app, path, content_length=str((1 << 20) + 1))
    assert (await announced.status(), bodies.held) == (413, 0)


@pytest.mark.parametrize("path", [PREDICT, INFER, "/api/v1/jobs"])
async def test_a_body_in_chunks_is_counted_as_it_comes(app: Dispatcher, bodies: Bodies, path: str):
    first, second = Upload(app, path), Upload(app, path)
    for upload in (first, second):
        await upload.sends(b" " * 60 * KIB)
    assert bodies.held == 0
    await first.sends(b" " * 60 * KIB)
    assert bodies.held == 120 * KIB
    await second.sends(b" " * 60 * KIB)
    assert await second.status() == 429
    assert bodies.held == 120 * KIB
    await first.leaves()
    assert bodies.held == 0


async def test_a_packed_body_is_counted_as_what_it_becomes(app: Dispatcher, bodies: Bodies):
    packed = gzip.compress(b" " * 400 * KIB)
    upload = Upload(app, INFER, content_length=str(len(packed)), content_encoding="gzip")
    await upload.sends(packed, more=False)
    assert (await upload.status(), bodies.held) == (429, 0)


async def test_uploads_that_go_to_a_file_are_not_counted(app: Dispatcher, bodies: Bodies):
    upload = Upload(app, "/api/v1/datasets", content_length=str(8 << 30), content_type="multipart/form-data")
    await upload.sends(b" " * LARGE)
    assert bodies.held == 0
    await upload.sends(b" " * LARGE, more=False)
    assert await upload.status() == 200


V1 = "/v1/models/churn:predict"


@pytest.mark.parametrize(("path", "raw"), [(PREDICT, body(GOOD)), (INFER, infer()), (V1, body(GOOD))])
async def test_a_body_that_is_under_way_holds_no_version(
    app: Dispatcher, host: Host, source: Callable[..., ModelSource], table_folder: Path, path: str, raw: bytes
):
    upload = Upload(app, path)
    await upload.sends(raw[:20])
    old = host.lookup("churn")
    idle = old.idle
    await host.swap(await host.load(source(table_folder, version=4)))
    await upload.sends(raw[20:], more=False)
    assert (await upload.status(), idle) == (200, True)
    assert (host.lookup("churn").metrics.statuses, old.metrics.statuses) == ({200: 1}, {})


@pytest.mark.parametrize(("path", "raw"), [(PREDICT, body(GOOD)), (INFER, infer()), (V1, body(GOOD))])
async def test_a_body_that_comes_to_an_endpoint_that_has_gone_is_answered_so(
    app: Dispatcher, host: Host, path: str, raw: bytes
):
    upload = Upload(app, path)
    await upload.sends(raw[:20])
    await host.remove("churn")
    await upload.sends(raw[20:], more=False)
    assert await upload.status() == 404


@pytest.mark.parametrize(("path", "raw"), [(PREDICT, body(GOOD)), (INFER, infer()), (V1, body(GOOD))])
async def test_an_answer_that_is_not_fetched_holds_no_version(app: Dispatcher, host: Host, path: str, raw: bytes):
    upload = Upload(app, path)
    upload.fetches.clear()
    await upload.sends(raw, more=False)
    await upload.answered.wait()
    idle = host.lookup("churn").idle
    upload.fetches.set()
    assert (await upload.status(), idle) == (200, True)


def test_an_app_without_a_budget_of_its_own_has_room(host: Host):
    assert Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings())._bodies.most == 1 << 30
