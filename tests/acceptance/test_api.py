"""The main path over HTTP: upload, train, compress, deploy, predict, for every family."""

import base64
import csv
import io
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from PIL import Image

from app.core.host import host_class
from tests.acceptance.conftest import SPECS, Trained, diabetes_csv, pictures
from tests.acceptance.problems import check_problem
from tests.support.jobs import quick
from tests.support.platform import KEY, Platform, breast_cancer_csv

FAMILIES = ["linear", "gbdt", "random_forest", "mlp"]
# The main metric on rows that training never saw; well below what each reaches, well above chance.
REACHED = {"linear": 0.97, "gbdt": 0.97, "random_forest": 0.95, "mlp": 0.95}


def rows(content: bytes, target: str) -> tuple[list[dict[str, float]], list[str]]:
    """The instances of a CSV of numbers and their target."""
    read = list(csv.DictReader(io.StringIO(content.decode())))
    return [{k: float(v) for k, v in row.items() if k != target} for row in read], [row[target] for row in read]


@pytest.mark.parametrize("model", SPECS)
def test_every_job_succeeds(trained: Trained, model: str) -> None:
    job = trained.jobs[model]
    assert (job["state"], job["attempt"], job["error"]) == ("succeeded", 1, None)
    assert job["progress"]["fraction"] == 1
    assert (job["result"]["model"], job["result"]["version"]) == (model, 1)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["links"]["version"] == f"/api/v1/models/{model}/versions/1"


def test_a_job_tells_of_all_it_does(trained: Trained) -> None:
    events = trained.platform.events(trained.jobs["gbdt"]["id"])
    assert {kind for _, kind, _ in events} == {"state", "progress", "metric", "log"}


def test_a_job_that_ran_out_of_time_can_be_retried(trained: Trained) -> None:
    platform = trained.platform
    failed = platform.submit(**quick("late", timeout_s=0.001))
    assert platform.wait(failed["id"], "failed")["error"]["code"] == "job_timed_out"
    again = platform.call("POST", f"/api/v1/jobs/{failed['id']}/retry", 202)
    assert again["id"] != failed["id"]
    platform.wait(again["id"], "failed")


@pytest.mark.parametrize("model", FAMILIES)
def test_metrics_on_unseen_rows(trained: Trained, model: str) -> None:
    version = trained.version(model)
    assert version["main_metric"] == "roc_auc"
    assert REACHED[model] < version["metrics"]["roc_auc"] <= 1
    assert version["metrics"] == trained.jobs[model]["result"]["metrics"]


@pytest.mark.parametrize("model", SPECS)
def test_a_version_tells_all_of_its_origin(trained: Trained, model: str, strict: Callable[[bytes], Any]) -> None:
    version = strict(trained.platform.client.get(f"/api/v1/models/{model}/versions/1").content)
    job = trained.jobs[model]
    assert (version["state"], version["family"]) == ("ready", SPECS[model]["family"])
    assert version["lineage"]["job"] == job["id"]
    assert version["lineage"]["dataset"] == job["spec"]["dataset"]
    assert version["lineage"]["seed"] == 42
    assert {"python", "libraries"} <= set(version["lineage"]["environment"])
    [base] = [variant for variant in version["variants"] if variant["name"] == "fp32"]
    assert (base["state"], base["reason"]) == ("accepted", None)
    assert base["bytes"] > 0
    assert [one["host"] for one in base["hosts"]] == [host_class(base["latency"]["host"])]
    assert {"p50_ms", "p95_ms", "items_per_s", "batch"} <= set(base["latency"])
    card = strict(trained.platform.client.get(version["links"]["card"]).content)
    assert (card["model"], card["family"]) == (model, SPECS[model]["family"])
    assert card["metrics"]["test"] == version["metrics"]


