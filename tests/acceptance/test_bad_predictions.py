"""Bad instances: named by row and column, and the good ones are none the worse."""

import json
from typing import Any

import pytest

from tests.acceptance.conftest import JSON, PREDICT, ROW
from tests.acceptance.problems import ID, check_problem
from tests.support.platform import Platform


class TestPredict:
    def test_a_good_row(self, limited: Platform) -> None:
        for row in (ROW, ROW | {"income": None}, ROW | {"city": "Atlantis"}):
            answer = limited.call("POST", PREDICT, 200, json={"instances": [row]})
            assert answer["predictions"][0]["label"] in {"yes", "no"}
            assert answer["request_id"] == ID

    @pytest.mark.parametrize(
        ("changes", "loc", "word"),
        [
            ({"income": float("nan")}, ["instances", 1, "income"], "finite number, got nan; send null"),
            ({"income": float("inf")}, ["instances", 1, "income"], "finite number, got inf"),
            ({"age": float("nan")}, ["instances", 1, "age"], "finite"),
            ({"income": 1e300}, ["instances", 1, "income"], "within"),
            ({"income": "much"}, ["instances", 1, "income"], "must be a number, got 'much'"),
            ({"age": "forty"}, ["instances", 1, "age"], "must be an integer, got 'forty'"),
            ({"age": 40.5}, ["instances", 1, "age"], "must be an integer, got 40.5"),
            ({"age": True}, ["instances", 1, "age"], "must be an integer, got True"),
            ({"city": 3}, ["instances", 1, "city"], "must be a text, got 3"),
            ({"smoker": "yes"}, ["instances", 1, "smoker"], "must be true or false, got 'yes'"),
            ({"city": ["Oslo"]}, ["instances", 1, "city"], "must be a text"),
            ({"height": 180}, ["instances", 1, "height"], "unknown column; the model has age, income, city, smoker"),
            ({"ill": "no"}, ["instances", 1, "ill"], "unknown column"),
            ({"age": None}, ["instances", 1, "age"], "null is not accepted"),
        ],
    )
    def test_wrong_value(self, unchanged: Platform, changes: dict[str, Any], loc: list[str | int], word: str) -> None:
        body = json.dumps({"instances": [ROW, ROW | changes]})
        check_problem(unchanged.client.post(PREDICT, content=body, headers=JSON), 422, "invalid_tensor", loc, word)

    @pytest.mark.parametrize("column", ["age", "income", "city", "smoker"])
    def test_missing_column(self, unchanged: Platform, column: str) -> None:
        row = {name: value for name, value in ROW.items() if name != column}
        answer = unchanged.client.post(PREDICT, json={"instances": [row]})
        check_problem(answer, 422, "invalid_tensor", ["instances", 0, column], "missing column")

    @pytest.mark.parametrize(
        ("body", "status", "code", "loc", "word"),
        [
            (b'{"instances": []}', 422, "invalid_tensor", ["instances"], "at least one instance"),
            (b'{"instances": {"age": 3}}', 422, "invalid_tensor", ["instances"], "must be a list"),
            (b'{"instances": [3]}', 422, "invalid_tensor", ["instances", 0], "must be an object"),
            (b"{}", 422, "invalid_tensor", ["instances"], "missing"),
            (b'{"rows": []}', 422, "invalid_tensor", ["rows"], "unknown field"),
            (b'{"instances": [{"age": 40,', 400, "malformed", None, "not JSON"),
            (b"[]", 400, "malformed", None, "must be a JSON object"),
            (b"", 400, "malformed", None, "not JSON"),
            (b'{"instances": ' * 100_000, 413, "payload_too_large", None, "AIMASS_SERVING_MAX_BODY_MB"),
            (b'{"instances": ' + b"[" * 100_000, 400, "malformed", None, "not JSON"),
            (b'{"instances": [{"city": "\xff"}]}', 400, "malformed", None, "not JSON"),
        ],
    )
    def test_wrong_body(
        self, unchanged: Platform, body: bytes, status: int, code: str, loc: list[str | int] | None, word: str
    ) -> None:
        check_problem(unchanged.client.post(PREDICT, content=body, headers=JSON), status, code, loc, word)

    def test_unknown_endpoint(self, unchanged: Platform) -> None:
        answer = unchanged.client.post("/api/v1/endpoints/nobody/predict", json={"instances": [ROW]})
        check_problem(answer, 404, "not_found", word="nobody")

    def test_a_bad_row_fails_alone(self, limited: Platform) -> None:
        answer = limited.client.post(PREDICT, json={"instances": [ROW, ROW | {"age": "old"}]})
        errors = check_problem(answer, 422, "invalid_tensor")["errors"]
        assert [error["loc"] for error in errors] == [["instances", 1, "age"]]
