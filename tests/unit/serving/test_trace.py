"""A caller's trace goes on in the answer and in the log, in front of FastAPI and behind it."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from app.core.errors import Unauthenticated
from app.core.principal import Principal
from app.gateway.middleware import RequestMiddleware
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.gateway.predict.ports import Receive, Scope, Send
from app.serving.host import Host
from app.settings import ServingSettings
from tests.support.repository import HostRepository

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


class Keys:
    def cached(self, key: bytes, /) -> Principal | None:
        if key == b"broken":
            raise ZeroDivisionError("secret")
        return Principal("1", "good", frozenset({"predict", "read"}))

    async def verify(self, key: bytes, /) -> Principal:
        raise Unauthenticated(f"unknown key of {len(key)} bytes")


async def application(scope: Scope, _receive: Receive, send: Send) -> None:
    if b"broken" in dict(scope["headers"]).values():
        raise ZeroDivisionError("secret")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(params=["/v2/health/live", "/v2/models/nope", "/api/v1/endpoints/nope/predict", "/api/v1/jobs"])
async def call(request: pytest.FixtureRequest, asgi: Callable[[Any], Any]) -> Any:
    """Calls an open path, two that are refused, and one that FastAPI would answer."""
    settings = ServingSettings()
    host = Host(settings)
    client = asgi(
        Dispatcher(
            RequestMiddleware(application, 1 << 20, Bodies(1 << 20)), host, Keys(), HostRepository(host), settings
        )
    )

    async def get(headers: dict[str, str]) -> Any:
        return await client("GET" if "predict" not in request.param else "POST", request.param, headers=headers)

    yield get
    await host.close()


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (VALID, "01"),
        (f"00-{TRACE}-{PARENT}-00", "00"),
        (f"00-{TRACE}-{PARENT}-ff", "03"),  # flags that are not defined are not passed on
        (f"cc-{TRACE}-{PARENT}-01", "01"),  # a later version
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-holds", "01"),
    ],
)
async def test_a_valid_trace_goes_on_with_a_span_of_ours(call: Any, given: str, flags: str):
    answers = [(await call({"traceparent": given})).headers["traceparent"] for _ in range(2)]
    spans = set()
    for answer in answers:
        version, trace, span, kept = answer.split("-")
        assert (version, trace, kept) == ("00", TRACE, flags)
        assert re.fullmatch("[0-9a-f]{16}", span)
        spans.add(span)
    assert len(spans | {PARENT}) == 3


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00",
        VALID.upper(),
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"{VALID}-more",  # version 00 has four parts
        f"cc-{TRACE}-{PARENT}-01.more",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}-{'x' * 16}-01",
    ],
)
async def test_an_invalid_one_is_no_error_and_is_not_answered(call: Any, given: str):
    reply, plain = await call({"traceparent": given}), await call({})
    assert reply.status == plain.status
    assert "traceparent" not in reply.headers
    assert "traceparent" not in plain.headers


@pytest.mark.parametrize("call", ["/v2/models/churn", "/api/v1/jobs"], indirect=True)
async def test_the_log_of_a_failure_names_the_request_and_its_trace(call: Any, caplog: pytest.LogCaptureFixture):
    for headers, names in (
        ({"traceparent": VALID, "x-request-id": "mine"}, f"request=mine trace={TRACE} "),
        ({"x-request-id": "bare"}, "request=bare "),
    ):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            reply = await call({**headers, "x-api-key": "broken"})
        assert reply.status == 500
        assert b"secret" not in reply.body
        [record] = caplog.records
        assert record.getMessage().startswith(names)
        assert record.exc_info
        assert ("trace=" in record.getMessage()) == ("traceparent" in headers)
