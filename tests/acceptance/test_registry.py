"""Data sets, models, aliases, files and keys over HTTP, and what is not built yet."""

import hashlib

import httpx
import pytest

from tests.acceptance.conftest import PICTURES, Trained
from tests.acceptance.problems import check_problem
from tests.support.jobs import long, quick
from tests.support.platform import breast_cancer_csv
from tests.support.servers import wait_until

FIELDS = {
    "name", "version", "kind", "rows", "bytes", "sha256", "schema", "state", "error", "warnings", "rejected_rows",
    "filename", "created_at", "links", "source",
}  # fmt: skip


class TestDataSets:
    def test_a_table(self, trained: Trained) -> None:
        version = trained.platform.call("GET", "/api/v1/datasets/tumours/versions/1")
        assert set(version) == FIELDS
        content = breast_cancer_csv()
        assert (version["kind"], version["state"], version["rows"]) == ("tabular", "ready", 569)
        assert version["bytes"] == len(content)
        assert version["sha256"] == hashlib.sha256(content).hexdigest()
        assert len(version["schema"]["columns"]) == 31
        assert version["schema"]["columns"][30] == {"name": "diagnosis", "type": "category", "missing": 0, "unique": 2}
        assert version["rejected_rows"] == {"count": 0, "first": []}

    def test_pictures(self, trained: Trained) -> None:
        version = trained.platform.call("GET", "/api/v1/datasets/digits/versions/1")
        assert (version["kind"], version["rows"], version["filename"]) == ("image", PICTURES, "digits.zip")
        shown = trained.platform.call("GET", "/api/v1/datasets/digits/versions/1/rows", params={"limit": 2})
        assert (shown["total"], shown["previewed"]) == (PICTURES, 100)
        assert [set(row) for row in shown["items"]] == [{"label", "path", "width", "height"}] * 2
        assert {row["width"] for row in shown["items"]} == {8}

    def test_rows_and_profile(self, trained: Trained) -> None:
        path = "/api/v1/datasets/tumours/versions/1"
        first = trained.platform.call("GET", f"{path}/rows", params={"limit": 3})
        assert first["items"][0]["mean radius"] == 17.99
        assert first["items"][0]["diagnosis"] == "malignant"
        later = trained.platform.call("GET", f"{path}/rows", params={"limit": 2, "offset": 1})
        assert later["items"] == first["items"][1:]
        assert trained.platform.call("GET", f"{path}/rows", params={"offset": 100})["items"] == []
        profile = trained.platform.call("GET", f"{path}/profile")
        assert "preview" not in profile
        assert profile["columns"][30]["top"] == [
            {"value": "benign", "count": 357},
            {"value": "malignant", "count": 212},
        ]
        assert sum(profile["columns"][0]["histogram"]["counts"]) == 569

    def test_names_in_any_script(self, trained: Trained) -> None:
        platform = trained.platform
        content = "name,größe\n数据,1\n📊,2\n".encode()
        version = platform.upload("shown", content, "数据 📊.csv")
        assert [column["name"] for column in version["schema"]["columns"]] == ["name", "größe"]
        original = platform.client.get("/api/v1/datasets/shown/versions/1/original")
        assert original.content == content
        assert "%E6%95%B0%E6%8D%AE%20%F0%9F%93%8A.csv" in original.headers["content-disposition"]
        assert original.headers["x-content-type-options"] == "nosniff"
        rows = platform.call("GET", "/api/v1/datasets/shown/versions/1/rows")
        assert rows["items"][0] == {"name": "数据", "größe": 1}
        columns = platform.call("GET", "/api/v1/datasets/shown/versions/1/profile")["columns"]
        assert [column["name"] for column in columns] == ["name", "größe"]

    def test_a_name_is_its_newest_version_that_is_left(self, trained: Trained) -> None:
        platform = trained.platform
        for number in (1, 2, 3):
            assert platform.upload("grown", b"a,b\n" + b"1,2\n" * number)["version"] == number
        shown = platform.call("GET", "/api/v1/datasets/grown")
        assert set(shown) == FIELDS | {"latest_version"}
        assert (shown["version"], shown["latest_version"], shown["rows"]) == (3, 3, 3)
        platform.call("DELETE", "/api/v1/datasets/grown/versions/3", 204)
        shown = platform.call("GET", "/api/v1/datasets/grown")
        assert (shown["version"], shown["rows"]) == (2, 2)
        assert platform.call("GET", shown["links"]["latest"])["rows"] == 2
        listed = platform.call("GET", "/api/v1/datasets", params={"limit": 500})["items"]
        assert [item for item in listed if item["name"] == "grown"] == [shown]
        assert platform.upload("grown", b"a,b\n1,2\n")["version"] == 4
        versions = platform.call("GET", "/api/v1/datasets/grown/versions")["items"]
        assert [version["version"] for version in versions] == [4, 2, 1]
        for number in (1, 2, 4):
            platform.call("DELETE", f"/api/v1/datasets/grown/versions/{number}", 204)
        platform.call("GET", "/api/v1/datasets/grown", 404)
        platform.call("DELETE", "/api/v1/datasets/grown/versions/1", 404)

    def test_a_version_that_trained_a_model_is_kept_until_it_is_detached(self, trained: Trained) -> None:
        platform = trained.platform
        path = "/api/v1/datasets/diabetes/versions/1"
        answer = platform.client.delete(path)
        check_problem(answer, 409, "conflict", word="'diabetes@1' trained progression@1; add ?detach=true")
        platform.call("DELETE", path, 204, params={"detach": "true"})
        platform.call("GET", path, 404)
        assert trained.version("progression")["lineage"]["dataset"] == "diabetes@1"
        answer = platform.client.post("/api/v1/jobs", json={"kind": "compress", "model": "progression", "version": 1})
        check_problem(answer, 422, "invalid_spec", ["version"], "there is no data set 'diabetes@1'")


