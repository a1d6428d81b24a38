"""A platform on a machine with a GPU: its worker trains and compresses there, its gateway answers from there."""

import base64
from collections.abc import Iterator
from typing import Any

import onnxruntime as ort
import pytest

from tests.acceptance.conftest import SPECS, digits_zip, pictures
from tests.support.jobs import TUMOURS
from tests.support.platform import Platform
from tests.support.servers import wait_until

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="this ONNX Runtime has no CUDA")]


@pytest.fixture(scope="module")
def learned() -> Iterator[tuple[Platform, dict[str, Any]]]:
    """The platform and the job, which ran on the GPU and whose version is served from there."""
    with Platform(workers=None, AIMASS_SERVING_PROVIDER="cuda:0") as platform:
        platform.upload("digits", digits_zip(), "digits.zip")
        spec = {**TUMOURS, **SPECS["cnn"], "model": "digits", "resources": {"device": "cuda"}}
        spec["params"] = {"channels": [32, 64]}
        spec["training"] = {"epochs": 8, "batch_size": 32, "optimizer": {"lr": 0.01}}
        job = platform.submit(**spec)
        ended = platform.wait(job["id"], "succeeded", 240)
        wait_until(lambda: platform.client.get("/v2/models/cnn/ready").is_success, 60, "the endpoint is loaded")
        yield platform, ended


def test_the_launcher_starts_a_worker_for_the_gpu(learned: tuple[Platform, dict[str, Any]]):
    platform, job = learned
    assert any("is ready on cuda:0" in line for line in platform.output)
    card = platform.call("GET", "/api/v1/models/digits/versions/1/card")
    assert card["environment"]["device"] == "cuda"
    assert job["result"]["metrics"]["accuracy"] > 0.8


def right_answers(platform: Platform, endpoint: str) -> int:
    """Of fifty pictures."""
    some = pictures()[:50]
    sent = [base64.b64encode(picture).decode() for picture, _ in some]
    path = f"/api/v1/endpoints/{endpoint}/predict"
    found = platform.call("POST", path, 200, json={"instances": sent})["predictions"]
    return sum(answer["label"] == label for answer, (_, label) in zip(found, some, strict=True))


def test_predictions_come_from_the_gpu(learned: tuple[Platform, dict[str, Any]]):
    platform, _ = learned
    assert right_answers(platform, "cnn") > 40


def test_half_precision_was_measured_there_and_answers_there(learned: tuple[Platform, dict[str, Any]]):
    platform, _ = learned
    variants = platform.call("GET", "/api/v1/models/digits/versions/1")["variants"]
    full, half = (next(one for one in variants if one["name"] == name) for name in ("fp32", "fp16"))
    assert (half["state"], half["reason"]) == ("accepted", None)
    [host], [base] = half["hosts"], full["hosts"]
    assert host["host"] == base["host"]
    assert host["host"].startswith("cuda ")
    routes = [{"version": 1, "variant": "fp16"}]
    platform.call("PUT", "/api/v1/endpoints/half", json={"model": "digits", "routes": routes})
    wait_until(lambda: platform.client.get("/v2/models/half/ready").is_success, 60, "the endpoint is loaded")
    assert platform.call("GET", "/api/v1/endpoints/half")["variant"] == "fp16"
    assert right_answers(platform, "half") > 40
