"""The main job, black box: upload → train → compress → serve → predict, and what surrounds it."""

import csv
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

from tests.support.jobs import TUMOURS, quick
from tests.support.platform import KEY, Platform, breast_cancer_csv
from tests.support.servers import wait_until


def digits_zip(count: int = 600) -> bytes:
    data = load_digits()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(count):
            png = io.BytesIO()
            Image.fromarray((data.images[number] * 255 / 16).astype("uint8")).save(png, "PNG")
            archive.writestr(f"{data.target[number]}/{number}.png", png.getvalue())
    return packed.getvalue()


def diabetes_csv() -> bytes:
    data = load_diabetes()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*data.feature_names, "progression"])
    writer.writerows([*row, value] for row, value in zip(data.data, data.target, strict=True))
    return text.getvalue().encode()


def instances(count: int) -> list[dict[str, float]]:
    header, *rows = [line.split(",") for line in breast_cancer_csv().decode().splitlines()]
    return [dict(zip(header[:-1], map(float, row[:-1]), strict=True)) for row in rows[:count]]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(AIMASS_WORKER_SPARE="true") as running:
        assert running.upload("tumours", breast_cancer_csv())["state"] == "ready"
        yield running


def until_ready(platform: Platform, endpoint: str) -> None:
    wait_until(
        lambda: platform.call("GET", f"/api/v1/endpoints/{endpoint}")["state"] == "ready", 20, "the endpoint is loaded"
    )


@pytest.mark.parametrize("family", ["linear", "gbdt", "random_forest", "mlp"])
def test_every_table_family_from_data_to_answers(platform: Platform, family: str) -> None:
    job = platform.submit(
        **{**TUMOURS, "model": family, "family": family},
        compress={"max_metric_drop": 0.05},
        deploy={"endpoint": family},
    )
    done = platform.wait(job["id"], "succeeded")
    assert done["result"]["version"] == 1
    version = platform.call("GET", done["links"]["version"])
    assert version["metrics"]["roc_auc"] > 0.95
    variants = {variant["name"]: variant for variant in version["variants"]}
    assert variants["fp32"]["state"] == "accepted"
    for variant in variants.values():
        assert variant["bytes"] > 0
        assert variant["latency"]["items_per_s"] > 0
        assert variant["state"] == "accepted" or variant["reason"]
    until_ready(platform, family)
    rows = instances(40)
    mine = platform.call("POST", f"/api/v1/endpoints/{family}/predict", json={"instances": rows})["predictions"]
    client = triton.InferenceServerClient(str(platform.url).removeprefix("http://"))
    tensor = triton.InferInput("numeric", [40, 30], "FP32")
    tensor.set_data_from_numpy(np.array([list(row.values()) for row in rows], np.float32))
    theirs = client.infer(family, [tensor], headers={"Authorization": f"Bearer {KEY}"}).as_numpy("probabilities")
    classes = version["signature"]["classes"]
    assert np.allclose([[p["probabilities"][name] for name in classes] for p in mine], theirs, atol=1e-6)
    labels = [line.rsplit(",", 1)[1] for line in breast_cancer_csv().decode().splitlines()[1:41]]
    assert sum(p["label"] == label for p, label in zip(mine, labels, strict=True)) >= 36


def test_pictures_from_folders_to_answers(platform: Platform) -> None:
    assert platform.upload("digits", digits_zip(), "digits.zip")["kind"] == "image"
    job = platform.submit(
        kind="train", model="digits", dataset="digits@1", task="classification", target="label", family="cnn",
        training={"epochs": 6, "batch_size": 32}, deploy={"endpoint": "digits"},
    )  # fmt: skip
    platform.wait(job["id"], "succeeded", 180)
    compress = platform.submit(
        kind="compress", model="digits", version=1, budget={"max_metric_drop": 0.05}, after=[job["id"]]
    )
    platform.wait(compress["id"], "succeeded", 120)
    version = platform.call("GET", "/api/v1/models/digits/versions/1")
    assert {variant["name"] for variant in version["variants"]} == {"fp32", "int8"}
    assert version["metrics"]["accuracy"] > 0.8
    until_ready(platform, "digits")
    pixels = (load_digits().images[:30] * 255 / 16).astype("uint8")
    answer = platform.call(
        "POST", "/api/v1/endpoints/digits/predict", json={"instances": [{"image": p.tolist()} for p in pixels]}
    )
    right = sum(int(p["label"]) == t for p, t in zip(answer["predictions"], load_digits().target[:30], strict=True))
    assert right >= 25


