"""Models that hang, fail or have no room, behind a real gateway."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.graphs import FOR_EVER, heavy, looping
from tests.support.platform import Platform
from tests.support.servers import wait_until

MIB = 24  # of weights of one model; of two, more than the budget
SETTINGS = {"AIMASS_SERVING_RUN_LIMIT_S": "1", "AIMASS_SERVING_MEMORY_MB": "46"}
ONES = {"name": "x", "datatype": "FP32", "shape": [1, 512], "data": [1.0] * 512}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("models")
    with Platform(**SETTINGS) as running:
        serve(running, "loop", looping(folder / "loop"))
        for at in range(2):
            serve(running, f"heavy{at}", heavy(folder / f"heavy{at}", MIB, bias=at))
        yield running


def serve(platform: Platform, name: str, folder: Path) -> None:
    files = {"model": (folder / "model.onnx").read_bytes()}
    job = platform.call("POST", f"/api/v1/models/{name}/versions", 202, files=files)
    platform.wait(job["id"], "succeeded")
    platform.call("PUT", f"/api/v1/endpoints/{name}", json={"model": name, "routes": [{"version": 1}]})


def turns(platform: Platform, trips: int) -> tuple[int, Any]:
    tensor = {"name": "trips", "datatype": "INT64", "shape": [1], "data": [trips]}
    answer = platform.client.post("/v2/models/loop/infer", json={"inputs": [tensor]})
    return answer.status_code, answer.json()


def test_a_request_that_runs_for_ever_is_ended_and_the_endpoint_serves_on(platform: Platform) -> None:
    with ThreadPoolExecutor(4) as pool:
        stuck = pool.submit(turns, platform, FOR_EVER)
        others = [pool.submit(turns, platform, trips) for trips in range(1, 30)]
        for trips, other in enumerate(others, 1):
            status, body = other.result()
            assert (status, body["outputs"][0]["data"]) == (200, [trips])
        status, body = stuck.result()
    assert status == 504
    assert "AIMASS_SERVING_RUN_LIMIT_S" in body["error"]
    assert turns(platform, 5)[0] == 200
    assert platform.call("GET", "/readyz", 200)["status"] == "ok"


def first(platform: Platform, name: str) -> float:
    answer = platform.call("POST", f"/v2/models/{name}/infer", 200, json={"inputs": [ONES]})
    value: float = answer["outputs"][0]["data"][0]
    return value


def loaded(platform: Platform) -> set[str]:
    text = platform.client.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("aimass_serving_model_bytes{")]
    return {line.split('endpoint="')[1].split('"')[0] for line in lines} - {"loop"}


def test_models_that_do_not_fit_take_turns_and_are_always_ready(platform: Platform) -> None:
    for at in (0, 1, 0):
        assert first(platform, f"heavy{at}") == 1.0 + at
        assert loaded(platform) == {f"heavy{at}"}
        for name in ("heavy0", "heavy1"):
            assert platform.call("GET", f"/v2/models/{name}/ready", 200)["ready"]
            assert platform.call("GET", f"/api/v1/endpoints/{name}", 200)["state"] == "ready"
    assert {item["state"] for item in platform.call("POST", "/v2/repository/index", 200)} == {"READY"}
    assert platform.call("GET", "/readyz", 200)["checks"]["endpoints"] == "ok"


def test_a_sleeping_model_whose_files_are_gone_is_unavailable_until_they_are_back(platform: Platform) -> None:
    assert first(platform, "heavy1") == 2.0
    files = platform.call("GET", "/api/v1/models/heavy0/versions/1/files")["items"]
    digest = next(file["sha256"] for file in files if file["path"] == "model.onnx")
    blob = platform.data_dir / "store" / digest[:2] / digest[2:4] / digest
    blob.rename(blob.with_suffix(".aside"))
    for copy in (platform.data_dir / "serving").rglob("model.onnx"):
        if copy.stat().st_size == next(file["bytes"] for file in files if file["path"] == "model.onnx"):
            copy.unlink()
    answer = platform.client.post("/v2/models/heavy0/infer", json={"inputs": [ONES]})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    blob.with_suffix(".aside").rename(blob)

    def back() -> bool:
        answer = platform.client.post("/v2/models/heavy0/infer", json={"inputs": [ONES]})
        assert answer.status_code in {200, 503}, answer.text
        return answer.status_code == 200

    wait_until(back, 60, "the model is loaded again")
    assert first(platform, "heavy0") == 1.0
