"""Bad input: a 4xx that names the field and the remedy, in one shape, with nothing half-made left behind."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.jobs import TUMOURS, quick
from tests.support.platform import KEY, Platform, breast_cancer_csv
from tests.support.servers import wait_until

PROBLEM = {"type", "title", "status", "detail", "code", "request_id"}


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(
        AIMASS_WORKER_SPARE="true", AIMASS_GATEWAY_MAX_UPLOAD_MB="1", AIMASS_SERVING_MAX_BODY_MB="1"
    ) as running:
        assert running.upload("tumours", breast_cancer_csv())["state"] == "ready"
        assert running.upload("oneclass", b"x,y\n" + b"1,a\n" * 30)["state"] == "ready"
        assert running.upload("unlabelled", b"x,y\n" + b"1,\n2,\n" * 30)["state"] == "ready"
        job = running.submit(**quick("tumours", deploy={"endpoint": "tumours"}))
        running.wait(job["id"], "succeeded")
        wait_until(
            lambda: running.call("GET", "/api/v1/endpoints/tumours")["state"] == "ready", 20, "the endpoint is loaded"
        )
        yield running


def refused(answer: httpx.Response, status: int, code: str, *loc: str | int) -> dict[str, Any]:
    """The problem, checked: its status and code, its shape, the field it blames, no trace of our insides."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) >= PROBLEM
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    if loc:
        assert list(loc) in [error["loc"] for error in problem["errors"]], problem
        assert all(set(error) == {"loc", "msg", "type"} for error in problem["errors"])
    return problem


JOBS: dict[str, tuple[dict[str, Any], str, tuple[str | int, ...]]] = {
    "unknown family": ({"family": "svm"}, "invalid_spec", ("family",)),
    "wrong parameter": ({"family": "gbdt", "params": {"num_leaves": 1}}, "invalid_spec", ("params", "num_leaves")),
    "unknown parameter": ({"family": "gbdt", "params": {"leaves": 31}}, "invalid_spec", ("params", "leaves")),
    "unknown field": ({"colour": "red"}, "invalid_spec", ("colour",)),
    "no target": ({"target": None}, "invalid_spec", ("target",)),
    "unknown target": ({"target": "nope"}, "invalid_spec", ("target",)),
    "one class": ({"dataset": "oneclass@1", "target": "y"}, "invalid_spec", ("target",)),
    "no labels": ({"dataset": "unlabelled@1", "target": "y"}, "invalid_spec", ("target",)),
    "text as a number": ({"task": "regression"}, "invalid_spec", ("target",)),
    "unknown data set": ({"dataset": "nope@1"}, "invalid_spec", ("dataset",)),
    "malformed data set": ({"dataset": "tumours"}, "invalid_spec", ("dataset",)),
    "family for pictures": ({"family": "cnn"}, "invalid_spec", ("family",)),
    "unknown dropped column": ({"features": {"drop": ["nope"]}}, "invalid_spec", ("features", "drop", 0)),
    "unknown column to clean": (
        {"clean": [{"step": "drop_missing", "columns": ["nope"]}]},
        "invalid_spec",
        ("clean", 0, "columns", 0),
    ),
    "metric of another task": ({"metrics": ["rmse"]}, "invalid_spec", ("metrics",)),
    "no rows to train on": ({"split": {"test": 0.6, "validation": 0.5}}, "invalid_spec", ("split",)),
    "waiting for nothing": ({"after": ["01900000-0000-7000-8000-000000000000"]}, "invalid_spec", ("after", 0)),
    "bad name": ({"model": "a/b"}, "invalid_spec", ("model",)),
}


@pytest.mark.parametrize("case", JOBS)
def test_a_wrong_job_is_refused_and_not_queued(platform: Platform, case: str) -> None:
    changes, code, loc = JOBS[case]
    before = len(platform.call("GET", "/api/v1/jobs")["items"])
    spec = {key: value for key, value in {**quick("refused"), **changes}.items() if value is not None}
    refused(platform.client.post("/api/v1/jobs", json=spec), 422, code, *loc)
    assert len(platform.call("GET", "/api/v1/jobs")["items"]) == before
    platform.call("GET", "/api/v1/models/refused", 404)