def test_regression_answers_values(platform: Platform) -> None:
    platform.upload("diabetes", diabetes_csv())
    job = platform.submit(
        kind="train",
        model="diabetes",
        dataset="diabetes@1",
        task="regression",
        target="progression",
        family="linear",
        deploy={"endpoint": "diabetes"},
    )
    version = platform.call("GET", platform.wait(job["id"], "succeeded")["links"]["version"])
    assert 40 < version["metrics"]["rmse"] < 70
    until_ready(platform, "diabetes")
    data = load_diabetes()
    row = dict(zip(data.feature_names, map(float, data.data[0]), strict=True))
    [prediction] = platform.call("POST", "/api/v1/endpoints/diabetes/predict", json={"instances": [row]})["predictions"]
    assert set(prediction) == {"value"}
    assert 50 < prediction["value"] < 350


def test_a_new_version_never_fails_a_request(platform: Platform) -> None:
    for _ in range(2):
        platform.wait(
            platform.submit(**quick("swapped", family="gbdt", params={"n_estimators": 20}))["id"], "succeeded"
        )
    body = {"model": "swapped", "routes": [{"version": 1}]}
    assert platform.call("PUT", "/api/v1/endpoints/swapped", 201, json=body)["version"] == 1
    row, stop, seen, failures = instances(1), threading.Event(), set(), []

    def load() -> None:
        with httpx.Client(headers={"x-api-key": KEY}) as client:
            while not stop.is_set():
                answer = client.post(f"{platform.url}/api/v1/endpoints/swapped/predict", json={"instances": row})
                if answer.status_code == 200:
                    seen.add(answer.json()["version"])
                else:
                    failures.append(answer.text)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        body["routes"] = [{"version": turn % 2 + 1}]
        platform.call("PUT", "/api/v1/endpoints/swapped", 200, json=body)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == {1, 2}
    assert platform.call("GET", "/api/v1/endpoints/swapped")["revision"] == 11
    platform.call("PUT", "/api/v1/endpoints/swapped", 404, json={"model": "swapped", "routes": [{"version": 9}]})
    platform.call(
        "PUT",
        "/api/v1/endpoints/swapped",
        409,
        json={"model": "swapped", "routes": [{"version": 1, "variant": "int4"}]},
    )
    assert platform.call("POST", "/api/v1/endpoints/swapped/predict", json={"instances": row})["version"] in {1, 2}
    platform.call("DELETE", "/api/v1/endpoints/swapped", 204)
    platform.call("POST", "/api/v1/endpoints/swapped/predict", 404, json={"instances": row})