class TestFiles:
    def test_every_file_of_a_version(self, trained: Trained) -> None:
        platform = trained.platform
        files = platform.call("GET", "/api/v1/models/gbdt/versions/1/files")["items"]
        paths = {file["path"] for file in files}
        assert {"model.onnx", "signature.json", "card.json", "sketch.json", "split.parquet"} <= paths
        assert not any(path.endswith((".pkl", ".pt", ".joblib", ".py")) for path in paths)
        for file in files:
            answer = platform.client.get(f"/api/v1/models/gbdt/versions/1/files/{file['path']}")
            assert len(answer.content) == file["bytes"]
            assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
            assert answer.headers["etag"] == f'"{file["sha256"]}"'
            shown = file["path"] == "card.html" or file["path"].startswith("plots/")
            assert answer.headers["content-disposition"].startswith("inline;" if shown else "attachment;")
            assert answer.headers["content-security-policy"].startswith("sandbox")
            assert answer.headers["x-content-type-options"] == "nosniff"
        platform.call("GET", "/api/v1/models/gbdt/versions/1/files/nothing.onnx", 404)

    def test_the_card_and_its_plots_are_shown_by_a_browser(self, trained: Trained) -> None:
        """And run nothing on the platform's origin, whatever the names in them hold."""
        page = trained.version("gbdt")["links"]["page"]
        kinds = {"card.html": "text/html", "plots/roc.svg": "image/svg+xml", "plots/roc.png": "image/png"}
        for file, kind in kinds.items():
            answer = trained.platform.client.get(page.replace("card.html", file))
            assert answer.headers["content-type"].split(";")[0] == kind
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"sandbox", "default-src 'none'"} <= set(policy)
            assert not any("script" in rule for rule in policy)
        assert "<title>gbdt: model card</title>" in trained.platform.client.get(page).text

    @pytest.mark.parametrize(
        ("asked", "start", "end"),
        [("bytes=0-9", 0, 10), ("bytes=5-5", 5, 6), ("bytes=10-", 10, None), ("bytes=-7", -7, None)],
    )
    def test_ranges(self, trained: Trained, asked: str, start: int, end: int | None) -> None:
        url = "/api/v1/datasets/tumours/versions/1/original"
        whole = breast_cancer_csv()
        answer = trained.platform.client.get(url, headers={"range": asked})
        assert answer.status_code == 206
        assert answer.content == whole[start:end]
        first = start % len(whole)
        last = (len(whole) if end is None else end) - 1
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"

    @pytest.mark.parametrize("instead", [None, "folder"])
    @pytest.mark.parametrize("what", ["datasets/tumours/versions/1/original", "models/gbdt/versions/1/files/card.json"])
    def test_a_file_that_the_store_does_not_give(self, trained: Trained, what: str, instead: str | None) -> None:
        """It is a problem rather than a 200 that breaks off, and no 404: the registry has it."""
        platform, url = trained.platform, f"/api/v1/{what}"
        answer = platform.client.get(url)
        digest = hashlib.sha256(answer.content).hexdigest()
        stored = platform.data_dir / "store" / digest[:2] / digest[2:4] / digest
        aside = stored.rename(platform.folder / "aside")
        try:
            if instead:
                stored.mkdir()
            urls = [url, "/api/v1/models/gbdt/versions/1/card"] if what.endswith("card.json") else [url]
            for failing in urls:
                refused = platform.client.get(failing)
                check_problem(refused, 503, "unavailable", word="AIMASS_STORE_URL")
                assert int(refused.headers["retry-after"]) >= 1
        finally:
            if instead:
                stored.rmdir()
            aside.rename(stored)
        assert platform.client.get(url).content == answer.content

    def test_a_range_beyond_the_end(self, trained: Trained) -> None:
        url = "/api/v1/models/gbdt/versions/1/files/model.onnx"
        answer = trained.platform.client.get(url, headers={"range": "bytes=999999999-"})
        check_problem(answer, 416, "range_not_satisfiable", word="Range: the file has")
        assert answer.headers["content-range"].startswith("bytes */")

    @pytest.mark.parametrize("asked", ["bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=-"])
    def test_ranges_that_are_not_understood_are_passed_over(self, trained: Trained, asked: str) -> None:
        url = "/api/v1/datasets/tumours/versions/1/original"
        answer = trained.platform.client.get(url, headers={"range": asked})
        assert (answer.status_code, answer.content) == (200, breast_cancer_csv())