def test_malformed_and_oversized_bodies(platform: Platform) -> None:
    post = platform.client.post
    json_type = {"content-type": "application/json"}
    refused(post("/api/v1/jobs", content=b'{"kind": "train"', headers=json_type), 400, "malformed")
    refused(post("/api/v1/jobs", content=b"[1]", headers=json_type), 422, "invalid_input")
    refused(post("/api/v1/jobs", json={"kind": "train", "x": "y" * 5_000_000}), 413, "payload_too_large")
    refused(post("/api/v1/jobs", json={"kind": "bake"}), 422, "invalid_spec")
    refused(post("/api/v1/jobs", json={"kind": "tune"}), 501, "not_built")


class TestUploads:
    def post(self, platform: Platform, **options: Any) -> httpx.Response:
        return platform.client.post("/api/v1/datasets", **options)

    def test_each_part_of_the_form_is_checked(self, platform: Platform) -> None:
        file = {"file": ("a.csv", b"a,b\n1,2\n")}
        refused(self.post(platform, data={"name": "bad"}), 422, "invalid_input", "Content-Type")
        refused(
            self.post(platform, data={"name": "bad"}, files={"other": ("a.csv", b"a")}), 422, "invalid_input", "file"
        )
        refused(self.post(platform, files=file), 422, "invalid_input", "name")
        refused(self.post(platform, data={"name": "../bad"}, files=file), 422, "invalid_input", "name")
        refused(self.post(platform, data={"name": "bad", "kind": "nope"}, files=file), 422, "invalid_input", "kind")
        refused(self.post(platform, data={"name": "bad", "kind": "audio"}, files=file), 501, "not_built")
        refused(self.post(platform, data={"name": "bad"}, files={"file": ("a.csv", b"")}), 422, "invalid_input", "file")
        refused(self.post(platform, json={"name": "bad", "uri": "https://example.org/a.csv"}), 501, "not_built")
        platform.call("GET", "/api/v1/datasets/bad", 404)

    def test_a_cut_off_form_and_a_large_file(self, platform: Platform) -> None:
        headers = {"content-type": "multipart/form-data; boundary=B"}
        cut = b'--B\r\ncontent-disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\r\n1,2'
        refused(self.post(platform, content=cut, headers=headers), 422, "invalid_input", "file")
        refused(self.post(platform, content=b"nonsense", headers=headers), 422, "invalid_input")
        large = {"file": ("a.csv", b"1,2\n" * 500_000)}
        problem = refused(self.post(platform, data={"name": "large"}, files=large), 413, "payload_too_large")
        assert "AIMASS_GATEWAY_MAX_UPLOAD_MB" in problem["detail"]
        platform.call("GET", "/api/v1/datasets/large", 404)
        wait_until(lambda: not any((platform.data_dir / "store" / "tmp").iterdir()), 5, "no temporary file is left")

    def test_a_file_that_cannot_be_read_fails_and_says_why(self, platform: Platform) -> None:
        version = platform.upload("unreadable", b"a,b\n")
        assert version["state"] == "failed"
        assert version["error"]["code"] == "invalid_data"
        problem = refused(
            platform.client.post(
                "/api/v1/jobs", json={**TUMOURS, "model": "m", "family": "gbdt", "dataset": "unreadable@1"}
            ),
            422,
            "invalid_spec",
            "dataset",
        )
        assert version["error"]["detail"] in problem["detail"]


