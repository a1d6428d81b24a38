"""Bad requests: each a 4xx of one shape that names the field and the remedy, and nothing half-made is left."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.problems import ID, check_problem
from tests.support.jobs import quick
from tests.support.platform import KEY, Platform, breast_cancer_csv

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=B"}
PART = b'--B\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FILE = b'--B\r\ncontent-disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\n1,2\n'
ROW: dict[str, Any] = {"age": 40, "income": 1000.5, "city": "Oslo", "smoker": True}
PREDICT = "/api/v1/endpoints/people/predict"
LIMITS = {
    "AIMASS_GATEWAY_MAX_UPLOAD_MB": "1",
    "AIMASS_GATEWAY_MAX_BODY_MB": "1",
    "AIMASS_SERVING_MAX_BODY_MB": "1",
}


def people_csv() -> bytes:
    """A hundred rows of every column type; `income` is missing in every tenth."""
    lines = ["age,income,city,smoker,ill"]
    for i in range(100):
        income = "" if i % 10 == 0 else f"{1000 + 37 * i % 900}.5"
        city, smoker, ill = ("Oslo", "Paris", "Wuhan")[i % 3], str(i % 4 == 0).lower(), ("no", "yes")[i * 7 % 11 > 5]
        lines.append(f"{20 + i * 13 % 60},{income},{city},{smoker},{ill}")
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """With small limits, two data sets and an endpoint."""
    with Platform(**LIMITS) as running:
        running.client.headers["x-request-id"] = ID
        assert running.upload("tumours", breast_cancer_csv())["state"] == "ready"
        assert running.upload("people", people_csv())["state"] == "ready"
        spec = quick("people", dataset="people@1", target="ill", deploy={"endpoint": "people"})
        running.wait(running.submit(**spec)["id"], "succeeded")
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
def unchanged(platform: Platform) -> Iterator[Platform]:
    """The platform, which must be the same afterwards."""
    before = everything(platform)
    yield platform
    assert everything(platform) == before
    assert platform.call("GET", "/readyz", 200)["status"] == "ok"


class TestJobs:
    @pytest.mark.parametrize(
        ("changes", "loc", "word"),
        [
            ({"family": "forest"}, ["family"], "use one of: cnn, gbdt, linear, mlp, random_forest"),
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
                {"features": {"steps": [{"step": "clip", "column": "weight", "low": 0}]}},
                ["features", "steps", 0, "column"],
                "no column 'weight'",
            ),
            (
                {"clean": [{"step": "drop_missing", "columns": ["weight"]}]},
                ["clean", 0, "columns", 0],
                "no column 'weight'",
            ),
            ({"clean": [{"step": "wash"}]}, ["clean", 0, "step"], "'drop_duplicates', 'drop_missing'"),
            ({"task": "regression"}, ["target"], "regression needs numbers"),
            ({"task": "juggling"}, ["task"], "'classification' or 'regression'"),
            ({"family": "cnn"}, ["family"], "learns from image data"),
            ({"family": "cnn", "task": "regression"}, ["task"], "family 'cnn' does classification, not regression"),
            ({"metrics": ["rmse"]}, ["metrics"], "not a metric of classification"),
            ({"dataset": "nowhere@1"}, ["dataset"], "there is no data set 'nowhere@1'"),
            ({"dataset": "tumours@2"}, ["dataset"], "there is no data set 'tumours@2'"),
            ({"dataset": "tumours"}, ["dataset"], "not of the form name@version"),
            ({"dataset": 7}, ["dataset"], "valid string"),
            ({"model": "../up"}, ["model"], "must be 1-100 letters"),
            ({"deploy": {"endpoint": "a/b"}}, ["deploy", "endpoint"], "must be 1-100 letters"),
            ({"after": ["nobody"]}, ["after", 0], "there is no job 'nobody'"),
            ({"after": ["a\x00b"]}, ["after", 0], "NUL"),
            ({"priority": 3}, ["priority"], "0, 1 or 2"),
            ({"timeout_s": -1}, ["timeout_s"], "greater than 0"),
            ({"timeout_s": "NaN"}, ["timeout_s"], "finite"),
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

    @pytest.mark.parametrize("kind", ["tune", "evaluate", "explain", "ensemble", "predict"])
    def test_kinds_that_are_not_built(self, unchanged: Platform, kind: str) -> None:
        answer = unchanged.client.post("/api/v1/jobs", json={"kind": kind})
        check_problem(answer, 501, "not_built", word=f"jobs of kind '{kind}' are not in this release")


class TestUploads:
    @pytest.mark.parametrize(
        ("name", "loc", "word"),
        [
            ("", ["name"], "must be 1-100 letters"),
            ("../../etc", ["name"], "must be 1-100 letters"),
            ("a\nb", ["name"], "must be 1-100 letters"),
            ("x" * 101, ["name"], "must be 1-100 letters"),
            ("x" * 5000, ["name"], "at most 4096 bytes"),
            ("数据", ["name"], "must be 1-100 letters"),
        ],
    )
    def test_bad_name(self, unchanged: Platform, name: str, loc: list[str | int], word: str) -> None:
        self._refused(unchanged, {"data": {"name": name}, "files": {"file": ("a.csv", b"a\n1\n")}}, loc, word)

    @pytest.mark.parametrize(
        ("options", "loc", "word"),
        [
            ({"files": {"file": ("a.csv", b"a\n1\n")}}, ["name"], "must be 1-100 letters"),
            ({"files": {"name": (None, "x")}}, ["file"], "no part called 'file'"),
            ({"data": {"name": "x"}}, ["Content-Type"], "multipart/form-data"),
            ({"content": b"a\n1\n", "headers": {"content-type": "text/csv"}}, ["Content-Type"], "multipart/form-data"),
            ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, ["Content-Type"], "boundary"),
            ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary="}}, ["Content-Type"], ""),
            ({"content": b"x", "headers": {"content-type": 'multipart/form-data; boundary="'}}, ["Content-Type"], ""),
            ({"content": b"no form", "headers": FORM}, ["body"], "not a well-formed multipart/form-data body"),
            ({"data": {"name": "x"}, "files": {"file": ("a.csv", b"")}}, ["file"], "empty"),
            (
                {"data": {"name": "x", "kind": "soup"}, "files": {"file": ("a.csv", b"a\n1\n")}},
                ["kind"],
                "auto, tabular, image",
            ),
            (
                {"data": {"name": "x", "colour": "red"}, "files": {"file": ("a.csv", b"a\n1\n")}},
                ["colour"],
                "takes file, name and kind",
            ),
            (
                {"data": {"name": "x"}, "files": [("file", ("a.csv", b"a\n1\n")), ("file", ("b.csv", b"b\n2\n"))]},
                ["file"],
                "twice",
            ),
            (
                {"files": [("name", (None, "x")), ("name", (None, "y")), ("file", ("b.csv", b"b\n2\n"))]},
                ["name"],
                "twice",
            ),
        ],
    )
    def test_bad_form(
        self, unchanged: Platform, options: dict[str, Any], loc: list[str | int] | None, word: str
    ) -> None:
        self._refused(unchanged, options, loc, word)

    @pytest.mark.parametrize(
        "end", [b"", b"\r", b"\r\n--B", b"\r\n--B\r\n", b"\r\n--B-", b"\r\n" + PART % (b"kind", b"tab")]
    )
    def test_truncated(self, unchanged: Platform, end: bytes) -> None:
        body = PART % (b"name", b"half") + FILE + end
        self._refused(unchanged, {"content": body, "headers": FORM}, ["file"], "ended before its closing boundary")

    def _refused(self, platform: Platform, options: dict[str, Any], loc: list[str | int] | None, word: str) -> None:
        check_problem(platform.client.post("/api/v1/datasets", **options), 422, "invalid_input", loc, word)

    def test_too_large(self, unchanged: Platform) -> None:
        files = {"file": ("a.csv", b"a\n" + b"1\n" * (1 << 20))}
        answer = unchanged.client.post("/api/v1/datasets", data={"name": "large"}, files=files)
        check_problem(answer, 413, "payload_too_large", word="AIMASS_GATEWAY_MAX_UPLOAD_MB")

    @pytest.mark.parametrize("kind", ["text", "audio", "series", "ratings", "baskets", "graph"])
    def test_kinds_that_are_not_built(self, unchanged: Platform, kind: str) -> None:
        files = {"file": ("a.csv", b"a\n1\n")}
        answer = unchanged.client.post("/api/v1/datasets", data={"name": "x", "kind": kind}, files=files)
        check_problem(answer, 501, "not_built", word=f"data sets of kind '{kind}'")

    def test_sources_that_are_not_built(self, unchanged: Platform) -> None:
        answer = unchanged.client.post("/api/v1/datasets", json={"name": "x", "uri": "s3://bucket/x.csv"})
        check_problem(answer, 501, "not_built", word="from a URI")


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
    def test_nothing_readable(self, platform: Platform, name: str, content: bytes, filename: str, word: str) -> None:
        kind = "image" if name == "wrong-kind" else "auto"
        version = platform.upload(name, content, filename, kind=kind)
        assert version["state"] == "failed"
        assert version["error"]["code"] == "invalid_data"
        assert word in version["error"]["detail"]
        assert version["error"]["errors"][0]["loc"] == ["file"]
        answer = platform.client.post("/api/v1/jobs", json=quick("m", dataset=f"{name}@1"))
        check_problem(answer, 422, "invalid_spec", ["dataset"], "could not be ingested")

    def test_a_target_with_one_class(self, platform: Platform) -> None:
        platform.upload("one-class", b"a,y\n" + b"".join(b"%d,yes\n" % i for i in range(50)))
        answer = platform.client.post("/api/v1/jobs", json=quick("m", dataset="one-class@1", target="y"))
        check_problem(answer, 422, "invalid_spec", ["target"], "one class only; choose a target with two or more")

    def test_a_target_without_values(self, platform: Platform) -> None:
        platform.upload("no-labels", b"a,y\n" + b"".join(b"%d,\n" % i for i in range(50)))
        answer = platform.client.post("/api/v1/jobs", json=quick("m", dataset="no-labels@1", target="y"))
        check_problem(answer, 422, "invalid_spec", ["target"], "every value of 'y' is missing")

    @pytest.mark.parametrize(
        ("changes", "loc"),
        [({"target": "nowhere"}, ["target"]), ({"features": {"drop": ["nowhere"]}}, ["features", "drop", 0])],
    )
    def test_a_job_sent_before_its_data_was_parsed_fails_as_clearly(
        self, platform: Platform, changes: dict[str, Any], loc: list[str | int]
    ) -> None:
        files = {"file": ("people.csv", people_csv())}
        made = platform.call("POST", "/api/v1/datasets", 201, data={"name": "fresh"}, files=files)
        spec = quick("early", dataset=f"fresh@{made['version']}", target="ill") | changes
        ended = platform.wait(platform.submit(**spec)["id"], "failed")
        assert (ended["error"]["code"], ended["attempt"]) == ("invalid_spec", 1)
        assert loc in [error["loc"] for error in ended["error"]["errors"]]
        assert "nowhere" in ended["error"]["detail"]
        platform.call("GET", "/api/v1/models/early", 404)

    def test_a_job_whose_data_cannot_be_parsed_fails_and_says_so(self, platform: Platform) -> None:
        files = {"file": ("a.csv", b"a,b\n1\n2\n3\n4\n")}
        made = platform.call("POST", "/api/v1/datasets", 201, data={"name": "bad"}, files=files)
        job = platform.submit(**quick("never", dataset=f"bad@{made['version']}"))
        ended = platform.wait(job["id"], "failed")
        assert made["links"]["job"].rsplit("/", 1)[1] in ended["error"]["detail"]


class TestAddresses:
    @pytest.mark.parametrize(
        ("path", "status", "code", "loc"),
        [
            ("/api/v1/nowhere", 404, "not_found", None),
            ("/", 404, "not_found", None),
            ("/api/v1/jobs/nobody", 404, "not_found", None),
            ("/api/v1/jobs/nobody/events", 404, "not_found", None),
            ("/api/v1/jobs/nobody/logs", 404, "not_found", None),
            ("/api/v1/jobs/nobody/metrics", 404, "not_found", None),
            ("/api/v1/datasets/nothing", 404, "not_found", None),
            ("/api/v1/datasets/tumours/versions/7", 404, "not_found", None),
            ("/api/v1/datasets/tumours/versions/x", 422, "invalid_input", ["version"]),
            (f"/api/v1/datasets/tumours/versions/{10**30}", 422, "invalid_input", ["version"]),
            (f"/api/v1/models/people/versions/{10**30}", 422, "invalid_input", ["version"]),
            ("/api/v1/datasets/tumours/versions/1/rows?limit=0", 422, "invalid_input", ["limit"]),
            ("/api/v1/datasets/tumours/versions/1/rows?offset=-1", 422, "invalid_input", ["offset"]),
            ("/api/v1/datasets/tumours/versions?cursor=-1", 422, "invalid_input", ["cursor"]),
            (f"/api/v1/datasets/tumours/versions?cursor={10**30}", 422, "invalid_input", ["cursor"]),
            ("/api/v1/jobs?limit=501", 422, "invalid_input", ["limit"]),
            ("/api/v1/jobs?state=asleep", 422, "invalid_input", ["state"]),
            ("/api/v1/jobs?model=%00", 400, "malformed", None),
            ("/api/v1/datasets/a%00b", 400, "malformed", None),
            ("/api/v1/datasets/..%2f..%2fetc", 404, "not_found", None),
            ("/api/v1/models/people/versions/1/files/..%2f..%2fregistry.db", 404, "not_found", None),
            ("/api/v1/compare", 422, "invalid_input", ["versions"]),
            ("/api/v1/compare?versions=people", 422, "invalid_input", ["versions"]),
            ("/api/v1/compare?versions=people@1,people@9", 404, "not_found", None),
            ("/api/v1/endpoints/nobody", 404, "not_found", None),
            ("/api/v1/endpoints/nobody/stats", 404, "not_found", None),
            ("/api/v1/models/people/aliases/prod/history?x=%00", 400, "malformed", None),
        ],
    )
    def test_get(self, unchanged: Platform, path: str, status: int, code: str, loc: list[str | int] | None) -> None:
        check_problem(unchanged.client.get(path), status, code, loc)

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/api/v1/jobs", "GET, POST"),
            ("POST", "/api/v1/datasets/tumours", "GET"),
            ("PATCH", "/api/v1/endpoints/people", "DELETE, GET, PUT"),
            ("GET", PREDICT, "POST"),
            ("DELETE", "/livez", "GET"),
        ],
    )
    def test_wrong_verb(self, unchanged: Platform, method: str, path: str, allowed: str) -> None:
        answer = unchanged.client.request(method, path)
        check_problem(answer, 405, "method_not_allowed", word=f"only {allowed} is possible here")
        assert answer.headers["allow"] == allowed

    @pytest.mark.parametrize("last", ["x", "-1", "9" * 30])
    def test_wrong_last_event(self, unchanged: Platform, last: str) -> None:
        job = unchanged.call("GET", "/api/v1/jobs")["items"][0]["id"]
        answer = unchanged.client.get(f"/api/v1/jobs/{job}/events", headers={"last-event-id": last})
        check_problem(answer, 422, "invalid_input", ["Last-Event-ID"])

    def test_too_long_an_idempotency_key(self, unchanged: Platform) -> None:
        answer = unchanged.client.post("/api/v1/jobs", json=quick("m"), headers={"idempotency-key": "x" * 256})
        check_problem(answer, 422, "invalid_input", ["Idempotency-Key"], "at most 255")


class TestResources:
    @pytest.mark.parametrize(
        ("body", "status", "code", "loc"),
        [
            ({"model": "people"}, 422, "invalid_spec", ["routes"]),
            ({"model": "people", "routes": []}, 422, "invalid_spec", ["routes"]),
            ({"model": "people", "routes": [{}]}, 422, "invalid_spec", ["routes", 0]),
            ({"model": "people", "routes": [{"version": 0}]}, 422, "invalid_spec", ["routes", 0, "version"]),
            ({"model": "people", "routes": [{"version": 10**30}]}, 422, "invalid_spec", ["routes", 0, "version"]),
            ({"model": "people", "routes": [{"version": 1}], "speed": 1}, 422, "invalid_spec", ["speed"]),
            ({"model": "people", "routes": [{"version": 9}]}, 404, "not_found", None),
            ({"model": "people", "routes": [{"alias": "prod"}]}, 404, "not_found", None),
            ({"model": "people", "routes": [{"version": 1, "variant": "tiny"}]}, 409, "conflict", None),
            ({"model": "people", "routes": [{"version": 1}], "shadow": {"version": 1}}, 501, "not_built", None),
            ({"model": "people", "routes": [{"version": 1}], "placement": "pool"}, 501, "not_built", None),
            (
                {"model": "people", "routes": [{"version": 1, "weight": 50}, {"version": 1, "weight": 50}]},
                501,
                "not_built",
                None,
            ),
        ],
    )
    def test_endpoint(
        self, unchanged: Platform, body: dict[str, Any], status: int, code: str, loc: list[str | int] | None
    ) -> None:
        check_problem(unchanged.client.put("/api/v1/endpoints/new", json=body), status, code, loc)

    @pytest.mark.parametrize("name", ["a b", "-x", "stats"])
    def test_endpoint_name(self, unchanged: Platform, name: str) -> None:
        answer = unchanged.client.put(f"/api/v1/endpoints/{name}", json={"model": "people", "routes": [{"version": 1}]})
        check_problem(answer, 422, "invalid_spec" if name == "stats" else "invalid_input", ["name"])

    @pytest.mark.parametrize(
        ("body", "loc"),
        [
            ({}, ["name"]),
            ({"name": ""}, ["name"]),
            ({"name": "a\x00"}, ["name"]),
            ({"name": "a", "scopes": []}, ["scopes"]),
            ({"name": "a", "scopes": ["root"]}, ["scopes", 0]),
            ({"name": "a", "secret": "mine"}, ["secret"]),
        ],
    )
    def test_key(self, unchanged: Platform, body: dict[str, Any], loc: list[str | int]) -> None:
        check_problem(unchanged.client.post("/api/v1/keys", json=body), 422, "invalid_input", loc)

    @pytest.mark.parametrize(
        ("body", "loc"),
        [
            ({}, ["version"]),
            ({"version": "one"}, ["version"]),
            ({"version": 10**30}, ["version"]),
            ({"version": 1, "reason": "\x00"}, ["reason"]),
            ({"version": 1, "by": "me"}, ["by"]),
        ],
    )
    def test_alias(self, unchanged: Platform, body: dict[str, Any], loc: list[str | int]) -> None:
        check_problem(unchanged.client.put("/api/v1/models/people/aliases/prod", json=body), 422, "invalid_input", loc)

    def test_alias_to_nothing(self, unchanged: Platform) -> None:
        answer = unchanged.client.put("/api/v1/models/people/aliases/prod", json={"version": 9})
        check_problem(answer, 404, "not_found", word="people@9")


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"x-api-key": ""},
            {"x-api-key": KEY[:-1]},
            {"authorization": f"Basic {KEY}"},
            {"authorization": KEY},
            {"authorization": f"Bearer {KEY}x"},
        ],
    )
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/api/v1/jobs"),
            ("POST", "/api/v1/jobs"),
            ("POST", "/api/v1/datasets"),
            ("PUT", "/api/v1/endpoints/people"),
            ("DELETE", "/api/v1/endpoints/people"),
            ("POST", PREDICT),
            ("GET", "/api/v1/keys"),
            ("GET", "/api/v1/audit"),
        ],
    )
    def test_no_valid_key(self, unchanged: Platform, method: str, path: str, headers: dict[str, str]) -> None:
        with httpx.Client(base_url=str(unchanged.url), headers={"x-request-id": ID}) as stranger:
            answer = stranger.request(method, path, headers=headers)
        check_problem(answer, 401, "unauthenticated", word="`Authorization: Bearer KEY`")
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        ("scope", "method", "path", "needed"),
        [
            ("read", "POST", "/api/v1/jobs", "train"),
            ("read", "POST", "/api/v1/datasets", "train"),
            ("read", "DELETE", "/api/v1/models/people/versions/1", "train"),
            ("read", "POST", PREDICT, "predict"),
            ("predict", "GET", "/api/v1/jobs", "read"),
            ("train", "GET", "/api/v1/keys", "admin"),
            ("train", "POST", "/api/v1/keys", "admin"),
        ],
    )
    def test_no_scope(self, platform: Platform, scope: str, method: str, path: str, needed: str) -> None:
        made = platform.call("POST", "/api/v1/keys", 201, json={"name": "narrow", "scopes": [scope]})
        options = {"json": {"name": "x"}} if method == "POST" else {}
        answer = platform.client.request(method, path, headers={"authorization": f"Bearer {made['secret']}"}, **options)
        check_problem(answer, 403, "forbidden", word=f"the key 'narrow' lacks the scope '{needed}'")
        platform.call("DELETE", f"/api/v1/keys/{made['id']}", 204)

    @pytest.mark.parametrize(("method", "path"), [("GET", "/api/v1/jobs"), ("POST", PREDICT)])
    def test_a_revoked_key(self, platform: Platform, method: str, path: str) -> None:
        made = platform.call("POST", "/api/v1/keys", 201, json={"name": "short-lived"})
        headers = {"authorization": f"Bearer {made['secret']}"}
        body = {"json": {"instances": [ROW]}} if method == "POST" else {}
        platform.call(method, path, 200, headers=headers, **body)
        platform.call("DELETE", f"/api/v1/keys/{made['id']}", 204)
        answer = platform.client.request(method, path, headers=headers, **body)
        check_problem(answer, 401, "unauthenticated", word="unknown or revoked")


class TestPredict:
    def test_a_good_row(self, platform: Platform) -> None:
        for row in (ROW, ROW | {"income": None}, ROW | {"city": "Atlantis"}):
            answer = platform.call("POST", PREDICT, 200, json={"instances": [row]})
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

    def test_a_bad_row_fails_alone(self, platform: Platform) -> None:
        answer = platform.client.post(PREDICT, json={"instances": [ROW, ROW | {"age": "old"}]})
        errors = check_problem(answer, 422, "invalid_tensor")["errors"]
        assert [error["loc"] for error in errors] == [["instances", 1, "age"]]