class TestModels:
    def test_aliases(self, trained: Trained) -> None:
        platform = trained.platform
        path = "/api/v1/models/mlp/aliases/production"
        if platform.call("GET", "/api/v1/models/mlp")["latest_version"] == 1:
            job = platform.submit(**quick("mlp"))
            platform.wait(job["id"], "succeeded")
        first = platform.call("PUT", path, 200, json={"version": 1, "reason": "the first"})
        assert (first["alias"], first["version"], first["previous"], first["reason"]) == (
            "production",
            1,
            None,
            "the first",
        )
        platform.call("PUT", path, 200, json={"version": 2})
        platform.call("PUT", path, 200, json={"version": 1, "reason": "rolled back"})
        history = platform.call("GET", f"{path}/history")["items"]
        moves = [(move["previous"], move["version"], move["reason"]) for move in history]
        assert moves == [(2, 1, "rolled back"), (1, 2, ""), (None, 1, "the first")]
        assert {move["by"] for move in history} == {first["by"]}
        assert platform.call("GET", "/api/v1/models/mlp")["aliases"] == {"production": 1}
        made = platform.call(
            "PUT", "/api/v1/endpoints/by-alias", json={"model": "mlp", "routes": [{"alias": "production"}]}
        )
        assert made["version"] == 1
        platform.call("DELETE", "/api/v1/endpoints/by-alias", 204)
        answer = platform.client.delete("/api/v1/models/mlp/versions/1")
        check_problem(answer, 409, "conflict")

    def test_deleting(self, trained: Trained) -> None:
        platform = trained.platform
        made = [platform.wait(platform.submit(**quick("gone"))["id"], "succeeded")["result"] for _ in range(2)]
        assert [result["version"] for result in made] == [1, 2]
        platform.call("PUT", "/api/v1/models/gone/aliases/best", json={"version": 1})
        answer = platform.client.delete("/api/v1/models/gone/versions/1")
        check_problem(answer, 409, "conflict", word="alias 'best' points at 'gone@1'; move or delete it first")
        platform.call("DELETE", "/api/v1/models/gone/versions/2", 204)
        platform.call("GET", "/api/v1/models/gone/versions/2", 404)
        platform.call("GET", "/api/v1/models/gone/versions/2/files/model.onnx", 404)
        shown = platform.call("GET", "/api/v1/models/gone")
        assert shown["latest_version"] == 1
        platform.call("GET", shown["links"]["latest"], 200)

    def test_comparison(self, trained: Trained) -> None:
        found = trained.platform.call("GET", "/api/v1/compare", params={"versions": "gbdt@1,mlp@1"})["items"]
        assert [(row["model"], row["version"], row["family"]) for row in found] == [
            ("gbdt", 1, "gbdt"),
            ("mlp", 1, "mlp"),
        ]
        for row in found:
            version = trained.version(row["model"])
            assert row["metrics"] == version["metrics"]
            assert row["variants"] == version["variants"]
            assert row["settings"]["dataset"] == "tumours@1"
        assert found[0]["settings"]["params"]["n_estimators"] == 40

    def test_a_model_that_is_a_data_sets_name_twin_is_another_thing(self, trained: Trained) -> None:
        trained.platform.call("GET", "/api/v1/models/tumours", 404)
        trained.platform.call("GET", "/api/v1/datasets/gbdt", 404)


