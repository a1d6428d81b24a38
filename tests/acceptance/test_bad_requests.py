"""Wrong addresses, verbs, resources and keys: each a 4xx of one shape, and nothing is changed."""

from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import PREDICT, ROW
from tests.acceptance.problems import ID, check_problem
from tests.support.jobs import quick
from tests.support.platform import KEY, Platform


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
        ("method", "path", "unknown", "known"),
        [
            ("GET", "/api/v1/jobs?stat=queued&limit=3", ["stat"], "there are state, kind, model, limit, cursor"),
            ("GET", "/api/v1/datasets?Limit=3&x=&x=1", ["Limit", "x"], "there are limit, cursor"),
            ("GET", "/api/v1/endpoints/nobody?verbose=1", ["verbose"], "there is none"),
            ("GET", "/api/v1/compare?versions=people@1&a%20b=1", ["a b"], "there is versions"),
            ("GET", "/api/v1/families?kind=table", ["kind"], "there is none"),
            ("DELETE", "/api/v1/datasets/people/versions/1?detatch=true", ["detatch"], "there is detach"),
            ("DELETE", "/api/v1/endpoints/people?force=true", ["force"], "there is none"),
            ("POST", "/api/v1/jobs?dry_run=true", ["dry_run"], "there is none"),
            ("PUT", "/api/v1/endpoints/people?wait=1", ["wait"], "there is none"),
        ],
    )
    def test_an_unknown_query_parameter(
        self, unchanged: Platform, method: str, path: str, unknown: list[str], known: str
    ) -> None:
        answer = unchanged.client.request(method, path, json={} if method in {"POST", "PUT"} else None)
        problem = check_problem(answer, 422, "invalid_input", word=known)
        assert [error["loc"] for error in problem["errors"]] == [[name] for name in unknown]

    def test_who_shows_no_key_is_not_told_of_parameters(self, unchanged: Platform) -> None:
        answer = httpx.get(f"{unchanged.url}/api/v1/jobs?stat=queued")
        check_problem(answer, 401, "unauthenticated")

    def test_a_part_that_is_not_built_takes_any_parameter(self, unchanged: Platform) -> None:
        check_problem(unchanged.client.get("/api/v1/audit?since=yesterday"), 501, "not_built")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/api/v1/jobs", "GET, POST"),
            ("POST", "/api/v1/datasets/tumours", "GET"),
            ("PATCH", "/api/v1/endpoints/people", "DELETE, GET, PUT"),
            ("GET", PREDICT, "POST"),
            ("DELETE", "/livez", "GET, HEAD"),
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
            ({"model": "nobody", "routes": [{"version": 1}]}, 404, "not_found", ["model"]),
            ({"model": "nobody", "routes": [{"alias": "prod"}]}, 404, "not_found", ["model"]),
            ({"model": "people", "routes": [{"version": 9}]}, 404, "not_found", ["routes", 0, "version"]),
            ({"model": "people", "routes": [{"alias": "prod"}]}, 404, "not_found", ["routes", 0, "alias"]),
            (
                {"model": "people", "routes": [{"version": 1, "variant": "tiny"}]},
                409,
                "conflict",
                ["routes", 0, "variant"],
            ),
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
        check_problem(answer, 422, "invalid_input", ["name"])

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
        check_problem(answer, 404, "not_found", ["version"], word="people@9")


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

    def test_the_open_protocol_refuses_in_its_own_form(self, unchanged: Platform) -> None:
        with httpx.Client(base_url=str(unchanged.url), headers={"x-request-id": ID}) as stranger:
            answer = stranger.get("/v2/models/people")
        missing = unchanged.client.get("/v2/models/nobody")
        assert (answer.status_code, missing.status_code) == (401, 404)
        for refusal in (answer, missing):
            assert set(refusal.json()) == {"error"}
            assert refusal.headers["x-request-id"] == ID

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
    def test_no_scope(self, limited: Platform, scope: str, method: str, path: str, needed: str) -> None:
        made = limited.call("POST", "/api/v1/keys", 201, json={"name": "narrow", "scopes": [scope]})
        options = {"json": {"name": "x"}} if method == "POST" else {}
        answer = limited.client.request(method, path, headers={"authorization": f"Bearer {made['secret']}"}, **options)
        check_problem(answer, 403, "forbidden", word=f"the key 'narrow' lacks the scope '{needed}'")
        limited.call("DELETE", f"/api/v1/keys/{made['id']}", 204)

    @pytest.mark.parametrize(("method", "path"), [("GET", "/api/v1/jobs"), ("POST", PREDICT)])
    def test_a_revoked_key(self, limited: Platform, method: str, path: str) -> None:
        made = limited.call("POST", "/api/v1/keys", 201, json={"name": "short-lived"})
        headers = {"authorization": f"Bearer {made['secret']}"}
        body = {"json": {"instances": [ROW]}} if method == "POST" else {}
        limited.call(method, path, 200, headers=headers, **body)
        limited.call("DELETE", f"/api/v1/keys/{made['id']}", 204)
        answer = limited.client.request(method, path, headers=headers, **body)
        check_problem(answer, 401, "unauthenticated", word="unknown or revoked")
