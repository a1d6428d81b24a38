"""Bad jobs: each a 4xx that names the field and the remedy, or a failed job that does."""

import json
from typing import Any

import pytest

from tests.acceptance.conftest import JSON, people_csv
from tests.acceptance.problems import check_problem
from tests.support.jobs import quick
from tests.support.platform import Platform

STRANGER = "01900000-0000-7000-8000-000000000000"  # as the id of a job looks


class TestJobs:
    @pytest.mark.parametrize(
        ("changes", "loc", "word"),
        [
            ({"family": "forest"}, ["family"], "use one of: auto, auto_image, auto_text, cnn, "),
            ({"family": "gbdt", "params": {"num_leaves": 1}}, ["params", "num_leaves"], "greater than or equal to 2"),
            ({"family": "gbdt", "params": {"leaves": 3}}, ["params", "leaves"], "it takes: n_estimators"),
            ({"params": {"regularization": "strong"}}, ["params", "regularization"], "valid number"),
            ({"epochs": 3}, ["epochs"], "there is no such field"),
            ({"training": {"epoch": 3}}, ["training", "epoch"], "there is no such field"),
            ({"training": {"epochs": 0}}, ["training", "epochs"], "greater than or equal to 1"),
            ({"training": {"optimizer": {"name": "rmsprop"}}}, ["training", "optimizer", "name"], "'adamw'"),
            ({"split": {"test": 0.5, "validation": 0.6}}, ["split"], "must be below 1"),
            ({"target": "malignant"}, ["target"], "no column 'malignant'"),
            ({"target": ""}, ["target"], "at least 1 character"),
            ({"target": None}, ["target"], "valid string"),
            ({"features": {"drop": ["mean radius", "weight"]}}, ["features", "drop", 1], "no column 'weight'"),
            ({"features": {"drop": ["diagnosis"]}}, ["features", "drop"], "is the target and cannot be dropped"),
            ({"features": {"types": {"weight": "number"}}}, ["features", "types", "weight"], "no column 'weight'"),
            (
                {"features": {"steps": [{"step": "clip", "columns": ["weight"], "low": 0}]}},
                ["features", "steps", 0, "columns", 0],
                "no column 'weight'",
            ),
            (
                {"clean": [{"step": "drop_missing", "columns": ["weight"]}]},
                ["clean", 0, "columns", 0],
                "no column 'weight'",
            ),
            ({"clean": [{"step": "wash"}]}, ["clean", 0, "step"], "'drop_duplicates', 'drop_missing'"),
            ({"task": "regression"}, ["target"], "regression needs numbers"),
            ({"task": "juggling"}, ["task"], "'regression' or 'multilabel'"),
            ({"family": "cnn"}, ["family"], "learns from image data"),
            (
                {"family": "cnn", "task": "regression"},
                ["task"],
                "family 'cnn' does classification, multilabel, not regression",
            ),
            ({"metrics": ["rmse"]}, ["metrics"], "not a metric of classification"),
            ({"dataset": "nowhere@1"}, ["dataset"], "there is no data set 'nowhere@1'"),
            ({"dataset": "tumours@2"}, ["dataset"], "there is no data set 'tumours@2'"),
            ({"dataset": "tumours"}, ["dataset"], "not of the form name@version"),
            ({"dataset": 7}, ["dataset"], "valid string"),
            ({"model": "../up"}, ["model"], "must be 1-100 letters"),
            ({"deploy": {"endpoint": "a/b"}}, ["deploy", "endpoint"], "must be 1-100 letters"),
            ({"deploy": {"endpoint": "stats"}}, ["deploy", "endpoint"], "reserved"),
            ({"after": ["nobody"]}, ["after", 0], "there is no job 'nobody'"),
            ({"after": [STRANGER]}, ["after", 0], f"there is no job '{STRANGER}'"),
            ({"after": ["a\x00b"]}, ["after", 0], "NUL"),
            ({"priority": 3}, ["priority"], "0, 1 or 2"),
            ({"timeout_s": -1}, ["timeout_s"], "greater than 0"),
            ({"timeout_s": "NaN"}, ["timeout_s"], "finite"),
            ({"compress": {"min_speedup": True}}, ["compress", "min_speedup"], "not true or false"),
            (
                {"family": "auto", "params": {"time_limit_s": 600}, "timeout_s": 600},
                ["params", "time_limit_s"],
                "or raise timeout_s",
            ),
            (
                {
                    "family": "auto",
                    "params": {"time_limit_s": 300},
                    "compress": {"time_limit_s": 300},
                    "timeout_s": 500,
                },
                ["params", "time_limit_s"],
                "lower it to 150 at most",
            ),
            ({"kind": "cook"}, ["kind"], "'train', 'compress'"),
        ],
    )
    def test_wrong_field(self, unchanged: Platform, changes: dict[str, Any], loc: list[str | int], word: str) -> None:
        answer = unchanged.client.post("/api/v1/jobs", json={**quick("m"), **changes})
        check_problem(answer, 422, "invalid_spec", loc, word)

    @pytest.mark.parametrize("field", ["model", "dataset", "task", "target", "family", "kind"])
    def test_missing_field(self, unchanged: Platform, field: str) -> None:
        spec = {key: value for key, value in quick("m").items() if key != field}
        check_problem(unchanged.client.post("/api/v1/jobs", json=spec), 422, "invalid_spec", [field], "is required")

    @pytest.mark.parametrize(
        ("body", "status", "code", "loc", "word"),
        [
            (b'{"kind":', 400, "malformed", ["body"], "is not valid JSON: Expecting value at character 8"),
            (b"[1]", 422, "invalid_input", ["body"], "must be a JSON object"),
            (b"", 422, "invalid_input", ["body"], "is required"),
            (b'{"kind": "train", "model": "\xff"}', 400, "malformed", None, "UTF-8"),
            (b'{"a":' * 100_000, 400, "malformed", None, "nested too deeply"),
            (b'{"kind": "' + b"x" * (1 << 20) + b'"}', 413, "payload_too_large", None, "AIMASS_GATEWAY_MAX_BODY_MB"),
        ],
    )
    def test_wrong_body(
        self, unchanged: Platform, body: bytes, status: int, code: str, loc: list[str | int] | None, word: str
    ) -> None:
        check_problem(unchanged.client.post("/api/v1/jobs", content=body, headers=JSON), status, code, loc, word)

    def test_too_large_a_body_without_a_length(self, unchanged: Platform) -> None:
        chunks = (b"x" * 65_536 for _ in range(40))
        answer = unchanged.client.post("/api/v1/jobs", content=chunks, headers=JSON)
        check_problem(answer, 413, "payload_too_large", word="AIMASS_GATEWAY_MAX_BODY_MB")

    def test_nan(self, unchanged: Platform) -> None:
        body = json.dumps({**quick("m"), "params": {"regularization": float("nan")}})
        answer = unchanged.client.post("/api/v1/jobs", content=body, headers=JSON)
        check_problem(answer, 422, "invalid_spec", ["params", "regularization"], "finite")

    def test_wrong_content_type(self, unchanged: Platform) -> None:
        answer = unchanged.client.post("/api/v1/jobs", content=b"{}", headers={"content-type": "text/plain"})
        check_problem(answer, 422, "invalid_input", ["Content-Type"], "application/json")

    @pytest.mark.parametrize(("version", "word"), [(1, "there is no model version 'm@1'"), (10**30, "less than or")])
    def test_compressing_what_is_not_there(self, unchanged: Platform, version: int, word: str) -> None:
        answer = unchanged.client.post("/api/v1/jobs", json={"kind": "compress", "model": "m", "version": version})
        check_problem(answer, 422, "invalid_spec", ["version"], word)

    @pytest.mark.parametrize("kind", ["tune", "explain", "ensemble", "predict"])
    def test_kinds_that_are_not_built(self, unchanged: Platform, kind: str) -> None:
        answer = unchanged.client.post("/api/v1/jobs", json={"kind": kind})
        check_problem(answer, 501, "not_built", word=f"jobs of kind '{kind}' are not in this release")