@pytest.mark.parametrize(("model", "name"), [("gbdt", "optimized"), ("mlp", "int8"), ("cnn", "int8")])
def test_compression_within_a_train_job(trained: Trained, model: str, name: str) -> None:
    variants = trained.version(model)["variants"]
    assert [variant["name"] for variant in variants] == ["fp32", name]
    made = variants[1]
    assert made["state"] in {"accepted", "rejected"}
    assert bool(made["reason"]) == (made["state"] == "rejected")
    assert "roc_auc" in made["metrics"]
    assert made["latency"]["items_per_s"] > 0
    endpoint = trained.platform.call("GET", f"/api/v1/endpoints/{model}")
    budget = trained.jobs[model]["spec"]["compress"]["max_metric_drop"]
    assert made["state"] == "rejected" or made["recipe"]["metric_drop"] <= budget
    [served] = [variant for variant in variants if variant["name"] == endpoint["variant"]]
    assert served["state"] == "accepted"


@pytest.mark.parametrize("model", ["linear", "gbdt", "mlp"])
def test_every_protocol_answers_the_same(trained: Trained, model: str) -> None:
    instances, _ = rows(breast_cancer_csv(), "diagnosis")
    mine = trained.predict(model, instances[:40])["predictions"]
    client = triton.InferenceServerClient(str(trained.platform.url).removeprefix("http://"))
    tensor = triton.InferInput("numeric", [40, 30], "FP32")
    tensor.set_data_from_numpy(np.array([list(row.values()) for row in instances[:40]], np.float32))
    theirs = client.infer(model, [tensor], headers={"Authorization": f"Bearer {KEY}"}).as_numpy("probabilities")
    with triton_grpc.InferenceServerClient(trained.platform.grpc) as by_grpc:
        tensor = triton_grpc.InferInput("numeric", [40, 30], "FP32").set_data_from_numpy(
            np.array([list(row.values()) for row in instances[:40]], np.float32)
        )
        answer = by_grpc.infer(model, [tensor], headers={"authorization": f"Bearer {KEY}"})
    assert np.array_equal(answer.as_numpy("probabilities"), theirs)
    classes = trained.version(model)["signature"]["classes"]
    assert np.allclose([[p["probabilities"][name] for name in classes] for p in mine], theirs, atol=1e-6)


@pytest.mark.parametrize("model", ["linear", "gbdt", "mlp"])
def test_predictions_are_right(trained: Trained, model: str) -> None:
    instances, labels = rows(breast_cancer_csv(), "diagnosis")
    jsonschema.validate(instances[0], trained.version(model)["schema"])
    answer = trained.predict(model, instances)
    assert (answer["model"], answer["version"]) == (model, 1)
    assert len(answer["predictions"]) == 569
    hits = sum(p["label"] == label for p, label in zip(answer["predictions"], labels, strict=True))
    assert hits / 569 > 0.93
    for prediction in answer["predictions"]:
        assert set(prediction["probabilities"]) == {"benign", "malignant"}
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)


def test_pictures(trained: Trained) -> None:
    sent = pictures()[:100]
    answer = trained.predict("cnn", [base64.b64encode(picture).decode() for picture, _ in sent])
    hits = sum(p["label"] == label for p, (_, label) in zip(answer["predictions"], sent, strict=True))
    assert hits > 40  # of 100, where 10 would be chance
    assert trained.version("cnn")["metrics"]["accuracy"] > 0.4
    pixels = np.asarray(Image.open(io.BytesIO(sent[0][0]))).tolist()
    assert trained.predict("cnn", [{"image": pixels}])["predictions"][0] == answer["predictions"][0]


def test_regression(trained: Trained) -> None:
    version = trained.version("progression")
    assert version["main_metric"] == "rmse"
    assert version["metrics"]["rmse"] < 70  # the standard deviation of the target is 77
    instances, targets = rows(diabetes_csv(), "progression")
    predictions = trained.predict("progression", instances)["predictions"]
    assert set(predictions[0]) == {"value"}
    values = [p["value"] for p in predictions]
    errors = [(value - float(target)) ** 2 for value, target in zip(values, targets, strict=True)]
    assert (sum(errors) / len(errors)) ** 0.5 < 60