class TestKeys:
    def test_a_life(self, trained: Trained) -> None:
        platform = trained.platform
        answer = platform.client.post("/api/v1/keys", json={"name": "ci", "scopes": ["read"]})
        made = answer.json()
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["location"] == f"/api/v1/keys/{made['id']}"
        assert made["secret"].startswith(made["prefix"])
        assert len(made["secret"]) > 40
        for header in ({"x-api-key": made["secret"]}, {"authorization": f"bearer {made['secret']}"}):
            assert httpx.get(f"{platform.url}/api/v1/models", headers=header).status_code == 200
        listed = platform.call("GET", "/api/v1/keys", params={"limit": 500})["items"]
        [shown] = [key for key in listed if key["id"] == made["id"]]
        assert shown == {name: value for name, value in made.items() if name != "secret"}
        platform.call("DELETE", f"/api/v1/keys/{made['id']}", 204)
        platform.call("DELETE", f"/api/v1/keys/{made['id']}", 204)
        listed = platform.call("GET", "/api/v1/keys", params={"limit": 500})["items"]
        assert next(key for key in listed if key["id"] == made["id"])["revoked_at"] is not None
        answer = httpx.get(f"{platform.url}/api/v1/models", headers={"x-api-key": made["secret"]})
        check_problem(answer, 401, "unauthenticated")

    def test_no_secret_is_kept(self, trained: Trained) -> None:
        made = trained.platform.call("POST", "/api/v1/keys", 201, json={"name": "hidden"})
        kept = b"".join(path.read_bytes() for path in trained.platform.data_dir.glob("registry.db*"))
        assert made["secret"].encode() not in kept
        assert made["prefix"].encode() in kept


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/uploads"),
        ("OPTIONS", "/api/v1/uploads"),
        ("PATCH", "/api/v1/uploads/some-id"),
        ("HEAD", "/api/v1/uploads/some-id"),
        ("DELETE", "/api/v1/uploads/some-id"),
        ("POST", "/api/v1/endpoints/gbdt/promote"),
        ("POST", "/api/v1/endpoints/gbdt/rollback"),
        ("POST", "/api/v1/endpoints/gbdt/explain"),
        ("GET", "/api/v1/projects"),
        ("POST", "/api/v1/projects"),
        ("GET", "/api/v1/audit"),
        ("POST", "/api/v1/gc"),
        ("GET", "/api/v1/webhooks"),
        ("POST", "/api/v1/webhooks"),
        ("GET", "/openai/v1/models"),
        ("POST", "/openai/v1/embeddings"),
        ("POST", "/openai/v1/completions"),
        ("POST", "/openai/v1/chat/completions"),
    ],
)
def test_parts_that_are_not_built_say_so(trained: Trained, method: str, path: str) -> None:
    answer = trained.platform.client.request(method, path)
    if method == "HEAD":
        assert answer.status_code == 501
        return
    check_problem(answer, 501, "not_built", word="not in this release")


