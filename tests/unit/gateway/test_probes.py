"""Probes by the verbs that load balancers use."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.gateway.deps import gateway
from app.gateway.probes import endpoints


@pytest.fixture
def loader() -> Any:
    return SimpleNamespace(synced=True, standings=SimpleNamespace(failures=dict, missing=list))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, loader: Any) -> httpx.AsyncClient:
    monkeypatch.setattr(endpoints, "CHECKS", {})
    api = FastAPI()
    api.include_router(endpoints.router)
    state = SimpleNamespace(
        platform=None,
        loader=loader,
        host=SimpleNamespace(outages=dict),
    )
    api.dependency_overrides[gateway] = lambda: state
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://probed")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_head_answers_as_get(probed: Any, path: str):
    found = [await probed.request(verb, path) for verb in ("GET", "HEAD")]
    assert [answer.status_code for answer in found] == [200, 200]
    assert found[0].headers["content-length"] == found[1].headers["content-length"]
    assert (await probed.post(path)).status_code == 405


async def test_a_process_that_loads_lives_and_names_what_is_missing(probed: Any, loader: Any):
    loader.synced, loader.standings.missing = False, lambda: ["churn", "price"]
    live, ready = [await probed.get(path) for path in ("/livez", "/readyz")]
    assert (live.status_code, live.json()) == (200, {"status": "loading"})
    assert (ready.status_code, ready.headers["retry-after"]) == (503, "2")
    assert ready.json() == {"status": "unready", "checks": {"endpoints": "not loaded yet: churn, price"}}