def test_a_compress_job_adds_variants(trained: Trained) -> None:
    platform = trained.platform
    before = trained.version("random_forest")
    assert [variant["name"] for variant in before["variants"]] == ["fp32"]
    job = platform.submit(kind="compress", model="random_forest", version=1, budget={"max_metric_drop": 0.05})
    ended = platform.wait(job["id"], "succeeded")
    after = trained.version("random_forest")
    assert [variant["name"] for variant in after["variants"]] == ["fp32", "optimized"]
    assert after["variants"][0] == before["variants"][0]
    assert (ended["result"]["model"], ended["result"]["version"]) == ("random_forest", 1)
    assert platform.call("GET", "/api/v1/models/random_forest")["latest_version"] == 1
    files = {file["path"] for file in platform.call("GET", f"{after['links']['files']}")["items"]}
    assert any(path.startswith("variants/") for path in files)


def test_a_search_keeps_its_report_with_its_best_variant_or_says_what_stopped_it(trained: Trained) -> None:
    platform, spec = trained.platform, {"kind": "compress", "model": "random_forest", "version": 1}
    budgets = {"max_metric_drop": 0.1, "time_limit_s": 1}, {"max_metric_drop": 0.1, "max_bytes": 1, "time_limit_s": 1}
    jobs = [platform.submit(**spec, budget=budget) for budget in budgets]
    found, stopped = (platform.wait(job["id"], "succeeded")["result"]["compression"] for job in jobs)
    assert (found["state"], found["stopped_by"]) == ("reached", [])
    assert (stopped["state"], stopped["winner"], stopped["front"]) == ("not reachable", None, [])
    assert "over max_bytes = 1" in " ".join(stopped["stopped_by"])
    version = trained.version("random_forest")
    shown = {file["path"]: file for file in platform.call("GET", version["links"]["files"])["items"]}
    accepted = {one["name"] for one in version["variants"] if one["state"] == "accepted"}
    assert {found["winner"], *found["front"]} <= accepted
    assert {one["variant"] for one in found["candidates"]} - {None} == set(found["front"])
    assert found["page"] in shown
    answer = platform.client.get(f"{version['links']['files']}/{found['page']}")
    assert answer.headers["content-type"].startswith("text/html")
    assert "Everything that was measured" in answer.text
    told = platform.client.get(f"{version['links']['files']}/{found['page'].replace('.html', '.json')}").json()
    assert {one["name"] for one in told["variants"]} == set(told["front"]) <= accepted
    assert all(one["first"] for one in told["candidates"] if one["variant"])  # and what counts was measured again
    assert stopped["page"] is None
    late = platform.client.post("/api/v1/jobs", json={**spec, "budget": {"time_limit_s": 60}, "timeout_s": 60})
    check_problem(late, 422, "invalid_spec", ["budget", "time_limit_s"], "raise timeout_s")