class TestKeys:
    def test_who_may_not_is_told_so(self, platform: Platform) -> None:
        with httpx.Client(base_url=str(platform.url)) as stranger:
            answer = stranger.get("/api/v1/jobs")
            refused(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
            refused(stranger.get("/api/v1/jobs", headers={"x-api-key": "wrong"}), 401, "unauthenticated")
            assert stranger.get("/v2/models/tumours").status_code == 401
            key = platform.call("POST", "/api/v1/keys", 201, json={"name": "reader", "scopes": ["read"]})
            mine = {"authorization": f"Bearer {key['secret']}"}
            assert stranger.get("/api/v1/jobs", headers=mine).status_code == 200
            refused(stranger.post("/api/v1/jobs", json=quick("x"), headers=mine), 403, "forbidden")
            refused(
                stranger.post("/api/v1/endpoints/tumours/predict", json={"instances": [{}]}, headers=mine),
                403,
                "forbidden",
            )
            refused(stranger.get("/api/v1/keys", headers=mine), 403, "forbidden")
            platform.call("DELETE", f"/api/v1/keys/{key['id']}", 204)
            refused(stranger.get("/api/v1/jobs", headers=mine), 401, "unauthenticated")
        assert key["secret"] not in json.dumps(platform.call("GET", "/api/v1/keys"))

    def test_the_request_id_is_taken_and_given_back(self, platform: Platform) -> None:
        for path in ("/api/v1/jobs", "/api/v1/nothing", "/v2/models/nothing"):
            assert platform.client.get(path, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


@pytest.fixture(scope="module")
def instance() -> dict[str, float]:
    header, row = breast_cancer_csv().decode().splitlines()[:2]
    return dict(zip(header.split(",")[:-1], map(float, row.split(",")[:-1]), strict=True))


class TestPredictions:
    URL = "/api/v1/endpoints/tumours/predict"

    def test_a_wrong_value_is_named_by_row_and_column(self, platform: Platform, instance: dict[str, float]) -> None:
        def ask(**changes: Any) -> httpx.Response:
            wrong = {key: value for key, value in {**instance, **changes}.items() if value != "gone"}
            return platform.client.post(self.URL, json={"instances": [instance, wrong]})

        where = ("instances", 1, "mean radius")
        refused(ask(**{"mean radius": "large"}), 422, "invalid_tensor", *where)
        refused(ask(**{"mean radius": None}), 422, "invalid_tensor", *where)
        refused(ask(**{"mean radius": [1.0]}), 422, "invalid_tensor", *where)
        refused(ask(**{"mean radius": "gone"}), 422, "invalid_tensor", *where)
        refused(ask(nonsense=1.0), 422, "invalid_tensor", "instances", 1, "nonsense")

    def test_nan_is_refused(self, platform: Platform, instance: dict[str, float]) -> None:
        body = json.dumps({"instances": [{**instance, "mean radius": float("nan")}]})
        answer = platform.client.post(self.URL, content=body)
        assert answer.status_code in {400, 422}
        assert "NaN" in answer.json()["detail"] or "instances" in answer.text

    def test_a_wrong_frame_is_refused(self, platform: Platform, instance: dict[str, float]) -> None:
        post = platform.client.post
        refused(post(self.URL, content=b'{"instances": ['), 400, "malformed")
        for body in ({}, {"instances": []}, {"instances": {}}, {"instances": [1]}, {"rows": [instance]}):
            assert 400 <= post(self.URL, json=body).status_code <= 422
            assert set(post(self.URL, json=body).json()) >= PROBLEM
        refused(post(self.URL, content=b" " * 2_000_000), 413, "payload_too_large")
        refused(post("/api/v1/endpoints/nope/predict", json={"instances": [instance]}), 404, "not_found")

    def test_the_service_still_answers(self, platform: Platform, instance: dict[str, float]) -> None:
        answer = platform.call("POST", self.URL, 200, json={"instances": [instance]})
        assert (answer["model"], answer["version"]) == ("tumours", 1)
        assert answer["predictions"][0]["label"] == "malignant"
        headers = {"x-api-key": KEY}
        assert httpx.get(f"{platform.url}/readyz", headers=headers).status_code == 200
