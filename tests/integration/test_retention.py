"""Jobs that are kept for a moment only, on a real platform: what they made outlives them."""

from tests.support.jobs import quick
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import wait_until

SHORT = {"AIMASS_QUEUE_KEEP_DAYS": "0.000001", "AIMASS_QUEUE_RECONCILE_S": "0.02"}  # looked for each second


def status(platform: Platform, path: str) -> int:
    return platform.client.get(path).status_code


def test_old_jobs_go_and_the_records_of_versions_stay_whole() -> None:
    once = {"idempotency-key": "one"}
    with Platform(**SHORT) as platform:
        data = platform.upload("tumours", breast_cancer_csv())
        trained = platform.submit(**quick("kept"))
        unwanted = quick("unwanted", after=[trained["id"]])
        job = platform.call("POST", "/api/v1/jobs", 202, json=unwanted, headers=once)
        gone = f"/api/v1/jobs/{job['id']}"
        platform.call("POST", f"{gone}/cancel", 202)
        platform.wait(trained["id"], "succeeded")
        wait_until(lambda: status(platform, gone) == 404, 60, "a job that made nothing is removed")
        for path in (gone, f"{gone}/events", f"{gone}/logs", f"{gone}/metrics"):
            assert platform.call("GET", path, 404)["code"] == "not_found"
        for path in (f"{gone}/cancel", f"{gone}/retry"):
            platform.call("POST", path, 404)
        answer = platform.call("POST", "/api/v1/jobs", 404, json=unwanted, headers=once)
        assert "Idempotency-Key" in answer["detail"]
        wait_until(lambda: not platform.logs(trained["id"]), 60, "the log of the training is removed")
        assert platform.events(trained["id"]) == []
        version = platform.call("GET", "/api/v1/models/kept/versions/1")
        assert platform.call("GET", version["links"]["job"])["spec"]["model"] == "kept"
        assert platform.call("GET", data["links"]["job"])["state"] == "succeeded"
        for link in version["links"].values():
            assert status(platform, link) == 200, link
        assert trained["id"] in [kept["id"] for kept in platform.call("GET", "/api/v1/jobs")["items"]]
        assert platform.call("GET", "/api/v1/compare?versions=kept@1")["items"][0]["settings"]["dataset"] == "tumours@1"
        platform.call("POST", f"{version['links']['self']}/reproduce", 202)
