"""A platform on a machine with a GPU: its worker trains there, its gateway answers from there."""

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


def test_predictions_come_from_the_gpu(learned: tuple[Platform, dict[str, Any]]):
    platform, _ = learned
    some = pictures()[:50]
    sent = [base64.b64encode(picture).decode() for picture, _ in some]
    found = platform.call("POST", "/api/v1/endpoints/cnn/predict", 200, json={"instances": sent})["predictions"]
    right = sum(answer["label"] == label for answer, (_, label) in zip(found, some, strict=True))
    assert right > 40