@pytest.mark.parametrize(
    ("path", "cursor"),
    [
        ("/api/v1/jobs", "abc"),
        ("/api/v1/keys", "W251bGxd"),
        ("/api/v1/models", "../x"),
        ("/api/v1/datasets", " "),
        ("/api/v1/endpoints", "%2F"),
        ("/api/v1/models/mlp/versions", "abc"),
    ],
)
def test_a_cursor_that_is_none_is_refused(trained: Trained, path: str, cursor: str) -> None:
    answer = trained.platform.client.get(f"{path}?cursor={cursor}")
    check_problem(answer, 422, "invalid_input", ["cursor"], "next_cursor")


def test_an_endpoint_follows_its_alias_and_an_alias_can_be_removed(trained: Trained) -> None:
    platform = trained.platform
    for _ in range(2):
        platform.wait(platform.submit(**quick("followed"))["id"], "succeeded")
    alias, endpoint = "/api/v1/models/followed/aliases/live", "/api/v1/endpoints/followed"
    platform.call("PUT", alias, 200, json={"version": 1})
    platform.call("PUT", endpoint, 201, json={"model": "followed", "routes": [{"alias": "live"}]})
    assert platform.call("GET", endpoint)["version"] == 1
    platform.call("PUT", alias, 200, json={"version": 2})
    assert platform.call("GET", endpoint)["version"] == 2
    platform.call("PUT", alias, 404, json={"version": 9})
    assert platform.call("GET", endpoint)["version"] == 2
    check_problem(platform.client.delete(alias), 409, "conflict", word="endpoint 'followed' routes by alias")
    platform.call("DELETE", endpoint, 204)
    platform.call("DELETE", alias, 204)
    assert platform.call("GET", "/api/v1/models/followed")["aliases"] == {}
    history = platform.call("GET", f"{alias}/history")["items"]
    assert [(move["version"], move["previous"]) for move in history] == [(None, 2), (2, 1), (1, None)]
    platform.call("DELETE", alias, 404)
    platform.call("DELETE", "/api/v1/models/followed/versions/2", 204)


def test_a_data_set_that_a_queued_job_needs_is_kept(trained: Trained) -> None:
    platform = trained.platform
    platform.upload("needed", breast_cancer_csv())
    busy = platform.submit(**long("holding"))
    waiting = platform.submit(**quick("waiting", dataset="needed@1", after=[busy["id"]]))
    path = "/api/v1/datasets/needed/versions/1"
    check_problem(platform.client.delete(path), 409, "conflict", word=waiting["id"])
    platform.call("POST", f"/api/v1/jobs/{busy['id']}/cancel", 202)
    wait_until(lambda: platform.job(waiting["id"])["state"] == "failed", 20, "the waiting job is given up")
    platform.call("DELETE", path, 204)


def test_a_compressed_body_is_named(trained: Trained) -> None:
    answer = trained.platform.client.post("/api/v1/jobs", json=quick("m"), headers={"content-encoding": "gzip"})
    check_problem(answer, 400, "malformed", ["Content-Encoding"])
