"""The dispatcher and FastAPI's dependency judge the same headers in the same way."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI

from app.core.errors import Unauthenticated
from app.core.principal import Principal
from app.gateway.deps import require
from app.gateway.errors import install
from app.gateway.middleware import RequestMiddleware
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.host import Host
from app.settings import ServingSettings
from tests.support.repository import HostRepository


class Keys:
    def cached(self, key: bytes, /) -> Principal | None:
        scopes = {b"reader": {"read"}, b"admin": {"admin"}, b"predictor": {"predict"}}.get(key)
        return Principal("1", key.decode(), frozenset(scopes)) if scopes else None  # type: ignore[arg-type]

    async def verify(self, key: bytes, /) -> Principal:
        raise Unauthenticated(f"unknown key of {len(key)} bytes")


@pytest.fixture
async def call(asgi: Callable[[Any], Any]) -> Any:
    api = FastAPI()
    api.state.gateway = SimpleNamespace(keys=Keys())
    install(api, [])
    api.add_middleware(RequestMiddleware, max_body=1024, bodies=Bodies(1 << 20))

    @api.get("/behind")
    async def behind(_: Annotated[Principal, Depends(require("read"))]) -> None:
        pass

    host = Host(ServingSettings())
    client = asgi(Dispatcher(api, host, Keys(), HostRepository(host), ServingSettings()))  # type: ignore[arg-type] # Starlette's own types
    yield client
    await host.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "reader"}, 200),
        ({"x-api-key": "predictor"}, 403),
        ({"x-api-key": "unknown"}, 401),
        ({"x-api-key": ""}, 401),
        ({}, 401),
        ({"authorization": "Bearer reader"}, 200),
        ({"authorization": "bearer reader"}, 200),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic reader"}, 401),
        ({"authorization": ""}, 401),
        ({"x-api-key": "", "authorization": "Bearer reader"}, 200),  # an empty key is none
        ({"x-api-key": "", "authorization": "Bearer unknown"}, 401),
        ({"x-api-key": "reader", "authorization": "Bearer unknown"}, 200),  # X-API-Key comes first
        ({"x-api-key": "unknown", "authorization": "Bearer reader"}, 401),
    ],
)
async def test_both_sides_give_the_same_answer(call: Any, headers: dict[str, str], status: int):
    in_front = await call("GET", "/v2", headers=headers, key=None)
    behind = await call("GET", "/behind", headers=headers, key=None)
    assert (in_front.status, behind.status) == (status, status)
    if status == 401:
        assert (in_front.headers["www-authenticate"], behind.headers["www-authenticate"]) == ("Bearer", "Bearer")
        assert in_front.json()["error"] == behind.json()["detail"]
