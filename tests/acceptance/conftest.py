"""What the acceptance tests share: a platform on which every family was trained, and one with small limits."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

from tests.acceptance.problems import ID
from tests.support.file_server import FileServer
from tests.support.jobs import TUMOURS, quick
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import wait_until

PICTURES = 400
JSON = {"content-type": "application/json"}
ROW: dict[str, Any] = {"age": 40, "income": 1000.5, "city": "Oslo", "smoker": True}
PREDICT = "/api/v1/endpoints/people/predict"
LIMITS = {
    "AIMASS_GATEWAY_MAX_UPLOAD_MB": "1",
    "AIMASS_GATEWAY_MAX_BODY_MB": "1",
    "AIMASS_SERVING_MAX_BODY_MB": "1",
    "AIMASS_QUEUE_BACKOFF_S": "0.1",
}
SPECS: dict[str, dict[str, Any]] = {
    "linear": {"family": "linear", "deploy": {"endpoint": "linear"}},
    "gbdt": {
        "family": "gbdt",
        "params": {"n_estimators": 40},
        "compress": {"max_metric_drop": 0.01},
        "deploy": {"endpoint": "gbdt"},
    },
    "random_forest": {"family": "random_forest", "params": {"n_estimators": 10}},
    "mlp": {
        "family": "mlp",
        "training": {"epochs": 6, "batch_size": 64},
        "compress": {"max_metric_drop": 0.02},
        "deploy": {"endpoint": "mlp"},
    },
    "cnn": {
        "family": "cnn",
        "dataset": "digits@1",
        "target": "label",
        "params": {"channels": [8, 16]},
        "training": {"epochs": 4, "batch_size": 32},
        "compress": {"max_metric_drop": 0.05},
        "deploy": {"endpoint": "cnn"},
    },
    "progression": {
        "family": "gbdt",
        "dataset": "diabetes@1",
        "task": "regression",
        "target": "progression",
        "params": {"n_estimators": 60},
        "deploy": {"endpoint": "progression"},
    },
}


def pictures() -> list[tuple[bytes, str]]:
    """The first 400 of scikit-learn's digits: (PNG of 8 by 8 grey pixels, label)."""
    digits = load_digits()
    found = []
    for image, label in zip(digits.images[:PICTURES], digits.target[:PICTURES], strict=True):
        file = io.BytesIO()
        Image.fromarray((image * 15.9).astype(np.uint8)).save(file, "PNG")
        found.append((file.getvalue(), str(label)))
    return found


def digits_zip() -> bytes:
    """The pictures in folders named after their labels."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (picture, label) in enumerate(pictures()):
            archive.writestr(f"{label}/{number}.png", picture)
    return file.getvalue()


def diabetes_csv() -> bytes:
    """442 rows, 10 numbers and `progression`."""
    data = load_diabetes()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*data.feature_names, "progression"])
    writer.writerows([*row, target] for row, target in zip(data.data, data.target, strict=True))
    return text.getvalue().encode()


def people_csv() -> bytes:
    """A hundred rows of every column type; `income` is missing in every tenth."""
    lines = ["age,income,city,smoker,ill"]
    for i in range(100):
        income = "" if i % 10 == 0 else f"{1000 + 37 * i % 900}.5"
        city, smoker, ill = ("Oslo", "Paris", "Wuhan")[i % 3], str(i % 4 == 0).lower(), ("no", "yes")[i * 7 % 11 > 5]
        lines.append(f"{20 + i * 13 % 60},{income},{city},{smoker},{ill}")
    return "\n".join(lines).encode()


@dataclass(frozen=True, slots=True)
class Trained:
    """The platform and the ended job of each model, by the model's name."""

    platform: Platform
    jobs: dict[str, dict[str, Any]]

    def version(self, model: str, number: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = self.platform.call("GET", f"/api/v1/models/{model}/versions/{number}")
        return found

    def predict(self, endpoint: str, instances: list[Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.platform.call(
            "POST", f"/api/v1/endpoints/{endpoint}/predict", 200, json={"instances": instances}
        )
        return found


@pytest.fixture(scope="session")
def trained() -> Iterator[Trained]:
    """One worker, since two would fight for the cores of a small machine."""
    with Platform(AIMASS_QUEUE_LEASE_S="15") as platform:
        platform.upload("tumours", breast_cancer_csv())
        platform.upload("digits", digits_zip(), "digits.zip")
        platform.upload("diabetes", diabetes_csv())
        jobs = {model: platform.submit(**{**TUMOURS, "model": model, **spec}) for model, spec in SPECS.items()}
        yield Trained(platform, {model: platform.wait(job["id"]) for model, job in jobs.items()})


@pytest.fixture(scope="session")
def strict() -> Callable[[bytes], Any]:
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def parse(content: bytes) -> Any:
        return json.loads(content, parse_constant=pytest.fail)

    return parse


@pytest.fixture(scope="session")
def files() -> Iterator[FileServer]:
    """What the limited platform may fetch from, below `/data`."""
    with FileServer(people_csv()) as server:
        yield server


@pytest.fixture(scope="session")
def limited(files: FileServer) -> Iterator[Platform]:
    """A platform with small limits, two data sets and an endpoint."""
    with Platform(**LIMITS, AIMASS_SOURCES_ALLOW=f"{files.url}/data/,s3://lake/raw") as running:
        running.client.headers["x-request-id"] = ID
        assert running.upload("tumours", breast_cancer_csv())["state"] == "ready"
        assert running.upload("people", people_csv())["state"] == "ready"
        spec = quick("people", dataset="people@1", target="ill", deploy={"endpoint": "people"})
        running.wait(running.submit(**spec)["id"], "succeeded")
        wait_until(lambda: running.call("GET", "/api/v1/endpoints/people")["state"] == "ready", 30, "it is served")
        yield running


def everything(platform: Platform) -> dict[str, Any]:
    """What exists: resources by name, and files of the store."""
    paths = ("jobs", "datasets", "models", "endpoints", "keys")
    found: dict[str, Any] = {
        path: platform.call("GET", f"/api/v1/{path}", params={"limit": 500})["items"] for path in paths
    }
    found["versions"] = platform.call("GET", "/api/v1/datasets/tumours/versions")["items"]
    found["files"] = sorted(str(path) for path in (platform.data_dir / "store").rglob("*") if path.is_file())
    return found


@pytest.fixture
def unchanged(limited: Platform) -> Iterator[Platform]:
    """The limited platform, which must be the same afterwards."""
    before = everything(limited)
    yield limited
    assert everything(limited) == before
    assert limited.call("GET", "/readyz", 200)["status"] == "ok"
