"""Endpoints that are routed to a loaded model, and what becomes of that when they are not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.core.errors import NotFound, Unavailable
from app.core.resources import Endpoint
from app.gateway import loading
from app.gateway.loading import Loader
from app.serving.host import Host, ServedModel
from app.settings import ServingSettings
from app.specs.endpoints import EndpointSpec, RouteSpec
from app.telemetry.metrics import ServingMetrics
from tests.support.graphs import heavy, source


class Registry:
    """Every port that a route is written to. `error` is what the write raises, None: none."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[None]:
        yield
        if self._error:
            raise self._error

    async def hold(self, *_: object) -> None:
        pass

    async def put(self, name: str, model: str, version: int, variant: str, spec: Any) -> tuple[Endpoint, bool]:
        return Endpoint(name, model, version, variant, spec, 1, 0.0, 0.0), True

    report = publish = hold

    @staticmethod
    def listing(endpoints: list[Endpoint]) -> Any:
        async def all_() -> list[Endpoint]:
            return endpoints

        return all_

    @staticmethod
    def of(endpoints: list[Endpoint]) -> Any:
        async def get(name: str) -> Endpoint:
            return next(endpoint for endpoint in endpoints if endpoint.name == name)

        return get


async def route(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *, loaded: bool
) -> tuple[str, int, bool]:
    """What is exposed once `m` was routed, the bytes that models take, and whether the model answers."""
    exposed, registry = CollectorRegistry(), Registry(error)
    host = Host(ServingSettings(threads=1), ServingMetrics(exposed))
    for writer in ("ModelWriter", "EndpointWriter"):
        monkeypatch.setattr(loading, writer, lambda _: registry)
    platform: Any = SimpleNamespace(database=registry, wake=registry)
    processes: Any = registry
    loader = Loader(platform, host, processes)

    async def load(name: str, *_: object) -> tuple[ServedModel, str]:
        return await host.load(source(folder, name)), "fp32"

    monkeypatch.setattr(loader, "_load", load)
    version: Any = SimpleNamespace(model="m", version=1)
    spec = EndpointSpec(model="m", routes=[RouteSpec(version=1)], loaded=loaded)
    try:
        async with asyncio.timeout(60):
            await loader._route("m", version, None, spec)
            assert error is None
    except (NotFound, Unavailable, asyncio.CancelledError) as raised:
        assert raised is error  # noqa: PT017 - each of them, or none
    await host.drained()
    try:
        return generate_latest(exposed).decode(), host._residency.bytes(), host.get("m") is not None
    finally:
        await host.close()


@pytest.mark.parametrize(
    ("error", "loaded"),
    [
        (Unavailable("the database is away"), True),
        (NotFound("the version was deleted"), True),
        (asyncio.CancelledError(), True),
        (None, False),
    ],
)
async def test_a_loaded_model_that_is_not_routed_to_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *, loaded: bool
):
    text, taken, answers = await route(heavy(tmp_path / "m", 1), monkeypatch, error, loaded=loaded)
    assert "aimass_serving_model_loaded{" not in text
    assert (taken, answers) == (0, False)


async def test_one_that_is_routed_to_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text, taken, answers = await route(heavy(tmp_path / "m", 1), monkeypatch, None, loaded=True)
    assert "aimass_serving_model_loaded{" in text
    assert taken >= 1 << 20
    assert answers


async def test_what_loads_at_the_start_is_unavailable_and_says_why_if_it_cannot(monkeypatch: pytest.MonkeyPatch):
    there = [Endpoint(name, "m", 1, "fp32", {"model": "m", "routes": [{"version": 1}]}, 1, 0.0, 0.0) for name in "ab"]
    registry = Registry(None)
    monkeypatch.setattr(registry, "read", registry.write, raising=False)
    monkeypatch.setattr(registry, "all", registry.listing(there), raising=False)
    monkeypatch.setattr(registry, "get", registry.of(there), raising=False)
    monkeypatch.setattr(loading, "EndpointReader", lambda _: registry)
    platform: Any = SimpleNamespace(database=registry, wake=registry, scratch=Path("/nowhere"))
    processes: Any = registry
    host = Host(ServingSettings(threads=1))
    loader = Loader(platform, host, processes)
    tried, go_on = list[str](), asyncio.Event()

    async def version(*_: object) -> Any:
        return None

    async def fail(name: str, *_: object) -> Any:
        tried.append(name)
        await go_on.wait()
        raise NotFound("needs 94 MiB of the 90 MiB")

    monkeypatch.setattr(loader, "_version", version)
    monkeypatch.setattr(loader, "_load", fail)
    monkeypatch.setattr(loading, "remove_unused", lambda *_: None)
    try:
        await loader.expect()
        sync = asyncio.create_task(loader.sync())
        async with asyncio.timeout(30):
            while not tried:  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0)
        assert (loader.standings.missing(), loader.synced, host.ready()) == (["a", "b"], False, False)
        with pytest.raises(Unavailable, match="it is on its way"):
            host.lookup("b")
        made: Any = SimpleNamespace(model="m", version=1)
        spec = EndpointSpec(model="m", routes=[RouteSpec(version=1)])
        change = asyncio.create_task(loader.put("c", made, None, spec))
        await asyncio.sleep(0)
        go_on.set()
        await sync
        with pytest.raises(NotFound):
            await change
        assert tried == ["a", "c", "b"]  # a change does not wait for all that was to be loaded before it
        assert (loader.standings.missing(), loader.synced) == ([], True)
        for name in "ab":
            with pytest.raises(Unavailable, match=f"'{name}' could not be loaded: needs 94 MiB of the 90 MiB"):
                host.lookup(name)
    finally:
        await host.close()


async def test_a_notice_that_comes_while_endpoints_are_loaded_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    registry: Any = Registry(None)

    async def listen(_: str) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    settings = SimpleNamespace(serving=ServingSettings(poll_s=3600))
    platform: Any = SimpleNamespace(settings=settings, wake=SimpleNamespace(listen=listen))
    host: Any = SimpleNamespace()
    loader, looked, again = Loader(platform, host, registry), list[str](), asyncio.Event()

    async def sync() -> None:
        looked.append("once more" if looked else "once")
        if len(looked) > 1:
            again.set()
        else:
            loader.report_all()  # this process had been forgotten, say

    monkeypatch.setattr(loader, "sync", sync)
    running = asyncio.create_task(loader.run())
    try:
        async with asyncio.timeout(5):
            await again.wait()
        assert looked == ["once", "once more"]  # for the notice, and not again without one
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_version_that_waited_for_another_load_is_read_anew(monkeypatch: pytest.MonkeyPatch):
    """Its variants may have been judged meanwhile; one that did not wait is taken as it was found."""
    nothing: Any = SimpleNamespace()
    loader, routed = Loader(nothing, nothing, nothing), list[Any]()

    async def read(model: str, number: int) -> Any:
        return SimpleNamespace(model=model, version=number, read="under the lock")

    async def note(_: str, version: Any, *__: object, **___: object) -> None:
        routed.append(version.read)
        raise Unavailable("no more than that is asked")

    monkeypatch.setattr(loader, "_version", read)
    monkeypatch.setattr(loader, "_route", note)
    found: Any = SimpleNamespace(model="m", version=1, read="before")
    spec = EndpointSpec(model="m", routes=[RouteSpec(version=1)])
    with pytest.raises(Unavailable):
        await loader.put("e", found, None, spec)
    async with loader._lock:
        waiting = asyncio.create_task(loader.put("e", found, None, spec))
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await waiting
    assert routed == ["before", "under the lock"]
