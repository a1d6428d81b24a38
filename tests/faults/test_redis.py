"""Redis killed and restarted empty: nothing is lost and nothing runs twice."""

from tests.faults.conftest import SHORT
from tests.support.jobs import long, quick
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import ValkeyServer, wait_until


def test_redis_killed_and_restarted_empty_loses_no_job() -> None:
    with ValkeyServer() as redis, Platform(AIMASS_REDIS_URL=redis.url, **SHORT) as platform:
        platform.upload("tumours", breast_cancer_csv())
        running = platform.submit(**long("running", training={"epochs": 50, "batch_size": 128, "early_stopping": None}))
        wait_until(lambda: platform.job(running["id"])["progress"]["fraction"] > 0, 60, "the first job trains")
        queued = [platform.submit(**quick(f"queued-{n}")) for n in range(3)]
        redis.kill()
        assert platform.client.get("/readyz").status_code == 503
        assert "AIMASS_REDIS_URL" in platform.client.get("/readyz").json()["checks"]["redis"]
        while_away = platform.submit(**quick("while-away"))
        redis.start()
        for job in (running, *queued, while_away):
            ended = platform.wait(job["id"], "succeeded", 120)
            assert ended["attempt"] == 1
        wait_until(lambda: platform.client.get("/readyz").status_code == 200, 10, "ready again")


def test_jobs_run_to_their_end_while_redis_stays_away() -> None:
    with ValkeyServer() as redis, Platform(AIMASS_REDIS_URL=redis.url, **SHORT) as platform:
        platform.upload("tumours", breast_cancer_csv())
        redis.kill()
        job = platform.submit(**quick("without"))
        assert platform.wait(job["id"], "succeeded", 60)["attempt"] == 1
        redis.start()