class TestJobs:
    def test_events_stream_to_the_end_and_resume(self, platform: Platform) -> None:
        job = platform.submit(**quick("streamed", family="mlp", training={"epochs": 5}))
        events = platform.events(job["id"])
        assert [data["state"] for _, kind, data in events if kind == "state"] == ["queued", "running", "succeeded"]
        assert {kind for _, kind, _ in events} == {"state", "progress", "metric", "log"}
        assert platform.events(job["id"], events[2][0]) == events[3:]
        curves = platform.call("GET", f"/api/v1/jobs/{job['id']}/metrics")["metrics"]
        assert [point["step"] for point in curves["validation_loss"]] == [1, 2, 3, 4, 5]
        thin = platform.call("GET", f"/api/v1/jobs/{job['id']}/metrics", params={"points": 2})["metrics"]
        assert [point["step"] for point in thin["validation_loss"]][-1] == 5
        assert len(thin["validation_loss"]) == 2

    def test_the_same_idempotency_key_gives_the_same_job(self, platform: Platform) -> None:
        key = {"idempotency-key": "once"}
        first = platform.call("POST", "/api/v1/jobs", 202, json=quick("once"), headers=key)
        assert platform.call("POST", "/api/v1/jobs", 202, json=quick("once"), headers=key)["id"] == first["id"]
        answer = platform.client.post("/api/v1/jobs", json=quick("twice"), headers=key)
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_reused")
        form = {
            "data": {"name": "once"},
            "files": {"file": ("a.csv", b"a,b\n1,2\n")},
            "headers": key | {"idempotency-key": "data"},
        }
        versions = [platform.call("POST", "/api/v1/datasets", 201, **form)["version"] for _ in range(2)]
        assert versions == [1, 1]
        platform.wait(first["id"], "succeeded")

    def test_a_job_may_be_queued_while_its_data_is_parsed_and_others_after_it(self, platform: Platform) -> None:
        platform.send("fresh", breast_cancer_csv())
        train = platform.submit(**{**quick("fresh"), "dataset": "fresh@1"})
        assert len(train["after"]) == 1
        compress = platform.submit(kind="compress", model="tumours-none", version=1, status=422)
        assert compress["code"] == "invalid_spec"
        assert platform.wait(train["id"], "succeeded")["result"]["version"] == 1

    def test_a_failed_job_can_be_retried_and_a_good_one_not(self, platform: Platform) -> None:
        failed = platform.submit(**quick("retried", timeout_s=0.001))
        platform.wait(failed["id"], "failed")
        again = platform.call("POST", f"/api/v1/jobs/{failed['id']}/retry", 202)
        assert again["id"] != failed["id"]
        platform.wait(again["id"], "failed")
        good = platform.submit(**quick("good"))
        platform.wait(good["id"], "succeeded")
        platform.call("POST", f"/api/v1/jobs/{good['id']}/retry", 409)

    def test_pages_hold_every_job_once(self, platform: Platform) -> None:
        whole = [job["id"] for job in platform.call("GET", "/api/v1/jobs", params={"limit": 500})["items"]]
        walked: list[str] = []
        query: dict[str, Any] = {"limit": 3}
        while True:
            page = platform.call("GET", "/api/v1/jobs", params=query)
            walked += [job["id"] for job in page["items"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert walked == whole
        assert len(set(walked)) == len(walked)


@pytest.fixture(scope="module")
def kept(platform: Platform) -> Platform:
    """The platform with version 1 of the model `kept`."""
    platform.wait(platform.submit(**quick("kept"))["id"], "succeeded")
    return platform


class TestVersions:
    def test_files_come_whole_and_in_part(self, kept: Platform) -> None:
        here = "/api/v1/models/kept/versions/1"
        files = {file["path"]: file for file in kept.call("GET", f"{here}/files")["items"]}
        assert {"model.onnx", "signature.json", "card.json", "golden.json", "sketch.json"} <= set(files)
        whole = kept.client.get(f"{here}/files/model.onnx")
        assert len(whole.content) == files["model.onnx"]["bytes"]
        assert whole.headers["content-disposition"].startswith("attachment")
        part = kept.client.get(f"{here}/files/model.onnx", headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        assert kept.client.get(f"{here}/files/model.onnx", headers={"range": "bytes=999999999-"}).status_code == 416
        assert kept.client.get(f"{here}/files/../../../etc/passwd").status_code == 404
        assert kept.call("GET", f"{here}/card")["metrics"]["test"]["roc_auc"] > 0.95

    def test_aliases_move_and_remember(self, kept: Platform) -> None:
        path = "/api/v1/models/kept/aliases/prod"
        assert kept.call("PUT", path, json={"version": 1, "reason": "first"})["previous"] is None
        kept.call("PUT", path, 404, json={"version": 7})
        [move] = kept.call("GET", f"{path}/history")["items"]
        assert (move["version"], move["by"], move["reason"]) == (1, "first", "first")
        made = kept.call(
            "PUT", "/api/v1/endpoints/by-alias", 201, json={"model": "kept", "routes": [{"alias": "prod"}]}
        )
        assert made["version"] == 1
        kept.call("DELETE", "/api/v1/models/kept/versions/1", 409)

    def test_what_a_model_was_trained_on_is_not_deleted_by_accident(self, kept: Platform) -> None:
        answer = kept.client.delete("/api/v1/datasets/tumours/versions/1")
        assert answer.status_code == 409
        assert "detach=true" in answer.json()["detail"]

    def test_versions_side_by_side(self, kept: Platform) -> None:
        rows = kept.call("GET", "/api/v1/compare", params={"versions": "kept@1,kept@1"})["items"]
        assert [row["settings"]["dataset"] for row in rows] == ["tumours@1", "tumours@1"]


def test_a_data_set_shows_what_it_is(platform: Platform) -> None:
    content = "name,größe\n数据,1\n📊,2\n".encode()
    version = platform.upload("shown", content, "数据 📊.csv")
    assert (version["rows"], [column["name"] for column in version["schema"]["columns"]]) == (2, ["name", "größe"])
    original = platform.client.get("/api/v1/datasets/shown/versions/1/original")
    assert original.content == content
    assert "%E6%95%B0%E6%8D%AE%20%F0%9F%93%8A.csv" in original.headers["content-disposition"]
    assert original.headers["x-content-type-options"] == "nosniff"
    rows = platform.call("GET", "/api/v1/datasets/shown/versions/1/rows")
    assert rows["items"][0] == {"name": "数据", "größe": 1}
    columns = platform.call("GET", "/api/v1/datasets/shown/versions/1/profile")["columns"]
    assert [column["name"] for column in columns] == ["name", "größe"]


def test_probes_and_metrics_tell_the_truth(platform: Platform) -> None:
    with httpx.Client(base_url=str(platform.url)) as anyone:
        assert anyone.get("/livez").json() == {"status": "ok"}
        assert anyone.get("/readyz").json()["checks"] == {
            "registry": "ok",
            "redis": "ok",
            "store": "ok",
            "endpoints": "ok",
        }
        text = anyone.get("/metrics").text
    assert 'aimass_jobs{kind="train",state="succeeded"}' in text
    assert 'aimass_predict_phase_seconds_bucket{endpoint="gbdt",le="+Inf",phase="compute"' in text
    stats = platform.call("GET", "/api/v1/endpoints/gbdt/stats")
    assert stats["requests"] == {"200": 2}
    assert stats["rows"] == 80


NOT_BUILT = [
    ("POST", "/api/v1/uploads"),
    ("POST", "/api/v1/models/m/versions"),
    ("POST", "/api/v1/models/m/versions/1/reproduce"),
    ("POST", "/api/v1/endpoints/e/promote"),
    ("POST", "/api/v1/endpoints/e/rollback"),
    ("POST", "/api/v1/endpoints/e/explain"),
    ("GET", "/api/v1/projects"),
    ("GET", "/api/v1/audit"),
    ("POST", "/api/v1/gc"),
    ("POST", "/api/v1/webhooks"),
    ("POST", "/v1/models/m:predict"),
    ("GET", "/openai/v1/models"),
]


@pytest.mark.parametrize(("method", "path"), NOT_BUILT)
def test_what_is_not_built_says_so(platform: Platform, method: str, path: str) -> None:
    problem = platform.call(method, path, 501)
    assert problem["code"] == "not_built"
    assert "not in this release" in problem["detail"]


def test_unknown_paths_and_verbs_are_problems_too(platform: Platform) -> None:
    assert platform.call("GET", "/api/v1/nothing", 404)["code"] == "not_found"
    assert platform.call("PATCH", "/api/v1/jobs", 405)["code"] == "method_not_allowed"
    assert json.loads(platform.client.get("/v2/models/nothing").content).keys() == {"error"}


def test_the_openapi_document_is_valid_and_complete(platform: Platform) -> None:
    from openapi_spec_validator import validate  # noqa: PLC0415 - slow to import

    document = platform.call("GET", "/openapi.json")
    validate(document)
    operations = [(path, verb, op) for path, item in document["paths"].items() for verb, op in item.items()]
    ids = [op["operationId"] for _, _, op in operations]
    assert len(ids) == len(set(ids))
    assert all("_" in name and name == name.lower() for name in ids)
    assert all(op.get("summary") or op.get("description") for _, _, op in operations)
    assert {"/api/v1/endpoints/{name}/predict", "/v2/models/{model_name}/infer"} & set(document["paths"])
