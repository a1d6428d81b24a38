"""Jobs over HTTP: events, logs, curves, retries, order, idempotency, lists."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import SPECS, Trained
from tests.acceptance.problems import check_problem
from tests.support.jobs import TUMOURS, long, quick
from tests.support.platform import KEY, Platform, breast_cancer_csv
from tests.support.servers import wait_until


@contextmanager
def occupied(platform: Platform) -> Iterator[dict[str, Any]]:
    """A job that keeps the only worker busy until the block ends."""
    job = platform.submit(**long("busy"))
    try:
        wait_until(lambda: platform.job(job["id"])["state"] == "running", 60, "the worker is busy")
        yield job
    finally:
        cancel(platform, job["id"])


def cancel(platform: Platform, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = platform.call("POST", f"/api/v1/jobs/{job_id}/cancel", 202)
    return answer


class TestEvents:
    def test_a_whole_history(self, trained: Trained) -> None:
        """Of the curves every point is kept, of progress what is newest when it is written, and that is the end."""
        job = trained.jobs["mlp"]
        events = trained.platform.events(job["id"])
        ids = [number for number, _, _ in events]
        assert ids == sorted(set(ids))
        assert [data["state"] for _, kind, data in events if kind == "state"] == ["queued", "running", "succeeded"]
        fractions = [data["fraction"] for _, kind, data in events if kind == "progress"]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert all(data["step"] for _, kind, data in events if kind == "progress")
        points = [(data["name"], data["step"]) for _, kind, data in events if kind == "metric"]
        assert [step for name, step in points if name == "validation_loss"] == [1, 2, 3, 4, 5, 6]
        steps = [step for name, step in points if name == "train_loss"]
        assert len(steps) == 6
        assert steps == sorted(set(steps))
        assert events[-1][2]["state"] == "succeeded"

    @pytest.mark.parametrize("seen", [1, 3, -1])
    def test_resuming(self, trained: Trained, seen: int) -> None:
        job = trained.jobs["mlp"]
        events = trained.platform.events(job["id"])
        position = seen % len(events)
        assert trained.platform.events(job["id"], last_id=events[position][0]) == events[position + 1 :]

    def test_live(self, trained: Trained) -> None:
        """Events come while the job runs, and the stream ends with it."""
        platform = trained.platform
        job = platform.submit(**long("watched"))
        kinds: list[str] = []
        told: list[dict[str, Any]] = []

        def listen() -> None:
            with (
                httpx.Client(base_url=str(platform.url), headers={"x-api-key": KEY}, timeout=60) as client,
                client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as stream,
            ):
                assert stream.headers["content-type"].startswith("text/event-stream")
                for line in stream.iter_lines():
                    if line.startswith("event: "):
                        kinds.append(line.removeprefix("event: "))
                    elif line.startswith("data: "):
                        told.append(json.loads(line.removeprefix("data: ")))

        listener = threading.Thread(target=listen)
        listener.start()
        wait_until(lambda: any("epoch" in data.get("step", "") for data in told if "fraction" in data), 60, "it trains")
        assert listener.is_alive()
        cancel(platform, job["id"])
        listener.join(20)
        assert not listener.is_alive()
        assert kinds[0] == kinds[-1] == "state"
        assert {"progress", "metric", "log"} <= set(kinds)
        assert platform.wait(job["id"], "cancelled")["finished_at"] is not None
        platform.call("GET", "/api/v1/models/watched", 404)


class TestLogsAndCurves:
    def test_logs(self, trained: Trained) -> None:
        path = f"/api/v1/jobs/{trained.jobs['mlp']['id']}/logs"
        lines = trained.platform.call("GET", path)["items"]
        assert any("learning from" in line["message"] for line in lines)
        assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
        assert {line["level"] for line in lines} <= {"debug", "info", "warning", "error"}
        assert trained.platform.call("GET", path, params={"limit": 1})["items"] == lines[-1:]

    def test_curves(self, trained: Trained) -> None:
        path = f"/api/v1/jobs/{trained.jobs['mlp']['id']}/metrics"
        curves = trained.platform.call("GET", path)["metrics"]
        losses = curves["validation_loss"]
        assert [point["step"] for point in losses] == sorted({point["step"] for point in losses})
        assert len(losses) == 6
        assert losses[-1]["value"] < losses[0]["value"]
        one = trained.platform.call("GET", path, params={"name": "validation_loss"})["metrics"]
        assert one == {"validation_loss": losses}

    @pytest.mark.parametrize("most", [1, 2, 3, 5, 6, 100])
    def test_fewer_points(self, trained: Trained, most: int) -> None:
        path = f"/api/v1/jobs/{trained.jobs['mlp']['id']}/metrics"
        full = trained.platform.call("GET", path, params={"name": "validation_loss"})["metrics"]["validation_loss"]
        thin = trained.platform.call("GET", path, params={"name": "validation_loss", "points": most})["metrics"]
        kept = thin["validation_loss"]
        assert len(kept) <= most
        assert kept[-1] == full[-1]
        assert all(point in full for point in kept)
        assert most < 2 or kept[0] == full[0]
        assert most < 6 or kept == full


class TestOrder:
    def test_priorities(self, trained: Trained) -> None:
        platform = trained.platform
        with occupied(platform):
            jobs = [platform.submit(**quick(f"prio-{p}", priority=p))["id"] for p in (2, 1, 0)]
            assert [platform.job(job)["state"] for job in jobs] == ["queued"] * 3
        ended = [platform.wait(job, "succeeded") for job in jobs]
        assert ended[2]["started_at"] < ended[1]["started_at"] < ended[0]["started_at"]

    def test_after(self, trained: Trained) -> None:
        platform = trained.platform
        with occupied(platform):
            first = platform.submit(**quick("chain", priority=2))
            second = platform.submit(**quick("chain", priority=0, after=[first["id"]]))
            assert second["after"] == [first["id"]]
            listed = platform.call("GET", "/api/v1/jobs", params={"model": "chain", "state": "queued"})["items"]
            assert [(job["id"], job["after"]) for job in listed] == [(second["id"], [first["id"]]), (first["id"], [])]
        ended = platform.wait(second["id"], "succeeded")
        assert platform.job(first["id"])["finished_at"] <= ended["started_at"]
        assert [platform.job(j["id"])["result"]["version"] for j in (first, second)] == [1, 2]

    def test_after_a_job_that_is_cancelled(self, trained: Trained) -> None:
        platform = trained.platform
        with occupied(platform):
            first = platform.submit(**quick("chain"))
            second = platform.submit(**quick("chain", after=[first["id"]]))
            third = platform.submit(**quick("chain", after=[second["id"]]))
            cancel(platform, first["id"])
            for job in (second, third):
                ended = platform.wait(job["id"])
                assert ended["state"] in {"failed", "cancelled"}
                assert ended["attempt"] == 0
            assert first["id"] in platform.job(second["id"])["error"]["detail"]
            answer = platform.client.post("/api/v1/jobs", json=quick("chain", after=[first["id"]]))
            check_problem(answer, 422, "invalid_spec", ["after", 0], "has cancelled")


class TestCancelAndRetry:
    def test_a_queued_job_is_cancelled_at_once_and_can_be_retried(self, trained: Trained) -> None:
        platform = trained.platform
        with occupied(platform):
            job = platform.submit(**quick("again"))
            ended = cancel(platform, job["id"])
            assert (ended["state"], ended["attempt"], ended["started_at"]) == ("cancelled", 0, None)
            assert cancel(platform, job["id"])["finished_at"] == ended["finished_at"]
            answer = platform.client.post(f"/api/v1/jobs/{job['id']}/retry")
            assert answer.status_code == 202
            new = answer.json()
            assert new["id"] != job["id"]
            assert answer.headers["location"] == f"/api/v1/jobs/{new['id']}"
            assert new["spec"] == job["spec"]
        assert platform.wait(new["id"], "succeeded")["result"]["model"] == "again"
        assert platform.job(job["id"])["state"] == "cancelled"

    def test_what_can_still_succeed_is_not_retried(self, trained: Trained) -> None:
        answer = trained.platform.client.post(f"/api/v1/jobs/{trained.jobs['mlp']['id']}/retry")
        check_problem(answer, 409, "conflict", word="is succeeded")
        with occupied(trained.platform) as busy:
            answer = trained.platform.client.post(f"/api/v1/jobs/{busy['id']}/retry")
            check_problem(answer, 409, "conflict", word="is running")

    def test_an_ingest_job_belongs_to_its_upload(self, trained: Trained) -> None:
        version = trained.platform.upload("unreadable", b"a,b\n")
        answer = trained.platform.client.post(f"{version['links']['job']}/retry")
        check_problem(answer, 409, "conflict", word="upload the file again")


class TestIdempotency:
    def test_jobs(self, trained: Trained) -> None:
        platform = trained.platform
        with occupied(platform):
            headers = {"idempotency-key": "one-job"}
            with ThreadPoolExecutor(8) as pool:
                answers = list(
                    pool.map(
                        lambda _: platform.client.post("/api/v1/jobs", json=quick("once"), headers=headers), range(8)
                    )
                )
            assert {answer.status_code for answer in answers} == {202}
            [job] = {answer.json()["id"] for answer in answers}
            assert {answer.headers["location"] for answer in answers} == {f"/api/v1/jobs/{job}"}
            other = platform.client.post("/api/v1/jobs", json=quick("twice"), headers=headers)
            check_problem(other, 409, "idempotency_key_reused", word="use a new one")
            assert len(platform.call("GET", "/api/v1/jobs", params={"model": "once"})["items"]) == 1
            cancel(platform, job)

    def test_the_first_answer_outlives_the_data_set(self, trained: Trained) -> None:
        platform = trained.platform
        platform.upload("short-lived", breast_cancer_csv())
        spec, headers = quick("kept", dataset="short-lived@1"), {"idempotency-key": "outlives"}
        with occupied(platform):
            job = platform.call("POST", "/api/v1/jobs", 202, json=spec, headers=headers)
            platform.call("DELETE", "/api/v1/datasets/short-lived/versions/1?detach=true", 204)
            again = platform.call("POST", "/api/v1/jobs", 202, json=spec, headers=headers)
            assert again["id"] == job["id"]
            answer = platform.client.post("/api/v1/jobs", json=spec, headers={"idempotency-key": "too-late"})
            check_problem(answer, 422, "invalid_spec", ["dataset"], "there is no data set")
            cancel(platform, job["id"])

    def test_a_key_is_its_callers_own(self, trained: Trained) -> None:
        platform = trained.platform
        made = platform.call("POST", "/api/v1/keys", 201, json={"name": "other", "scopes": ["train", "read"]})
        headers = {"idempotency-key": "shared-word"}
        mine = platform.call("POST", "/api/v1/jobs", 202, json=quick("mine"), headers=headers)
        headers |= {"authorization": f"Bearer {made['secret']}"}
        theirs = platform.call("POST", "/api/v1/jobs", 202, json=quick("theirs"), headers=headers)
        assert mine["id"] != theirs["id"]
        for job in (mine, theirs):
            cancel(platform, job["id"])

    def test_data_sets(self, trained: Trained) -> None:
        platform = trained.platform
        headers = {"idempotency-key": "one-upload"}

        def send(content: bytes) -> httpx.Response:
            return platform.client.post(
                "/api/v1/datasets", data={"name": "once"}, files={"file": ("a.csv", content)}, headers=headers
            )

        first, again = send(b"a,b\n1,2\n"), send(b"a,b\n1,2\n")
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.headers["location"] == again.headers["location"] == "/api/v1/datasets/once/versions/1"
        assert first.json()["links"] == again.json()["links"]
        check_problem(send(b"a,b\n3,4\n"), 409, "idempotency_key_reused")
        assert len(platform.call("GET", "/api/v1/datasets/once/versions")["items"]) == 1

    def test_keys(self, trained: Trained) -> None:
        platform = trained.platform
        headers = {"idempotency-key": "one-key"}
        first = platform.call("POST", "/api/v1/keys", 201, json={"name": "once"}, headers=headers)
        again = platform.call("POST", "/api/v1/keys", 201, json={"name": "once"}, headers=headers)
        assert first["secret"]
        assert again == first | {"secret": None}
        answer = platform.client.post("/api/v1/keys", json={"name": "twice"}, headers=headers)
        check_problem(answer, 409, "idempotency_key_reused")

    def test_retries(self, trained: Trained) -> None:
        platform = trained.platform
        job = platform.submit(**quick("retried", priority=2))
        cancel(platform, job["id"])
        if platform.job(job["id"])["state"] == "running":
            platform.wait(job["id"], "cancelled")
        headers = {"idempotency-key": "one-retry"}
        ids = {platform.call("POST", f"/api/v1/jobs/{job['id']}/retry", 202, headers=headers)["id"] for _ in range(3)}
        assert len(ids) == 1
        cancel(platform, ids.pop())


class TestLists:
    def test_filters(self, trained: Trained) -> None:
        def ids(**query: Any) -> list[str]:
            items = trained.platform.call("GET", "/api/v1/jobs", params={"limit": 500, **query})["items"]
            return [item["id"] for item in items]

        assert trained.jobs["gbdt"]["id"] in ids(model="gbdt", state="succeeded", kind="train")
        assert ids(model="gbdt", kind="compress") == []
        assert set(ids(kind="ingest")).isdisjoint(ids(kind="train"))
        assert ids() == sorted(ids(), reverse=True)

    @pytest.mark.parametrize(
        "path",
        ["jobs", "datasets", "datasets/tumours/versions", "models", "models/linear/versions", "endpoints", "keys"],
    )
    def test_pages(self, trained: Trained, path: str) -> None:
        platform = trained.platform
        if path == "datasets/tumours/versions" and len(platform.call("GET", f"/api/v1/{path}")["items"]) < 3:
            for _ in range(2):
                platform.upload("tumours", breast_cancer_csv())
        whole = platform.call("GET", f"/api/v1/{path}", params={"limit": 500})
        assert whole["next_cursor"] is None
        for limit in (1, 2):
            items, cursor = [], None
            while True:
                page = platform.call(
                    "GET", f"/api/v1/{path}", params={"limit": limit} | ({"cursor": cursor} if cursor else {})
                )
                assert len(page["items"]) <= limit
                items += page["items"]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            assert [_name(item) for item in items] == [_name(item) for item in whole["items"]]

    def test_families(self, trained: Trained) -> None:
        found = trained.platform.call("GET", "/api/v1/families")
        names = [
            "auto", "auto_image", "auto_text", "cnn", "convnext",
            "extra_trees", "ft_transformer", "gbdt", "linear", "mlp", "mobilenet",
            "naive_bayes", "random_forest", "resnet", "rnn", "text_cnn", "text_linear", "transformer", "vit", "xgboost",
        ]  # fmt: skip
        assert [family["name"] for family in found["items"]] == names
        assert found["next_cursor"] is None
        [gbdt] = [family for family in found["items"] if family["name"] == "gbdt"]
        assert gbdt["tasks"] == ["classification", "regression", "multilabel"]
        assert gbdt["params"]["properties"]["num_leaves"]["minimum"] == 2
        assert gbdt["params"]["additionalProperties"] is False

    def test_workers(self, trained: Trained) -> None:
        platform = trained.platform
        with occupied(platform) as busy:
            workers = "/api/v1/workers"
            wait_until(  # told with the heartbeat
                lambda: [w["job"] for w in platform.call("GET", workers)["items"]] == [busy["id"]], 20, "it is shown"
            )
            [worker] = platform.call("GET", workers)["items"]
            assert worker["device"] == "cpu"
            assert platform.job(busy["id"])["worker"] == worker["id"]


def _name(item: dict[str, Any]) -> Any:
    return item.get("id") or (item.get("name") or item.get("model"), item.get("version"))


def test_a_data_set_can_be_trained_on_before_it_is_parsed(trained: Trained) -> None:
    platform = trained.platform
    with occupied(platform):
        made = platform.call(
            "POST", "/api/v1/datasets", 201, data={"name": "at-once"}, files={"file": ("a.csv", breast_cancer_csv())}
        )
        assert made["state"] == "ingesting"
        job = platform.submit(
            **{**TUMOURS, "dataset": "at-once@1", "model": "at-once", **SPECS["linear"], "deploy": None}
        )
        assert made["links"]["job"].rsplit("/", 1)[1] in job["after"]
    assert platform.wait(job["id"], "succeeded")["result"]["version"] == 1


def test_an_endpoint_of_another_model_is_not_taken_over(trained: Trained) -> None:
    spec = quick("other", deploy={"endpoint": "gbdt"})
    answer = trained.platform.client.post("/api/v1/jobs", json=spec)
    check_problem(answer, 422, "invalid_spec", ["deploy", "endpoint"], "serves model 'gbdt'; choose another")
