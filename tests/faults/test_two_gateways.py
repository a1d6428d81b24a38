"""Two gateway processes over one registry: what one is told, both do."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.services.local_copies import FOLDER, GRACE_S
from tests.support.jobs import quick
from tests.support.platform import KEY, Platform, breast_cancer_csv
from tests.support.servers import free_port, wait_until

READY = "/v2/models/shared/ready"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(AIMASS_GATEWAY_FOLLOW_S="2") as running:
        running.upload("tumours", breast_cancer_csv())
        for _ in range(2):
            running.wait(running.submit(**quick("shared"))["id"], "succeeded")
        yield running


@pytest.fixture(scope="module")
def other(platform: Platform) -> Iterator[httpx.Client]:
    """A second gateway on the same data folder."""
    port = free_port()
    environment = os.environ | {"AIMASS_DATA_DIR": str(platform.data_dir), "AIMASS_GATEWAY_PORT": str(port)}
    environment["AIMASS_GATEWAY_GRPC_PORT"] = "0"
    process = subprocess.Popen([sys.executable, "-m", "app.gateway.main"], env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": KEY}) as client:
            wait_until(lambda: status(client, "/readyz") == 200, 60, "the second gateway is ready")
            yield client
    finally:
        process.terminate()
        process.wait(30)


def status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.HTTPError:
        return 0


def versions(client: httpx.Client) -> Any:
    answer = client.get("/v2/models/shared")
    return answer.json()["versions"] if answer.status_code == 200 else None


def route(platform: Platform, version: int) -> None:
    platform.call("PUT", "/api/v1/endpoints/shared", json={"model": "shared", "routes": [{"version": version}]})


@pytest.mark.parametrize("version", [1, 2])
def test_a_change_reaches_the_other(platform: Platform, other: httpx.Client, version: int) -> None:
    route(platform, version)
    wait_until(lambda: versions(other) == [str(version)], 20, "the other serves it")


def test_an_endpoint_that_is_made_again_is_not_taken_for_the_old_one(platform: Platform, other: httpx.Client) -> None:
    """The same revision of the same name: a gateway that heard of neither change must not go by the revision."""
    platform.client.delete("/api/v1/endpoints/shared")
    route(platform, 1)
    wait_until(lambda: versions(other) == ["1"], 20, "the other serves it")
    second = next(p for p in platform.processes("app.gateway.main") if "--fd" not in p.cmdline())
    platform.freeze(second)
    try:
        platform.call("DELETE", "/api/v1/endpoints/shared", 202)  # not (yet) in the frozen one
        route(platform, 2)
        assert platform.call("GET", "/api/v1/endpoints/shared")["revision"] == 1
    finally:
        second.resume()
    wait_until(lambda: versions(other) == ["2"], 20, "the other serves the new one")


def test_unloading_and_loading_hold_for_both_and_for_a_restart(platform: Platform, other: httpx.Client) -> None:
    route(platform, 1)
    wait_until(lambda: status(other, READY) == 200, 20, "the other serves it")
    platform.call("POST", "/v2/repository/models/shared/unload", 200)
    assert platform.client.get(READY).status_code == 503
    assert platform.call("GET", "/api/v1/endpoints/shared")["state"] == "unloaded"
    wait_until(lambda: status(other, READY) == 503, 20, "the other has let go of it")
    first = next(p for p in platform.processes("app.gateway.main") if "--fd" in p.cmdline())
    first.kill()
    first.wait(5)
    wait_until(lambda: status(platform.client, "/readyz") == 200, 30, "the launcher starts the gateway again")
    assert platform.client.get(READY).status_code == 503
    assert other.post("/v2/repository/models/shared/load").status_code == 200
    wait_until(lambda: status(platform.client, READY) == 200, 20, "the first serves it again")


def test_only_copies_that_nobody_serves_are_removed(platform: Platform, other: httpx.Client) -> None:
    route(platform, 1)
    wait_until(lambda: versions(other) == ["1"], 20, "the other serves it")
    served = platform.data_dir / FOLDER / platform.call("GET", "/api/v1/models/shared/versions/1")["digest"]
    stale = platform.data_dir / FOLDER / ("0" * 64)
    stale.mkdir()
    for folder in (stale, served):
        os.utime(folder, (time.time() - GRACE_S - 60,) * 2)
    wait_until(lambda: not stale.exists(), 20, "the stale copy is removed")
    assert (served / "model.onnx").exists()
