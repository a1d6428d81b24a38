"""A cleaned and transformed table through the whole platform: callers send raw columns."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Trained
from tests.acceptance.problems import check_problem
from tests.support.servers import wait_until

DAY = 19723  # 2024-01-01
STEPS = [
    {"step": "impute", "flag": True},
    {"step": "date_parts", "columns": ["since"], "parts": ["month"], "keep": False},
    {"step": "bin", "columns": ["since.month"], "bins": 2, "strategy": "uniform", "output": "category"},
    {"step": "aggregate", "by": "city", "column": "age", "functions": ["mean", "count"]},
    {"step": "derive", "name": "northern", "expression": "city = 'Oslo' AND age > \"age mean by city\""},
    {"step": "one_hot"},
]
SPEC: dict[str, Any] = {
    "kind": "train", "model": "visitors", "dataset": "visitors@1", "task": "classification", "target": "bought",
    "family": "linear", "clean": [{"step": "filter", "where": "age >= 18 OR age IS NULL"}],
    "features": {"types": {"since": "number"}, "steps": STEPS}, "evaluation": {"plots": False},
}  # fmt: skip


def visitors_csv() -> bytes:
    """Who came in the second half of the year bought, and so did nobody of those under age."""
    lines = ["age,since,city,bought"]
    for i in range(400):
        month = 1 + i * 7 % 12
        age = "" if i % 10 == 0 else str(10 + i * 13 % 60)
        bought = month > 6 and (not age or int(age) >= 18)
        lines.append(f"{age},2024-{month:02}-{1 + i % 28:02},{('Oslo', 'Wuhan')[i % 2]},{('no', 'yes')[bought]}")
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def visitors(trained: Trained) -> Iterator[dict[str, Any]]:
    """The ended job, whose version the endpoint `visitors` serves."""
    platform = trained.platform
    platform.upload("visitors", visitors_csv())
    job = platform.submit(**SPEC, deploy={"endpoint": "visitors"})
    ended = platform.wait(job["id"], "succeeded")
    wait_until(lambda: platform.client.get("/v2/models/visitors/ready").is_success, 60, "the endpoint is loaded")
    yield ended
    platform.call("DELETE", "/api/v1/endpoints/visitors", 204)


def test_raw_columns_are_answered(trained: Trained, visitors: dict[str, Any]) -> None:
    asked = [(30, DAY + 10, "Oslo"), (30, DAY + 300, "Oslo"), (None, DAY + 300, "Atlantis"), (None, DAY, "Wuhan")]
    rows = [dict(zip(("age", "since", "city"), row, strict=True)) for row in asked]
    answer = trained.predict("visitors", rows)
    assert [row["label"] for row in answer["predictions"]] == ["no", "yes", "yes", "no"]
    card = trained.platform.call("GET", "/api/v1/models/visitors/versions/1/card")
    assert card["data"]["dropped_rows"]["filter"] > 0
    recipe = card["fit"]["recipe"]
    assert [step["step"] for step in recipe["steps"]] == [step["step"] for step in STEPS]
    assert recipe["steps"][0]["filled"]["age"] > 0
    assert card["associations"][0]["column"] == "since"
    assert visitors["result"]["metrics"]["roc_auc"] == 1


@pytest.mark.usefixtures("visitors")
class TestBad:
    """Jobs that cannot be."""

    @pytest.mark.parametrize(
        ("change", "where", "word"),
        [
            (
                {"features": {"steps": [{"step": "scale", "columns": ["city"]}]}},
                "columns",
                "not a used column of numbers",
            ),
            ({"features": {"steps": [{"step": "one_hot", "columns": ["town"]}]}}, "columns", "no column 'town'"),
            ({"features": {"steps": [{"step": "aggregate", "by": "age", "column": "age"}]}}, "by", "of categories"),
            ({"features": {"steps": [{"step": "clip"}]}}, None, "give bounds"),
        ],
    )
    def test_a_step_is_refused_before_it_is_queued(
        self, trained: Trained, change: dict[str, Any], where: str | None, word: str
    ) -> None:
        answer = trained.platform.client.post("/api/v1/jobs", json={**SPEC, **change})
        loc = ["features", "steps", 0, *{None: ["clip"], "by": ["by"], "columns": ["columns", 0]}[where]]
        check_problem(answer, 422, "invalid_spec", loc, word)

    def test_outliers_of_words_are_refused(self, trained: Trained) -> None:
        clean = [{"step": "drop_outliers", "columns": ["city"]}]
        answer = trained.platform.client.post("/api/v1/jobs", json={**SPEC, "clean": clean})
        check_problem(answer, 422, "invalid_spec", ["clean", 0, "columns", 0], "outliers are of numbers")

    def test_a_query_is_no_predicate(self, trained: Trained) -> None:
        clean = [{"step": "filter", "where": "age IN (SELECT 1 FROM read_csv('/etc/passwd'))"}]
        job = trained.platform.submit(**{**SPEC, "clean": clean})
        error = trained.platform.wait(job["id"], "failed")["error"]
        assert error["errors"][0]["loc"] == ["clean", 0, "where"]
        assert "no subquery" in error["detail"]
        features = {"steps": [{"step": "derive", "name": "x", "expression": "(SELECT max(age) FROM rows)"}]}
        job = trained.platform.submit(**{**SPEC, "features": features})
        error = trained.platform.wait(job["id"], "failed")["error"]
        assert error["errors"][0]["loc"] == ["features", "steps", 0, "expression"]
