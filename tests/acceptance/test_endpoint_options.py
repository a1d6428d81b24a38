"""What an endpoint can be given beside its route: a promise, a cache of answers."""

import csv
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Trained
from tests.acceptance.problems import check_problem
from tests.support.platform import breast_cancer_csv
from tests.support.servers import wait_until

ROUTE = {"model": "gbdt", "routes": [{"version": 1}]}


@pytest.fixture
def endpoint(trained: Trained) -> Iterator[Any]:
    """PUT an endpoint of its own with options; gone afterwards."""

    def put(**options: Any) -> dict[str, Any]:
        made: dict[str, Any] = trained.platform.call("PUT", "/api/v1/endpoints/optional", json={**ROUTE, **options})
        return made

    yield put
    trained.platform.client.delete("/api/v1/endpoints/optional")


def instances() -> list[dict[str, float]]:
    read = csv.DictReader(io.StringIO(breast_cancer_csv().decode()))
    return [{name: float(value) for name, value in row.items() if name != "diagnosis"} for row in read]


def lookups(platform: Any) -> dict[str, float]:
    """Looks into the endpoint's cache by result, as they are scraped."""
    pattern = r'^aimass_predict_cache_total\{endpoint="optional",.*result="(\w+)".*\} (\S+)$'
    return {result: float(n) for result, n in re.findall(pattern, platform.client.get("/metrics").text, re.MULTILINE)}


def test_an_answer_is_kept_and_given_again(trained: Trained, endpoint: Any) -> None:
    made = endpoint(cache={"max_mb": 4})
    assert made["cache"] == {"max_mb": 4}
    rows = instances()[:3]
    answers = [trained.predict("optional", [row])["predictions"] for row in rows * 3]
    assert answers[:3] == answers[3:6] == answers[6:]
    assert len({json.dumps(answer) for answer in answers}) == 3
    assert lookups(trained.platform) == {"hit": 6, "miss": 3}
    [stats] = trained.platform.call("GET", "/v2/models/optional/stats")["model_stats"]
    assert (stats["inference_stats"]["success"]["count"], stats["inference_stats"]["cache_hit"]["count"]) == (9, 6)
    assert (stats["inference_count"], stats["inference_stats"]["compute_infer"]["count"]) == (3, 3)
    assert trained.platform.call("GET", "/v2/models/optional/config")["response_cache"] == {"enable": True}


def test_who_would_wait_longer_than_was_promised_is_refused_in_words(trained: Trained, endpoint: Any) -> None:
    """One sends many rows, each a run of its own, so that the other finds somebody to wait for."""
    made = endpoint(slo={"p95_ms": 0.001}, batching={"max_batch": 1})
    assert made["slo"] == {"p95_ms": 0.001}
    rows, path = instances(), "/api/v1/endpoints/optional/predict"
    client, answers = trained.platform.client, list[httpx.Response]()

    def refused() -> bool:
        with ThreadPoolExecutor(2) as callers:
            answers[:] = callers.map(lambda sent: client.post(path, json={"instances": sent}), (rows, rows[:1]))
        return any(answer.status_code == 429 for answer in answers)

    wait_until(refused, 60, "one finds the other's rows before it")
    assert sorted(answer.status_code for answer in answers) == [200, 429]
    [answer] = [answer for answer in answers if answer.status_code == 429]
    assert int(answer.headers["retry-after"]) >= 1
    check_problem(answer, 429, "overloaded", word="slo.p95_ms")
    counted = re.search(
        r'^aimass_predict_rejected_total\{endpoint="optional",.*reason="slo".*\} 1.0$',
        client.get("/metrics").text,
        re.MULTILINE,
    )
    assert counted


@pytest.mark.parametrize(
    ("options", "status", "code", "where"),
    [
        ({"slo": {"p95_ms": 0}}, 422, "invalid_spec", ["slo", "p95_ms"]),
        ({"slo": {}}, 422, "invalid_spec", ["slo", "p95_ms"]),
        ({"slo": {"p95_ms": 10, "p99_ms": 20}}, 422, "invalid_spec", ["slo", "p99_ms"]),
        ({"slo": {"p95_ms": 10, "error_rate": 0.1}}, 501, "not_built", None),
        (
            {"slo": {"p95_ms": 20}, "batching": {"max_delay_ms": 20}},
            422,
            "invalid_spec",
            ["batching", "max_delay_ms"],
        ),
        ({"routes": [{"version": 1, "weight": 50}]}, 422, "invalid_spec", ["routes", 0, "weight"]),
        ({"cache": {"max_mb": 0}}, 422, "invalid_spec", ["cache", "max_mb"]),
        ({"cache": {"ttl_s": 3}}, 422, "invalid_spec", ["cache", "ttl_s"]),
    ],
)
def test_options_that_cannot_be(
    trained: Trained, options: Any, status: int, code: str, where: list[Any] | None
) -> None:
    answer = trained.platform.client.put("/api/v1/endpoints/optional", json={**ROUTE, **options})
    check_problem(answer, status, code, loc=where)
    assert trained.platform.client.get("/api/v1/endpoints/optional").status_code == 404