class TestData:
    """What only the parser can see: the upload is taken, and the version fails."""

    @pytest.mark.parametrize(
        ("name", "content", "filename", "word"),
        [
            ("ragged", b"a,b\n1\n2\n3\n4\n", "a.csv", "line 1: the header has 2 cells, but most lines have 1"),
            ("broken-lines", b'{"a": 1\n{"a": 2\n{"a": \n', "a.jsonl", "line 1"),
            ("header-only", b"a,b\n", "a.csv", "no data rows"),
            ("wrong-kind", b"a,b\n1,2\n", "a.csv", "pictures were announced"),
        ],
    )
    def test_nothing_readable(self, limited: Platform, name: str, content: bytes, filename: str, word: str) -> None:
        kind = "image" if name == "wrong-kind" else "auto"
        version = limited.upload(name, content, filename, kind=kind)
        assert version["state"] == "failed"
        assert version["error"]["code"] == "invalid_data"
        assert word in version["error"]["detail"]
        assert version["error"]["errors"][0]["loc"] == ["file"]
        answer = limited.client.post("/api/v1/jobs", json=quick("m", dataset=f"{name}@1"))
        check_problem(answer, 422, "invalid_spec", ["dataset"], "could not be ingested")

    def test_a_target_with_one_class(self, limited: Platform) -> None:
        limited.upload("one-class", b"a,y\n" + b"".join(b"%d,yes\n" % i for i in range(50)))
        answer = limited.client.post("/api/v1/jobs", json=quick("m", dataset="one-class@1", target="y"))
        check_problem(answer, 422, "invalid_spec", ["target"], "one class only; choose a target with two or more")

    def test_a_target_without_values(self, limited: Platform) -> None:
        limited.upload("no-labels", b"a,y\n" + b"".join(b"%d,\n" % i for i in range(50)))
        answer = limited.client.post("/api/v1/jobs", json=quick("m", dataset="no-labels@1", target="y"))
        check_problem(answer, 422, "invalid_spec", ["target"], "every value of 'y' is missing")

    @pytest.mark.parametrize(
        ("changes", "loc"),
        [({"target": "nowhere"}, ["target"]), ({"features": {"drop": ["nowhere"]}}, ["features", "drop", 0])],
    )
    def test_a_job_sent_before_its_data_was_parsed_fails_as_clearly(
        self, limited: Platform, changes: dict[str, Any], loc: list[str | int]
    ) -> None:
        files = {"file": ("people.csv", people_csv())}
        made = limited.call("POST", "/api/v1/datasets", 201, data={"name": "fresh"}, files=files)
        spec = quick("early", dataset=f"fresh@{made['version']}", target="ill") | changes
        ended = limited.wait(limited.submit(**spec)["id"], "failed")
        assert (ended["error"]["code"], ended["attempt"]) == ("invalid_spec", 1)
        assert loc in [error["loc"] for error in ended["error"]["errors"]]
        assert "nowhere" in ended["error"]["detail"]
        limited.call("GET", "/api/v1/models/early", 404)

    def test_a_job_whose_data_cannot_be_parsed_fails_and_says_so(self, limited: Platform) -> None:
        files = {"file": ("a.csv", b"a,b\n1\n2\n3\n4\n")}
        made = limited.call("POST", "/api/v1/datasets", 201, data={"name": "bad"}, files=files)
        job = limited.submit(**quick("never", dataset=f"bad@{made['version']}"))
        ended = limited.wait(job["id"], "failed")
        assert made["links"]["job"].rsplit("/", 1)[1] in ended["error"]["detail"]
