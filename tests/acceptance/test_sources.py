"""Data sets whose file a worker fetches from an address."""

from tests.acceptance.conftest import people_csv
from tests.support.file_server import FileServer
from tests.support.platform import Platform
from tests.support.servers import wait_until

PATH = "/api/v1/datasets/fetched/versions"


def test_an_address_becomes_a_data_set_although_its_server_fails_once(limited: Platform, files: FileServer) -> None:
    files.failures = 1
    body = {"name": "fetched", "uri": f"{files.url}/data/people.csv?token=secret"}
    headers = {"idempotency-key": "fetch-people"}
    first = limited.call("POST", "/api/v1/datasets", 201, json=body, headers=headers)
    again = limited.call("POST", "/api/v1/datasets", 201, json=body, headers=headers)
    assert first["version"] == again["version"]
    path = first["links"]["self"]
    wait_until(lambda: limited.call("GET", path)["state"] != "ingesting", 60, "it is ingested")
    version = limited.call("GET", path)
    assert (version["state"], version["rows"], version["filename"]) == ("ready", 100, "people.csv")
    assert version["source"]["uri"] == f"{files.url}/data/people.csv?token=***"
    assert (version["source"]["etag"], version["source"]["fetched_at"] is not None) == ('"v1"', True)
    assert limited.client.get(f"{path}/original").content == people_csv()
    job = limited.call("GET", version["links"]["job"])
    assert (job["state"], job["attempt"], "secret" in str(job)) == ("succeeded", 2, False)


def test_a_fetch_that_stalls_can_be_cancelled_and_one_that_is_refused_says_why(
    limited: Platform, files: FileServer
) -> None:
    files.stalls.clear()
    body = {"name": "fetched", "uri": f"{files.url}/data/../slow.csv"}
    limited.call("POST", "/api/v1/datasets", 422, json=body)
    version = limited.call("POST", "/api/v1/datasets", 201, json=body | {"uri": f"{files.url}/data/slow.csv"})
    assert (version["sha256"], version["source"]["fetched_at"]) == (None, None)
    assert files.stalls.wait(30)
    limited.call("POST", f"{version['links']['job']}/cancel", 202)
    limited.wait(version["links"]["job"].rsplit("/", 1)[1], "cancelled")
    assert limited.call("GET", version["links"]["self"])["state"] == "failed"
    limited.call("GET", f"{version['links']['self']}/original", 404)

    version = limited.call("POST", "/api/v1/datasets", 201, json=body | {"uri": f"{files.url}/data/status/404"})
    job = limited.wait(version["links"]["job"].rsplit("/", 1)[1], "failed")
    assert job["error"]["errors"][0]["loc"] == ["uri"]
    assert limited.call("GET", version["links"]["self"])["error"]["code"] == "invalid_data"
