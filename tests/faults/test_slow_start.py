"""A gateway process that has many megabytes of models to load: it lives meanwhile, and says what is missing."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.support.graphs import heavy
from tests.support.platform import Platform
from tests.support.servers import wait_until

ENDPOINTS = [f"heavy-{number}" for number in range(4)]


def test_a_gateway_lives_while_it_loads_and_says_what_is_missing(tmp_path: Path) -> None:
    content = (heavy(tmp_path / "heavy", 32) / "model.onnx").read_bytes()
    with Platform() as platform:
        job = platform.call("POST", "/api/v1/models/heavy/versions", 202, files={"model": content})
        platform.wait(job["id"], "succeeded")
        for name in ENDPOINTS:
            platform.call("PUT", f"/api/v1/endpoints/{name}", 201, json={"model": "heavy", "routes": [{"version": 1}]})
        [gateway] = platform.processes("app.gateway.main")
        gateway.kill()
        gateway.wait(5)
        seen: list[tuple[httpx.Response, httpx.Response, httpx.Response, httpx.Response]] = []

        def ready() -> bool:
            try:
                refused, get = asked(platform), platform.client.get
                seen.append((refused, get("/v2/health/ready"), get("/readyz"), get("/livez")))
            except httpx.HTTPError:
                return False
            return seen[-1][2].status_code == 200

        wait_until(ready, 60, "the launcher starts the gateway again")
        assert {live.status_code for *_, live in seen} == {200}
        refused, unready, missing, live = seen[0]
        assert (refused.status_code, unready.status_code, missing.status_code) == (503, 503, 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert "it is on its way" in refused.json()["error"]
        assert f"not loaded yet: {', '.join(ENDPOINTS)}" in missing.json()["checks"]["endpoints"]
        assert live.json() == {"status": "loading"}
        assert asked(platform).status_code == 200
        assert platform.call("GET", "/livez") == {"status": "ok"}


def asked(platform: Platform) -> httpx.Response:
    """A prediction of the endpoint that is loaded last."""
    row: Any = np.zeros(512).tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 512], "data": row}
    return platform.client.post(f"/v2/models/{ENDPOINTS[-1]}/infer", json={"inputs": [tensor]})