def test_a_new_version_never_fails_a_request(trained: Trained) -> None:
    platform = trained.platform
    job = platform.submit(**quick("linear", params={"regularization": 30.0}))
    assert platform.wait(job["id"], "succeeded")["result"]["version"] == 2
    instances, _ = rows(breast_cancer_csv(), "diagnosis")
    seen: Counter[tuple[int, int]] = Counter()
    stop = threading.Event()
    threads = [threading.Thread(target=_ask, args=(platform, instances, seen, stop, n)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 1, 2):
            made = platform.call(
                "PUT", "/api/v1/endpoints/linear", 200, json={"model": "linear", "routes": [{"version": version}]}
            )
            assert (made["version"], made["state"]) == (version, "ready")
            assert trained.predict("linear", instances[:1])["version"] == version
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {(200, 1), (200, 2)}


def test_a_change_that_is_refused_changes_nothing(trained: Trained) -> None:
    platform = trained.platform
    before = platform.call("GET", "/api/v1/endpoints/gbdt")
    for status, route in ((404, {"version": 9}), (409, {"version": 1, "variant": "int4"})):
        platform.call("PUT", "/api/v1/endpoints/gbdt", status, json={"model": "gbdt", "routes": [route]})
    assert platform.call("GET", "/api/v1/endpoints/gbdt") == before
    instances, _ = rows(breast_cancer_csv(), "diagnosis")
    assert trained.predict("gbdt", instances[:1])["version"] == 1


def _ask(
    platform: Platform, instances: list[Any], seen: "Counter[tuple[int, int]]", stop: threading.Event, n: int
) -> None:
    with httpx.Client(base_url=str(platform.url), headers={"x-api-key": KEY}) as client:
        while not stop.is_set():
            answer = client.post("/api/v1/endpoints/linear/predict", json={"instances": instances[n : n + 1]})
            seen[answer.status_code, answer.json().get("version")] += 1


def test_endpoints(trained: Trained) -> None:
    platform = trained.platform
    body = {"model": "random_forest", "routes": [{"version": 1, "variant": "fp32"}], "batching": {"max_batch": 8}}
    made = platform.call("PUT", "/api/v1/endpoints/forest", 201, json=body)
    assert (made["variant"], made["state"], made["revision"]) == ("fp32", "ready", 1)
    again = platform.call("PUT", "/api/v1/endpoints/forest", 200, json=body)
    assert (again["revision"], again["created_at"]) == (2, made["created_at"])
    assert platform.call("GET", "/api/v1/endpoints/forest")["batching"]["max_batch"] == 8
    instances, labels = rows(breast_cancer_csv(), "diagnosis")
    predictions = trained.predict("forest", instances[:20])["predictions"]
    assert sum(p["label"] == label for p, label in zip(predictions, labels[:20], strict=True)) >= 18
    stats = platform.call("GET", "/api/v1/endpoints/forest/stats")
    assert (stats["requests"], stats["rows"]) == ({"200": 1}, 20)
    assert set(stats["phases"]) == {"receive", "parse", "queue", "batch", "compute", "encode"}
    assert platform.call("GET", "/v2/models/forest/ready", 200)["ready"] is True
    check_problem(platform.client.delete("/api/v1/models/random_forest/versions/1"), 409, "conflict", word="'forest'")
    platform.call("DELETE", "/api/v1/endpoints/forest", 204)
    platform.call("GET", "/api/v1/endpoints/forest", 404)
    platform.call("POST", "/api/v1/endpoints/forest/predict", 404, json={"instances": instances[:1]})


def test_server_timing_and_request_id(trained: Trained) -> None:
    instances, _ = rows(breast_cancer_csv(), "diagnosis")
    headers = {"x-server-timing": "1", "x-request-id": "mine-1"}
    url = "/api/v1/endpoints/gbdt/predict"
    answer = trained.platform.client.post(url, json={"instances": instances[:1]}, headers=headers)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-1"
    phases = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    assert [name for name, _ in phases] == ["receive", "parse", "queue", "batch", "compute", "encode"]
    assert all(float(duration) >= 0 for _, duration in phases)


def test_metrics_have_histograms_of_every_phase(trained: Trained) -> None:
    instances, _ = rows(breast_cancer_csv(), "diagnosis")
    trained.predict("mlp", instances[:1])
    with httpx.Client(base_url=str(trained.platform.url)) as stranger:
        text = stranger.get("/metrics").text
    for phase in ("receive", "parse", "queue", "batch", "compute", "encode"):
        found = [line for line in text.splitlines() if "phase_seconds_bucket" in line and f'phase="{phase}"' in line]
        assert any('endpoint="mlp"' in line and 'le="+Inf"' in line for line in found)
    assert 'aimass_jobs{kind="train",state="succeeded"}' in text
    assert 'aimass_jobs{kind="ingest",state="succeeded"}' in text


def test_probes(trained: Trained) -> None:
    with httpx.Client(base_url=str(trained.platform.url)) as stranger:
        assert stranger.get("/livez").json() == {"status": "ok"}
        ready = stranger.get("/readyz").json()
        assert stranger.get("/docs").status_code == 200
    assert ready == {
        "status": "ok",
        "checks": {"registry": "ok", "redis": "ok", "store": "ok", "endpoints": "ok"},
    }
