"""The gateway killed in the middle of an upload and of predictions."""

import contextlib
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from app.cli.launcher import READY_WITHIN_S
from tests.acceptance.problems import check_problem
from tests.support.jobs import quick
from tests.support.platform import KEY, Platform, breast_cancer_csv
from tests.support.servers import wait_until


def stored_files(platform: Platform) -> set[str]:
    return {
        str(path) for path in (platform.data_dir / "store").rglob("*") if path.is_file() and path.parent.name != "tmp"
    }


def upload_head(name: str, length: int) -> bytes:
    """A request for `length` bytes of form, up to the first line of its file."""
    lines = (
        "POST /api/v1/datasets HTTP/1.1",
        "host: x",
        f"authorization: Bearer {KEY}",
        "content-type: multipart/form-data; boundary=B",
        f"content-length: {length}",
        "",
        "--B",
        'content-disposition: form-data; name="name"',
        "",
        name,
        "--B",
        'content-disposition: form-data; name="file"; filename="a.csv"',
        "",
        "a,b\n",
    )
    return "\r\n".join(lines).encode()


def test_a_gateway_killed_during_an_upload_leaves_no_half_data_set(platform: Platform) -> None:
    before = stored_files(platform)
    body = upload_head("half", 100_000_000) + b"1,2\n" * 1_000_000
    assert platform.url is not None
    port = int(platform.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(body)
        time.sleep(0.5)
        [gateway] = platform.processes("app.gateway.main")
        gateway.kill()
        gateway.wait(5)
    wait_until(lambda: _ready(platform), 30, "the launcher starts the gateway again")
    platform.call("GET", "/api/v1/datasets/half", 404)
    assert stored_files(platform) == before
    assert platform.upload("half", b"a,b\n1,2\n3,4\n")["version"] == 1


def test_a_broken_upload_leaves_nothing(platform: Platform) -> None:
    assert platform.url is not None
    port = int(platform.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(upload_head("broken", 5_000_000) + b"1,2\n" * 1000)
    wait_until(lambda: not any((platform.data_dir / "store" / "tmp").iterdir()), 10, "the temporary file is removed")
    platform.call("GET", "/api/v1/datasets/broken", 404)


def test_a_gateway_killed_during_predictions_is_back_and_answers_right(platform: Platform) -> None:
    job = platform.submit(**quick("served", deploy={"endpoint": "served"}))
    platform.wait(job["id"], "succeeded")
    wait_until(
        lambda: platform.call("GET", "/api/v1/endpoints/served")["state"] == "ready", 20, "the endpoint is loaded"
    )
    columns = [
        c["name"]
        for c in platform.call("GET", "/api/v1/datasets/tumours/versions/1")["schema"]["columns"]
        if c["name"] != "diagnosis"
    ]
    rows = [line.split(",") for line in breast_cancer_csv().decode().splitlines()[1:]]
    instances = [dict(zip(columns, map(float, row[:-1]), strict=True)) for row in rows[:20]]
    url = f"{platform.url}/api/v1/endpoints/served/predict"
    expected = [
        platform.call("POST", "/api/v1/endpoints/served/predict", json={"instances": [i]})["predictions"]
        for i in instances
    ]
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(headers={"x-api-key": KEY}) as client:
            while not stop.is_set():
                for number, instance in enumerate(instances):
                    with contextlib.suppress(httpx.HTTPError):
                        answer = client.post(url, json={"instances": [instance]})
                        right = answer.status_code == 200 and answer.json()["predictions"] == expected[number]
                        answers["right" if right else str(answer.status_code)] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: answers["right"] > 100, 20, "predictions flow")
    [gateway] = platform.processes("app.gateway.main")
    gateway.kill()
    gateway.wait(5)
    wait_until(lambda: _ready(platform), 30, "the launcher starts the gateway again")
    back_at = answers["right"]
    wait_until(lambda: answers["right"] > back_at + 100, 20, "predictions flow again")
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) <= {"right", "503"}, answers  # 503: asked while the model was being loaded again


def test_a_damaged_local_copy_of_a_model_is_fetched_again(platform: Platform) -> None:
    [copy] = (platform.data_dir / "serving").rglob("model.onnx")
    copy.chmod(0o644)
    copy.write_bytes(b"")
    [gateway] = platform.processes("app.gateway.main")
    gateway.kill()
    gateway.wait(5)
    wait_until(lambda: _ready(platform), 30, "the launcher starts the gateway again")
    assert platform.call("GET", "/readyz")["status"] == "ok"
    assert platform.client.get("/v2/models/served/ready").status_code == 200


def test_an_endpoint_that_cannot_be_loaded_is_named_and_hurts_no_other(platform: Platform) -> None:
    platform.wait(platform.submit(**quick("broken", deploy={"endpoint": "broken"}))["id"], "succeeded")
    files = platform.call("GET", "/api/v1/models/broken/versions/1/files")["items"]
    digest = next(file["sha256"] for file in files if file["path"] == "model.onnx")
    (platform.data_dir / "store" / digest[:2] / digest[2:4] / digest).unlink()
    wait_until(lambda: platform.call("GET", "/api/v1/endpoints/broken")["state"] != "loading", 20, "it was tried")
    for copy in (platform.data_dir / "serving").rglob("model.onnx"):
        if copy.stat().st_size == next(file["bytes"] for file in files if file["path"] == "model.onnx"):
            copy.unlink()
    [gateway] = platform.processes("app.gateway.main")
    gateway.kill()
    gateway.wait(5)
    wait_until(lambda: _ready(platform), 30, "the launcher starts the gateway again")
    answer = platform.call("GET", "/readyz", 200)
    assert answer["status"] == "degraded"
    assert "broken" in answer["checks"]["endpoints"]
    assert platform.call("GET", "/api/v1/endpoints/broken")["state"] == "failed"
    again = platform.client.put("/api/v1/endpoints/again", json={"model": "broken", "routes": [{"version": 1}]})
    check_problem(again, 503, "unavailable", word="the store does not have a file of 'broken@1' (AIMASS_STORE_URL)")


def _ready(platform: Platform) -> bool:
    try:
        return platform.client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_gateway_that_never_starts_is_not_tried_for_ever(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('a broken installation')\n")
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)a broken installation.*gateway 0 ended 3 times at its start"):
        Platform(PYTHONPATH=str(tmp_path)).__enter__()
    assert time.monotonic() - began < READY_WITHIN_S / 2
